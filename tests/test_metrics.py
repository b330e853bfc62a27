"""Metrics against values worked by hand."""

import math

import pytest
import torch

from rl4rec.errors import UserError
from rl4rec.metrics import MetricKey, hit_rate, metric_key, mrr, ndcg, slate_gains


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


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("test/full/ndcg@10", ("test", "full", "ndcg", 10)),
        ("valid/sampled100/hit@5", ("valid", "sampled100", "hit", 5)),
        ("test/full_unmasked/popularity_percentile@20", ("test", "full_unmasked", "popularity_percentile", 20)),
    ],
)
def test_a_key_and_its_parts(text: str, parts: tuple[str, str, str, int]) -> None:
    assert metric_key(*parts) == text
    assert MetricKey.parse(text) == parts
    assert metric_key(*MetricKey.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "ndcg@10", "full/ndcg@10", "test.full.ndcg@5", "train/full/ndcg@10"),
        *("test/sampled/hit@5", "test/full/ndcg", "test/full/ndcg@10 ", "test/full/ndcg@-1"),
    ],
)
def test_what_is_no_key_is_refused_with_the_choices(text: str) -> None:
    with pytest.raises(UserError) as refused:
        MetricKey.parse(text)
    assert "(valid or test; full, full_unmasked or sampled<n>), such as test/full/ndcg@10" in str(refused.value)
    assert repr(text) in str(refused.value)
