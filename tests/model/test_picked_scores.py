"""Scores of picked items against the plain product, by both routes, with all gradients."""

import pytest
import torch

from rl4rec.model import scores as module
from rl4rec.model.scores import picked_scores


@pytest.mark.parametrize("gather", [True, False])
@pytest.mark.parametrize("room", [1, 4 * 40 * 11 * 20, 2**30])  # blocks of 16 rows, of some, all rows at once
def test_scores_and_gradients_are_those_of_the_plain_product(
    monkeypatch: pytest.MonkeyPatch, gather: bool, room: int
) -> None:
    monkeypatch.setattr(module, "_BREAK_EVEN", 0 if gather else 10**9)
    monkeypatch.setattr(module, "_PICKED_CPU_BYTES", room)
    torch.manual_seed(0)
    states, items = torch.randn(37, 5, dtype=torch.float64), torch.randn(40, 5, dtype=torch.float64)
    index = torch.randint(0, 40, (37, 11))
    index[:, 1] = index[:, 0]  # padding names one item several times
    weights = torch.randn(37, 11, dtype=torch.float64)
    found, expected = [], []
    for results, score in (
        (found, picked_scores),
        (expected, lambda s, i, x: (s @ i.T).gather(1, x)),
    ):
        leaves = [states.clone().requires_grad_(), items.clone().requires_grad_()]
        scores = score(*leaves, index)
        (scores.square() * weights).sum().backward()
        results += [scores.detach(), *(leaf.grad for leaf in leaves)]
    for mine, plain in zip(found, expected, strict=True):
        assert torch.allclose(mine, plain, atol=1e-12)


@pytest.mark.parametrize("gather", [True, False])
def test_what_is_frozen_gets_no_gradient(monkeypatch: pytest.MonkeyPatch, gather: bool) -> None:
    monkeypatch.setattr(module, "_BREAK_EVEN", 0 if gather else 10**9)
    states, items = torch.randn(3, 2, requires_grad=True), torch.randn(4, 2)
    picked_scores(states, items, torch.tensor([[0, 1]] * 3)).sum().backward()
    assert torch.allclose(states.grad, (items[0] + items[1]).expand(3, -1))
    assert items.grad is None


def test_small_sets_of_large_catalogues_are_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("multiplied out the catalogue")

    monkeypatch.setattr(torch, "mm", refuse)
    picked_scores(torch.randn(2, 3), torch.randn(5000, 3), torch.zeros(2, 10, dtype=torch.long))
    with pytest.raises(AssertionError, match="multiplied out"):
        picked_scores(torch.randn(2, 3), torch.randn(50, 3), torch.zeros(2, 10, dtype=torch.long))
