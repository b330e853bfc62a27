"""Metrics against values worked by hand."""

import math

import pytest
import torch

from rl4rec.metrics import hit_rate, mrr, ndcg, slate_gains


def test_gain_of_each_rank_worked_by_hand() -> None:
    ranks = torch.tensor([0, 1, 2, 3, 10])
    # 1/log2(2), 1/log2(3), 1/log2(4), then beyond k=3
    assert ndcg(ranks, k=3).tolist() == pytest.approx([1.0, 0.6309297535714575, 0.5, 0.0, 0.0])
    assert hit_rate(ranks, k=3).tolist() == [1.0, 1.0, 1.0, 0.0, 0.0]
    assert mrr(ranks, k=3).tolist() == pytest.approx([1.0, 0.5, 1 / 3, 0.0, 0.0])


def test_slate_gains_sit_at_the_targets_slot_and_sum_to_the_metric() -> None:
    slates = torch.tensor([[[4, 7, 9], [7, 4, 1]], [[0, 1, 2], [2, 1, 0]]])  # (2 prompts, 2 slates, 3 slots)
    targets = torch.tensor([[7], [5]])
    gains = slate_gains(slates, targets)
    assert gains.shape == (2, 2, 3)
    assert gains[0].tolist() == [[0.0, pytest.approx(1 / math.log2(3)), 0.0], [1.0, 0.0, 0.0]]
    assert gains[1].count_nonzero() == 0


def test_mixed_reward_is_the_weighted_sum() -> None:
    gains = slate_gains(torch.tensor([3, 8]), torch.tensor(8), reward_type="mixed", weights=(0.5, 0.3, 0.2))
    assert gains.tolist() == pytest.approx([0.0, 0.5 * 0.6309297535714575 + 0.3 + 0.2 * 0.5])


@pytest.mark.parametrize(("reward_type", "value"), [("ndcg", 0.5), ("hit", 1.0), ("mrr", 1 / 3)])
def test_each_reward_type_at_the_third_slot(reward_type: str, value: float) -> None:
    gains = slate_gains(torch.tensor([5, 6, 8]), torch.tensor(8), reward_type=reward_type)  # type: ignore[arg-type]
    assert gains.sum().item() == pytest.approx(value)
