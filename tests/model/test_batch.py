"""Padding of histories and the masked support."""

import numpy as np
import pytest
import torch

from rl4rec.model.batch import Histories, States, Support, build_support, length_groups, pad_histories
from rl4rec.model.crossfit_embeddings import CrossfitEmbeddings


def test_histories_keep_their_latest_items_padded_on_the_right() -> None:
    padded = pad_histories([np.array([1, 2, 3, 4]), np.array([9])], max_history=3)
    assert padded.items.tolist() == [[2, 3, 4], [9, -1, -1]]
    assert padded.lengths.tolist() == [3, 1]


def test_an_empty_history_is_an_error() -> None:
    with pytest.raises(ValueError, match="a history is empty"):
        pad_histories([np.array([], dtype=np.int64)], max_history=3)


def test_full_support_leaves_out_the_seen_items() -> None:
    histories = pad_histories([np.array([0, 2]), np.array([3])], max_history=5)
    support = build_support(histories, num_items=4)
    assert support.mask.tolist() == [[False, True, False, True], [True, True, True, False]]
    assert build_support(histories, num_items=4, mask_seen=False).mask.all()


def test_candidate_support_leaves_out_padding_and_seen_items() -> None:
    histories = pad_histories([np.array([0, 2, 7]), np.array([3])], max_history=5)
    candidates = torch.tensor([[1, 2, 5, 7], [0, 4, 9, 9]])  # 9 is padding
    support = build_support(histories, candidates, num_items=9)
    assert support.mask.tolist() == [[True, False, True, False], [True, True, False, False]]


def test_positions_and_item_indices_are_inverse() -> None:
    support = Support(torch.tensor([[1, 4, 8], [0, 2, 3]]), torch.ones(2, 3, dtype=torch.bool))
    slates = torch.tensor([[[8, 1], [4, 8]], [[0, 3], [2, 0]]])
    positions = support.positions(slates)
    assert positions.tolist() == [[[2, 0], [1, 2]], [[0, 2], [1, 0]]]
    assert torch.equal(support.item_indices(positions), slates)


def test_length_groups_cover_every_row_once_with_little_padding() -> None:
    lengths = torch.tensor([1, 50, 4, 5, 8, 9, 3])
    groups = [(rows.tolist(), width) for rows, width in length_groups(lengths)]
    assert groups == [([0, 2, 6], 4), ([3, 4], 8), ([5], 9), ([1], 50)]
    # 3 rows of at most 4 items save 3 x 46 of padding; 2 of at most 8 save 2 x 42: too little, with a third 3 x 41
    merged = [(rows.tolist(), width) for rows, width in length_groups(lengths, worth=100)]
    assert merged == [([0, 2, 6], 4), ([3, 4, 5], 9), ([1], 50)]
    assert [rows.tolist() for rows, _ in length_groups(lengths, worth=10_000)] == [[0, 1, 2, 3, 4, 5, 6]]


def test_rows_of_histories_are_picked_with_their_tables() -> None:
    rows = torch.zeros(2, 10, 4)
    crossfit = CrossfitEmbeddings(rows, rows, 4)
    padded = pad_histories([np.array([1, 2, 3]), np.array([9]), np.array([5, 4])], max_history=3)
    histories = Histories(padded.items, padded.lengths, torch.tensor([1, 0, 1]), crossfit)
    for picked in (histories[torch.tensor([2, 1])], histories[[2, 1]]):
        assert picked.items.tolist() == [[5, 4, -1], [9, -1, -1]]
        assert picked.lengths.tolist() == [2, 1] and picked.tables.tolist() == [1, 0]
        assert picked.crossfit is crossfit and len(picked) == 2
    tail = histories[1:]
    assert tail.lengths.tolist() == [1, 2] and tail.tables.tolist() == [0, 1]
    assert padded[1:].tables is None and padded[1:].crossfit is None
    twice = histories.repeat_interleave(2)
    assert twice.lengths.tolist() == [3, 3, 1, 1, 2, 2] and twice.tables.tolist() == [1, 1, 0, 0, 1, 1]
    assert histories.first(2).items.tolist() == [[1, 2], [9, -1], [5, 4]]


def test_rows_of_a_support_are_picked() -> None:
    mask = torch.tensor([[True, False], [False, True], [True, True]])
    listed = Support(torch.tensor([[1, 4], [0, 2], [3, 5]]), mask)
    picked = listed[torch.tensor([2, 0])]
    assert picked.items.tolist() == [[3, 5], [1, 4]] and picked.mask.tolist() == [[True, True], [True, False]]
    whole = Support(None, mask)[1:]
    assert whole.items is None and whole.mask.tolist() == [[False, True], [True, True]]
    assert listed.repeat_interleave(2).items.tolist() == [[1, 4], [1, 4], [0, 2], [0, 2], [3, 5], [3, 5]]


def test_rows_of_states_are_picked_with_what_was_read() -> None:
    histories = pad_histories([np.array([1, 2]), np.array([9])], max_history=3)
    states = States(torch.tensor([[0.5], [0.7]]), histories)
    picked = states[torch.tensor([1])]
    assert len(states) == 2 and len(picked) == 1
    assert picked.vectors.tolist() == [[pytest.approx(0.7)]] and picked.histories.items.tolist() == [[9, -1]]
