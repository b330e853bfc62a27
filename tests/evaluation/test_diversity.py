"""Intra-list diversity against numbers worked by hand."""

import numpy as np
import pytest

from rl4rec.data.dataset import Ragged
from rl4rec.evaluation import diversity as module
from rl4rec.evaluation.diversity import CoOccurrence

# Together: 0-1 twice, 0-2 once, 1-2 once, 3-4 once. Counts: 0 twice, 1 twice, 2 once, 3 once, 4 once, 5 never.
SEQUENCES = Ragged.from_rows([np.array(row) for row in ([0, 1, 2], [1, 0], [3, 4], [4])])


def test_similarity_is_the_cosine_of_co_occurrence() -> None:
    together = CoOccurrence(SEQUENCES, 6)
    first, second = np.array([0, 2, 1, 3, 0, 5]), np.array([1, 0, 2, 4, 3, 0])
    expected = [2 / 2, 1 / np.sqrt(2), 1 / np.sqrt(2), 1 / np.sqrt(2), 0.0, 0.0]
    assert together.similarity(first, second) == pytest.approx(expected)
    assert together.similarity(second, first) == pytest.approx(expected)


@pytest.mark.parametrize("block", [1, 4096])
def test_diversity_is_one_less_the_mean_over_pairs(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(module, "_BLOCK", block)
    shown = np.array([[0, 1, 2], [3, 4, 5], [5, 3, -1]], np.int32)
    root = 1 / np.sqrt(2)
    found = CoOccurrence(SEQUENCES, 6).diversity(shown, (1, 2, 3, 9))
    assert found[0] == 1.0
    assert found[1] == pytest.approx(1 - (1 + root + 0) / 3)  # pairs 0-1, 3-4, 5-3
    assert found[2] == pytest.approx(1 - ((1 + root + root) / 3 + root / 3 + 0) / 3)
    assert found[3] == found[2]


def test_a_sequence_that_holds_an_item_twice_counts_at_most_as_the_same_item() -> None:
    together = CoOccurrence(Ragged.from_rows([np.array([0, 1, 0])]), 2)
    assert together.similarity(np.array([0]), np.array([1])) == 1.0


def test_only_neighbours_within_the_window_go_together() -> None:
    together = CoOccurrence(Ragged.from_rows([np.arange(60)]), 60)
    assert together.similarity(np.array([0, 0]), np.array([49, 50])).tolist() == [1.0, 0.0]


def test_without_pairs_everything_differs() -> None:
    assert CoOccurrence(Ragged.from_rows([np.array([1])]), 3).diversity(np.array([[0, 1]], np.int32), (2,)) == [1.0]
