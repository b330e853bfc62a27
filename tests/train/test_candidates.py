"""Candidate sets: exact counts, no leaks, the same on every side, evenly drawn."""

import numpy as np
import pytest
import torch

from rl4rec.model.batch import Histories, pad_histories
from rl4rec.train.candidates import _permutation_prefix, draw_candidates

ITEMS = 150


def prompts(count: int) -> tuple[Histories, torch.Tensor, torch.Tensor]:
    generator = np.random.default_rng(0)
    histories = [generator.choice(ITEMS, generator.integers(1, 12), replace=False) for _ in range(count)]
    return (
        pad_histories(histories, max_history=12),
        torch.from_numpy(generator.integers(0, ITEMS, count)),
        torch.from_numpy(generator.integers(0, 2**40, count)),
    )


@pytest.mark.parametrize("source", ["uniform", "popularity"])
def test_target_and_exactly_n_distinct_unseen_negatives(source: str) -> None:
    histories, targets, seeds = prompts(200)
    candidates = draw_candidates(
        histories,
        targets,
        seeds,
        negatives=30,
        num_items=ITEMS,
        source=source,  # type: ignore[arg-type]
        popularity=torch.arange(1.0, ITEMS + 1),
    )
    assert candidates.shape == (200, 31)
    assert (candidates.diff(dim=1) > 0).all() and candidates.max() < ITEMS
    for row in range(200):
        own = set(candidates[row].tolist())
        assert int(targets[row]) in own
        assert not (own - {int(targets[row])}) & set(histories.items[row].tolist())


def test_a_small_catalogue_gives_what_it_has() -> None:
    histories = pad_histories([np.array([0, 1]), np.array([5])], max_history=4)
    candidates = draw_candidates(histories, torch.tensor([3, 0]), torch.tensor([1, 2]), negatives=100, num_items=6)
    assert candidates.tolist() == [[2, 3, 4, 5, 6, 6], [0, 1, 2, 3, 4, 6]]


def test_candidates_depend_on_seed_and_target_but_not_on_the_batch() -> None:
    histories, targets, seeds = prompts(50)
    whole = draw_candidates(histories, targets, seeds, negatives=20, num_items=ITEMS)
    for row in (0, 17, 49):
        alone = pad_histories([histories.items[row, : histories.lengths[row]].numpy()], max_history=12)
        own = draw_candidates(alone, targets[row : row + 1], seeds[row : row + 1], negatives=20, num_items=ITEMS)
        assert torch.equal(own[0], whole[row])
    other = draw_candidates(histories, targets, seeds + 1, negatives=20, num_items=ITEMS)
    assert (other != whole).any(1).all()


@pytest.mark.parametrize("size", [1, 2, 5, 16, 17, 1000])
def test_the_keyed_prefix_is_a_permutation(size: int) -> None:
    values = _permutation_prefix(torch.arange(12) * 977, count=size, size=size)
    assert (values.sort(1).values == torch.arange(size)).all()


def test_uniform_negatives_are_uniform() -> None:
    count = 4000
    histories = Histories(torch.full((count, 1), 0), torch.ones(count, dtype=torch.long))
    targets = torch.ones(count, dtype=torch.long)
    candidates = draw_candidates(histories, targets, torch.arange(count), negatives=20, num_items=ITEMS)
    counts = torch.bincount(candidates.flatten(), minlength=ITEMS)[2:].double()
    expected = count * 20 / (ITEMS - 2)  # 540 each
    chi_square = ((counts - expected) ** 2 / expected).sum().item()
    # about 147 degrees of freedom less the dependence within a draw; 5 sigma is 147 + 5 * sqrt(294)
    assert chi_square < 147 + 5 * 294**0.5
    assert counts.var() > 0.5 * expected  # and not suspiciously even


def test_popularity_negatives_follow_the_weights() -> None:
    weights = torch.tensor([1.0, 1.0, 8.0, 1.0, 1.0])
    count = 6000
    histories = Histories(torch.full((count, 1), 0), torch.ones(count, dtype=torch.long))
    candidates = draw_candidates(
        histories,
        torch.ones(count, dtype=torch.long),
        torch.arange(count),
        negatives=1,
        num_items=5,
        source="popularity",
        popularity=weights,
    )
    share = torch.bincount(candidates.flatten(), minlength=5)[2:].double() / count
    assert share.tolist() == pytest.approx([0.8, 0.1, 0.1], abs=0.02)
