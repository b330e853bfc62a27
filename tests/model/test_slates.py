"""Plackett-Luce slates against the definition, by enumeration of every slate of a tiny catalogue."""

import itertools
import math
from typing import Any

import pytest
import torch

from rl4rec.model.slates import greedy_slate, sample_slates, slate_log_probs


def probability(weights: list[float], slate: tuple[int, ...]) -> float:
    """The definition: pick in proportion to the weight among what is left."""
    left, result = sum(weights), 1.0
    for item in slate:
        result *= weights[item] / left
        left -= weights[item]
    return result


def test_log_probs_worked_by_hand() -> None:
    scores = torch.tensor([[1.0, 2.0, 5.0, 2.0]]).log()  # weights 1, 2, 5, 2: total 10
    result = slate_log_probs(scores, torch.ones(1, 4, dtype=torch.bool), torch.tensor([[[2, 0], [0, 1]]]))
    # 5/10 then 1/5; 1/10 then 2/9
    expected = [[math.log(0.5), math.log(0.2)], [math.log(0.1), math.log(2 / 9)]]
    assert result.log_probs[0].tolist() == [pytest.approx(row, abs=1e-6) for row in expected]
    # first slot: entropy of (.1, .2, .5, .2); second slot after item 2: of (.2, .4, .4)
    first = -sum(p * math.log(p) for p in (0.1, 0.2, 0.5, 0.2))
    second = -sum(p * math.log(p) for p in (0.2, 0.4, 0.4))
    assert result.entropy[0, 0].tolist() == pytest.approx([first, second], abs=1e-6)


def test_probabilities_of_all_slates_sum_to_one_on_the_support() -> None:
    torch.manual_seed(1)
    scores = torch.randn(1, 6) * 2
    support = torch.tensor([[True, True, False, True, True, True]])
    slates = list(itertools.permutations([0, 1, 3, 4, 5], 3))
    result = slate_log_probs(scores, support, torch.tensor(slates).unsqueeze(0))
    total = result.log_probs.sum(-1).exp()[0]
    assert total.sum().item() == pytest.approx(1.0, abs=1e-5)
    weights = torch.where(support, scores.exp(), 0.0)[0].tolist()
    assert total.tolist() == pytest.approx([probability(weights, slate) for slate in slates], rel=1e-4)


def test_exact_when_the_slate_takes_nearly_all_mass() -> None:
    scores = torch.tensor([[60.0, 30.0, 0.0, -30.0]])
    result = slate_log_probs(scores, torch.ones(1, 4, dtype=torch.bool), torch.tensor([[[0, 1, 2]], [[3, 2, 1]]])[:1])
    # after the leader each choice is nearly certain: log p = -exp(-30)
    assert result.log_probs[0, 0].tolist() == pytest.approx([0.0, 0.0, 0.0], abs=1e-6)
    unlikely = slate_log_probs(scores, torch.ones(1, 4, dtype=torch.bool), torch.tensor([[[0, 3, 2]]]))
    assert unlikely.log_probs[0, 0].tolist() == pytest.approx([0.0, -60.0, -30.0], abs=1e-4)
    assert (unlikely.entropy >= 0).all()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 2e-6)], ids=str)
@pytest.mark.parametrize("k", [1, 3, 6])  # 6: all that the first prompt may choose
@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0, 1000.0])  # 1000: probabilities of far below 1e-308
def test_values_and_gradients_are_those_of_the_definition(
    scale: float, k: int, dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(0)
    scores = (torch.randn(2, 7, dtype=dtype) * scale).requires_grad_()
    support = torch.ones(2, 7, dtype=torch.bool)
    support[0, 2] = False
    best = greedy_slate(scores.detach(), support, k=k)  # takes nearly all mass
    slates = torch.stack([torch.tensor([[0, 5, 3, 6, 1, 4], [2, 4, 6, 1, 0, 3]])[:, :k], best, best.flip(1)], 1)
    result = slate_log_probs(scores, support, slates)
    weights = torch.randn(2, *slates.shape, dtype=dtype)
    together = (weights[0] * result.log_probs + weights[1] * result.entropy).sum()
    (gradient,) = torch.autograd.grad(together, scores)

    total = torch.zeros((), dtype=torch.float64)
    for row, group, slot in itertools.product(range(2), range(3), range(k)):
        left = support[row].clone()
        left[slates[row, group, :slot]] = False
        log_q = torch.log_softmax(scores[row].double()[left], 0)
        index = int(left[: int(slates[row, group, slot])].sum())
        entropy = -(log_q.exp() * log_q).sum()
        place = (row, group, slot)
        assert result.log_probs[place].item() == pytest.approx(log_q[index].item(), rel=tolerance, abs=tolerance)
        assert result.entropy[place].item() == pytest.approx(entropy.item(), abs=tolerance)
        total = total + weights[0][place] * log_q[index] + weights[1][place] * entropy
    (expected,) = torch.autograd.grad(total, scores)
    assert torch.allclose(gradient, expected, atol=tolerance)


@pytest.mark.parametrize("source", [{"generator": torch.Generator().manual_seed(3)}, {"keys": torch.tensor([3])}])
def test_gumbel_top_k_draws_from_the_distribution(source: dict[str, Any]) -> None:
    weights = [4.0, 3.0, 2.0, 1.0]
    scores = torch.tensor([weights]).log()
    drawn = sample_slates(scores, torch.ones(1, 4, dtype=torch.bool), num_slates=40_000, k=2, **source)[0]
    for slate in itertools.permutations(range(4), 2):
        share = (drawn == torch.tensor(slate)).all(-1).double().mean().item()
        expected = probability(weights, slate)
        assert abs(share - expected) < 4.5 * math.sqrt(expected * (1 - expected) / 40_000)


def test_slates_are_distinct_and_inside_the_support() -> None:
    torch.manual_seed(0)
    support = torch.rand(5, 20) > 0.4
    slates = sample_slates(torch.randn(5, 20), support, num_slates=30, k=6)
    assert support.unsqueeze(1).expand(-1, 30, -1).gather(2, slates).all()
    assert (slates.sort(-1).values.diff(dim=-1) > 0).all()


def test_greedy_is_the_ranking_of_the_support() -> None:
    scores = torch.tensor([[0.1, 0.9, 0.5, 0.7]])
    support = torch.tensor([[True, False, True, True]])
    assert greedy_slate(scores, support, k=3).tolist() == [[3, 2, 0]]


def test_too_small_a_support_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"k=3 needs at least 3 candidates, but one prompt has only 2"):
        sample_slates(torch.zeros(1, 4), torch.tensor([[True, True, False, False]]), num_slates=1, k=3)
