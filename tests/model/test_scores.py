"""Scores in factors, and the top k without sorting."""

import pytest
import torch

from rl4rec.model import scores as scoring
from rl4rec.model.scores import Factors, top_k


@pytest.mark.parametrize(("users", "items"), [(1, 7), (50, 7), (37, 40_001), (3, 900_000)])
def test_blocks_are_the_rows_of_the_product(users: int, items: int) -> None:
    torch.manual_seed(0)
    factors = Factors(torch.randn(users, 4), torch.randn(items, 4))
    whole, reached = factors.states @ factors.items.T, 0
    for start, stop, scores in factors.blocks():
        assert start == reached < stop
        torch.testing.assert_close(scores, whole[start:stop])
        scores.fill_(-1.0)  # the caller's to write to
        reached = stop
    assert reached == users


def test_a_block_stays_small_whatever_the_number_of_users() -> None:
    factors = Factors(torch.zeros(5000, 2), torch.zeros(10_000, 2))
    assert {scores.numel() * 4 <= scoring._CPU_BYTES for _, _, scores in factors.blocks()} == {True}
    wide = Factors(torch.zeros(64, 2), torch.zeros(1_000_000, 2))
    assert [stop - start for start, stop, _ in wide.blocks()] == [16] * 4


@pytest.mark.parametrize("items", [5, 300, 2_561, 10_000, 10_037])
@pytest.mark.parametrize("k", [1, 5, 20])
def test_top_k_is_what_torch_finds(items: int, k: int) -> None:
    torch.manual_seed(items)
    k = min(k, items)
    scores = torch.randn(9, items)
    scores[0, items // 2 :] = 50.0 + torch.arange(items - items // 2)  # all the best in the last groups, tail included
    scores[1, : items // 2] = 50.0 - torch.arange(items // 2)  # and in the first
    scores[2] = -torch.inf
    values, columns = top_k(scores, k)
    torch.testing.assert_close(values, scores.topk(k).values)
    torch.testing.assert_close(scores.gather(1, columns), values)
    assert all(len(set(row.tolist())) == k for row in columns)
