"""Sampled negatives: eligible, distinct, uniform, fixed."""

import itertools
from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rl4rec.data.dataset import Ragged
from rl4rec.evaluation.negatives import sample_negatives


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 11), max_size=14), min_size=1, max_size=10), st.integers(1, 12), st.integers(0, 99)
)
def test_negatives_are_distinct_and_outside_the_sequence(rows: list[list[int]], n: int, seed: int) -> None:
    drawn = sample_negatives(Ragged.from_rows(rows), num_items=12, n=n, seed=seed)
    short = 0
    for own, items in zip(rows, drawn.items.tolist(), strict=True):
        real = [item for item in items if item >= 0]
        eligible = set(range(12)) - set(own)
        assert real == sorted(set(real))
        assert set(real) <= eligible
        assert len(real) == min(n, len(eligible))
        assert items[len(real) :] == [-1] * (n - len(real))
        short += len(real) < n
    assert drawn.short_users == short


def test_every_set_is_equally_likely() -> None:
    # 5 eligible items of 8, 2 drawn: 10 sets. 20,000 users, expected 2,000 each; chi-square below its .9999 quantile
    # for 9 degrees of freedom, 33.7.
    users = 20_000
    drawn = sample_negatives(Ragged.from_rows([[6, 0, 3, 3]] * users), num_items=8, n=2, seed=5).items
    counts = Counter(map(tuple, drawn.tolist()))
    assert set(counts) == set(itertools.combinations([1, 2, 4, 5, 7], 2))
    assert sum((count - 2000) ** 2 / 2000 for count in counts.values()) < 33.7


def floyd_one_user(own: set[int], num_items: int, uniform: list[float]) -> list[int]:
    """The textbook loop, one user at a time."""
    eligible = [item for item in range(num_items) if item not in own]
    wanted, chosen = min(len(uniform), len(eligible)), set()
    for slot in range(wanted):
        last = len(eligible) - wanted + slot
        draw = int(uniform[slot] * (last + 1))
        chosen.add(last if draw in chosen else draw)
    return sorted(eligible[position] for position in chosen)


def test_the_draw_is_fixed_by_its_seed() -> None:
    rows = [[0, 1], [4], [8, 8, 2, 3]]
    uniform = np.random.Generator(np.random.PCG64(42)).random((3, 4)).tolist()
    expected = [floyd_one_user(set(own), 9, draws) for own, draws in zip(rows, uniform, strict=True)]
    assert sample_negatives(Ragged.from_rows(rows), num_items=9, n=4, seed=42).items.tolist() == expected


def test_blocks_leave_no_trace() -> None:
    rows = np.random.default_rng(0).integers(0, 50, (9000, 4)).tolist()  # more than one block
    first = sample_negatives(Ragged.from_rows(rows), num_items=50, n=6, seed=1)
    fewer = sample_negatives(Ragged.from_rows(rows[:8500]), num_items=50, n=6, seed=1)
    assert np.array_equal(first.items[:8500], fewer.items)
    assert first.digest != sample_negatives(Ragged.from_rows(rows), num_items=50, n=6, seed=2).digest


def test_distinct_rows() -> None:
    found = Ragged.from_rows([[3, 1, 3], [], [2]]).distinct(4)
    assert [found[row].tolist() for row in range(3)] == [[1, 3], [], [2]]
