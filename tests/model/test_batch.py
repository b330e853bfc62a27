"""Padding of histories and the masked support."""

import numpy as np
import pytest
import torch

from rl4rec.model.batch import Support, build_support, length_groups, pad_histories


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
