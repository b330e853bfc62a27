"""The chunked and the sampled cross-entropy against torch's own on full logits."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rl4rec.train import cross_entropy
from rl4rec.train.cross_entropy import (
    NONE,
    ItemSampler,
    NextItemsLoss,
    SampledItems,
    Targets,
    linear_cross_entropy,
    sampled_cross_entropy,
)


def one_target(items: torch.Tensor) -> Targets:
    return Targets(items.unsqueeze(1), torch.ones(len(items), 1))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("rows", [(4, 2), (7, 7), (100, 4), None])
def test_loss_and_gradients_equal_the_plain_ones(smoothing: float, rows: tuple[int, int] | None) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(17, 8, requires_grad=True)
    weight = torch.randn(31, 8, requires_grad=True)
    targets = torch.randint(0, 31, (17,))
    loss = linear_cross_entropy(hidden, weight, one_target(targets), label_smoothing=smoothing, rows=rows)
    ours = torch.autograd.grad(2.5 * loss, (hidden, weight))
    plain = torch.nn.functional.cross_entropy(hidden @ weight.T, targets, label_smoothing=smoothing, reduction="sum")
    theirs = torch.autograd.grad(2.5 * plain, (hidden, weight))
    assert loss.item() == pytest.approx(plain.item(), rel=1e-5)
    for mine, reference in zip(ours, theirs, strict=True):
        assert torch.allclose(mine, reference, atol=1e-4)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_several_targets_equal_torch_on_probabilities(smoothing: float) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(9, 8, requires_grad=True)
    weight = torch.randn(13, 8, requires_grad=True)
    items = torch.randint(0, 13, (9, 3))
    items[0] = 5  # one item three times
    weights = torch.rand(9, 3)
    weights[1, 1:] = 0.0
    weights /= weights.sum(1, keepdim=True)
    wanted = torch.zeros(9, 13).scatter_add_(1, items, weights)
    loss = linear_cross_entropy(hidden, weight, Targets(items, weights), label_smoothing=smoothing, rows=(6, 3))
    plain = torch.nn.functional.cross_entropy(hidden @ weight.T, wanted, label_smoothing=smoothing, reduction="sum")
    assert loss.item() == pytest.approx(plain.item(), rel=1e-5)
    for mine, reference in zip(
        torch.autograd.grad(loss, (hidden, weight)), torch.autograd.grad(plain, (hidden, weight)), strict=True
    ):
        assert torch.allclose(mine, reference, atol=1e-5)


def test_what_pads_the_last_tile_never_reaches_the_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    hidden, weight = torch.randn(5, 3, requires_grad=True), torch.randn(7, 3, requires_grad=True)
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)  # now fresh memory is filled with NaN
    try:
        linear_cross_entropy(hidden, weight, one_target(torch.arange(5)), rows=(8, 8)).backward()
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    assert torch.isfinite(weight.grad).all() and torch.isfinite(hidden.grad).all()


def test_products_have_few_shapes_whatever_the_number_of_rows() -> None:
    """oneDNN keeps compiled kernels and buffers for every shape: hundreds of megabytes, were each batch a new one."""
    heights: set[int] = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.mm.default:
                heights.update(size for size in (*args[0].shape, *args[1].shape) if size not in (5, 3))
            return func(*args, **(kwargs or {}))

    weight = torch.randn(5, 3, requires_grad=True)
    for count in range(1, 40):
        hidden = torch.randn(count, 3, requires_grad=True)
        with Watch():
            linear_cross_entropy(hidden, weight, one_target(torch.zeros(count, dtype=torch.long)), rows=(16, 8))
    assert heights == {8, 16}
    with pytest.raises(ValueError, match="whole tiles of 8"):
        linear_cross_entropy(hidden, weight, one_target(torch.zeros(39, dtype=torch.long)), rows=(12, 8))


def test_bfloat16_products_change_the_gradient_by_little() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(256, 64, requires_grad=True)
    weight = (0.1 * torch.randn(500, 64)).requires_grad_()
    targets = one_target(torch.randint(0, 500, (256,)))
    exact, rough = (
        torch.autograd.grad(linear_cross_entropy(hidden, weight, targets, matmul_dtype=dtype), (hidden, weight))
        for dtype in (torch.float32, torch.bfloat16)
    )
    for a, b in zip(exact, rough, strict=True):
        assert (a - b).norm() / a.norm() < 0.01


@pytest.mark.parametrize("items", [2, 200, 12_101, 100_000, 1_000_000])
@pytest.mark.parametrize("device", ["cpu", "meta"])  # meta stands for any accelerator
def test_rows_held_are_whole_tiles_and_little_memory(items: int, device: str) -> None:
    chunk, tile = cross_entropy._rows_held(torch.empty(items, 1, device=device))
    assert chunk % tile == 0 and tile % 32 == 0
    if device == "cpu":
        assert tile == 32 or 4 * tile * items <= cross_entropy._TILE_BYTES
    assert 4 * chunk * items <= 300e6 or chunk == 64


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_small_batch_is_not_padded_to_a_whole_chunk(device: str) -> None:
    _, tile = cross_entropy._rows_held(torch.empty(200, 1, device=device))
    assert cross_entropy._padded(33, tile) == 64


def test_bfloat16_at_the_scale_of_cosine_scores() -> None:
    torch.manual_seed(0)
    hidden = (torch.nn.functional.normalize(torch.randn(256, 64), dim=1) / 0.07).requires_grad_()
    weight = torch.nn.functional.normalize(torch.randn(500, 64), dim=1).requires_grad_()
    targets = one_target(torch.randint(0, 500, (256,)))
    exact, rough = (
        torch.autograd.grad(
            linear_cross_entropy(hidden, weight, targets, label_smoothing=0.1, matmul_dtype=dtype), (hidden, weight)
        )
        for dtype in (torch.float32, torch.bfloat16)
    )
    for a, b in zip(exact, rough, strict=True):
        assert (a - b).norm() / a.norm() < 0.02


def test_frozen_embeddings_get_no_gradient() -> None:
    hidden = torch.randn(4, 8, requires_grad=True)
    weight = torch.randn(5, 8)
    linear_cross_entropy(hidden, weight, one_target(torch.tensor([0, 1, 2, 3]))).backward()
    assert hidden.grad is not None and weight.grad is None


def test_a_window_of_targets_worked_by_hand() -> None:
    # One sequence 7 4 9 | one with a single next item. Window 3, decay 1/2: weights 4:2:1, then 4:2, then 1.
    loss = NextItemsLoss(window=3, decay=0.5)
    following = loss.following(torch.tensor([[7, 4, 9], [8, NONE, NONE]]))
    assert following[0].tolist() == [[7, 4, 9], [4, 9, NONE], [9, NONE, NONE]]
    assert following[1, 0].tolist() == [8, NONE, NONE]
    targets = loss.targets(following[[0, 0, 0, 1], [0, 1, 2, 0]])
    assert targets.items.tolist() == [[7, 4, 9], [4, 9, 4], [9, 9, 9], [8, 8, 8]]
    expected = torch.tensor([[4 / 7, 2 / 7, 1 / 7], [2 / 3, 1 / 3, 0], [1, 0, 0], [1, 0, 0]])
    torch.testing.assert_close(targets.weights, expected)
    assert NextItemsLoss().following(torch.tensor([[7, 4]])).tolist() == [[[7], [4]]]


def estimate(sampled: SampledItems) -> tuple[torch.Tensor, torch.Tensor]:
    """What a sample says of the softmax's sum, and the true sum, for 4 rows over 11 items."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(4, 3, generator=generator), torch.randn(11, 3, generator=generator)
    items = torch.tensor([[0, 1], [2, 2], [3, 4], [10, 0]])  # row 1 has one target twice
    targets = Targets(items, torch.tensor([[0.7, 0.3], [1.0, 0.0], [0.5, 0.5], [0.9, 0.1]]))
    logits = hidden @ weight.T
    wanted = (targets.weights * logits.gather(1, items)).sum(1)
    sums = torch.stack(
        [
            sampled_cross_entropy(hidden[row : row + 1], weight, Targets(*(t[row : row + 1] for t in targets)), sampled)
            for row in range(4)
        ]
    )
    return (sums + wanted).exp(), logits.exp().sum(1)


def test_every_item_drawn_as_expected_gives_the_full_softmax() -> None:
    estimated, true = estimate(SampledItems(torch.arange(11), torch.ones(11)))
    torch.testing.assert_close(estimated, true)


@pytest.mark.parametrize("unit_rows", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_sampled_and_full_loss_agree_when_every_item_is_drawn_as_expected(unit_rows: bool, smoothing: float) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(6, 4), torch.randn(13, 4)
    following = torch.tensor([[1, 5], [2, 2], [0, NONE], [12, 3], [7, 7], [4, NONE]])
    loss = NextItemsLoss(window=2, decay=0.4, label_smoothing=smoothing)
    twice = SampledItems(torch.arange(13).repeat(2), torch.full((26,), 2.0))
    sampled, full = (loss(hidden, weight, following, draws, unit_rows=unit_rows) for draws in (twice, None))
    assert sampled.item() == pytest.approx(full.item(), rel=1e-5)
    rows = torch.nn.functional.normalize(weight, dim=1) if unit_rows else weight
    items, weights = loss.targets(following)
    wanted = torch.zeros(6, 13).scatter_add_(1, items, weights)
    plain = torch.nn.functional.cross_entropy(hidden @ rows.T, wanted, label_smoothing=smoothing, reduction="sum")
    assert full.item() == pytest.approx(plain.item(), rel=1e-5)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_the_sampled_sum_is_unbiased(exponent: float) -> None:
    torch.manual_seed(0)
    sampler = ItemSampler(torch.arange(11), draws=4, exponent=exponent)
    draws = torch.stack([estimate(sampler.draw())[0] for _ in range(4000)])
    true = estimate(sampler.draw())[1]
    error = (draws.mean(0) - true).abs() / (draws.std(0) / 4000**0.5 + 1e-9)
    assert error.max() < 4.0  # standard errors
    assert draws.std(0).max() > 0


def test_sampled_gradients_reach_targets_and_draws_only() -> None:
    weight = torch.randn(20, 4, requires_grad=True)
    hidden = torch.randn(3, 4, requires_grad=True)
    sampled = SampledItems(torch.tensor([7, 8, 7]), torch.full((3,), 3 / 20))
    sampled_cross_entropy(hidden, weight, one_target(torch.tensor([1, 2, 7])), sampled).backward()
    assert weight.grad is not None and hidden.grad is not None
    assert weight.grad.abs().sum(1).nonzero().flatten().tolist() == [1, 2, 7, 8]


def test_the_sampler_follows_popularity_and_its_exponent() -> None:
    torch.manual_seed(0)
    counts = torch.tensor([0, 8, 99])
    for exponent, weights in ((0.0, [1, 1, 1]), (0.5, [1, 3, 10]), (1.0, [1, 9, 100])):
        sampled = ItemSampler(counts, draws=200_000, exponent=exponent).draw()
        share = torch.bincount(sampled.items, minlength=3) / 200_000
        expected = torch.tensor(weights) / sum(weights)
        torch.testing.assert_close(share, expected, atol=0.01, rtol=0.0)
        torch.testing.assert_close(sampled.expected, 200_000 * expected[sampled.items])
