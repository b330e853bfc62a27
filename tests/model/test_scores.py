"""Scores as factors, with a sparse part, and the top k without sorting."""

import pytest
import torch

from rl4rec.model import scores as scoring
from rl4rec.model.scores import Scores, top_k

BETA = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")


@pytest.mark.parametrize(("users", "items"), [(1, 7), (50, 7), (37, 40_001), (3, 900_000)])
def test_blocks_are_the_rows_of_the_product(users: int, items: int) -> None:
    torch.manual_seed(0)
    product = Scores(torch.randn(users, 4), torch.randn(items, 4))
    whole, reached = product.states @ product.items.T, 0
    for start, stop, scores in product.blocks():
        assert start == reached < stop
        torch.testing.assert_close(scores, whole[start:stop])
        scores.fill_(-1.0)  # the caller's to write to
        reached = stop
    assert reached == users


def test_a_block_stays_small_whatever_the_number_of_users() -> None:
    product = Scores(torch.zeros(5000, 2), torch.zeros(10_000, 2))
    assert {scores.numel() * 4 <= scoring._CPU_BYTES for _, _, scores in product.blocks()} == {True}
    wide = Scores(torch.zeros(64, 2), torch.zeros(1_000_000, 2))
    assert [stop - start for start, stop, _ in wide.blocks()] == [16] * 4


def test_all_scores_at_once_are_the_product() -> None:
    torch.manual_seed(0)
    product = Scores(torch.randn(37, 4), torch.randn(40_001, 4))
    torch.testing.assert_close(product.dense(), product.states @ product.items.T)


@BETA
@pytest.mark.parametrize(("users", "items"), [(1, 7), (37, 40_001)])  # in one block and in several
def test_a_sparse_part_is_added_in_blocks(users: int, items: int) -> None:
    torch.manual_seed(0)
    added = torch.where(torch.rand(users, items) < 0.001, torch.randn(users, items), 0.0)
    added[0, :3] = torch.tensor([7.0, -7.0, 5.0])
    added[users // 2] = 0.0  # a user without
    added[-1, -1] = 9.0
    factors = torch.randn(users, 4), torch.randn(items, 4)
    scores = Scores(*factors, added.to_sparse_csr())
    expected = factors[0] @ factors[1].T + added
    torch.testing.assert_close(scores.dense(), expected)
    blocks = [(start, stop) for start, stop, _ in scores.blocks()]
    assert (len(blocks) > 1) == (users > 1)
    for start, stop, block in scores.blocks():
        values, columns = top_k(block.clone(), 5)
        torch.testing.assert_close(values, expected[start:stop].topk(5).values)
        torch.testing.assert_close(expected[start:stop].gather(1, columns), values)


@BETA
def test_what_is_added_lifts_an_item_to_the_top() -> None:
    rows = torch.zeros(2, 4)
    rows[1, 2] = 10.0
    scores = Scores(torch.ones(2, 1), torch.tensor([[3.0], [2.0], [1.0], [0.0]]), rows.to_sparse_csr())
    assert scores.dense().tolist() == [[3, 2, 1, 0], [3, 2, 11, 0]]
    (_, _, block), *more = scores.blocks()
    assert not more and top_k(block, 2)[1].tolist() == [[0, 1], [2, 0]]


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
