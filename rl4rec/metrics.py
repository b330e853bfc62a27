"""Ranking metrics with one relevant item: the one definition that reward and evaluation share.

With a single held-out item the ideal DCG is 1 (the target on top), so NDCG@k is the gain at the target's slot:
`1 / log2(rank + 2)` for a 0-based rank below k, else 0 (Järvelin & Kekäläinen 2002, binary relevance).

A measured figure has one name everywhere, its key: `test/full/ndcg@10`. What stands before the last `/` names the
column of the ranks behind it.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor

from rl4rec.errors import UserError, shown
from rl4rec.params import METRIC_KEY, METRIC_KEY_FORM

RewardType = Literal["ndcg", "hit", "mrr", "mixed"]


def metric_key(fold: str, protocol: str, metric: str, k: int) -> str:
    """The name of a figure.

    Args:
        fold: `valid` or `test`.
        protocol: `full`, `full_unmasked` or `sampled<n>`.
        metric: such as `ndcg`; docs/metrics.md has them all.
        k: cut-off.

    Examples:
        >>> metric_key("test", "full", "ndcg", 10)
        'test/full/ndcg@10'
    """
    return f"{fold}/{protocol}/{metric}@{k}"


class MetricKey(NamedTuple):
    """The parts of a figure's name, in the order in which `metric_key` takes them."""

    fold: str
    protocol: str
    metric: str
    k: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Take a name apart.

        Raises:
            UserError: it is no name of a figure; the message says which form it has.

        Examples:
            >>> MetricKey.parse("test/full/ndcg@10")
            MetricKey(fold='test', protocol='full', metric='ndcg', k=10)
        """
        found = re.fullmatch(METRIC_KEY, text)
        if found is None:
            raise UserError(f"expected {METRIC_KEY_FORM}, got {shown(text)}")
        fold, protocol, metric, k = found.groups()
        return cls(fold, protocol, metric, int(k))


def rank_gains(ranks: Tensor, *, k: int, metric: Literal["ndcg", "hit", "mrr"]) -> Tensor:
    """Metric of each 0-based rank of the target; 0 at rank k and beyond.

    ndcg: 1 / log2(rank + 2); hit: 1; mrr: 1 / (rank + 1).

    Args:
        ranks: any shape, integers >= 0.
        k: cut-off, the number of slots that count.
        metric: which of the three.

    Returns:
        float64, the shape of `ranks`.
    """
    position = ranks.to(torch.float64)
    match metric:
        case "ndcg":
            gains = 1.0 / torch.log2(position + 2.0)
        case "hit":
            gains = torch.ones_like(position)
        case "mrr":
            gains = 1.0 / (position + 1.0)
    return torch.where(ranks < k, gains, torch.zeros_like(gains))


def ndcg(ranks: Tensor, *, k: int) -> Tensor:
    """NDCG@k of each user from the target's 0-based rank: 1 / log2(rank + 2) below k, else 0.

    Args:
        ranks: any shape, integers >= 0.
        k: cut-off.

    Returns:
        float64, the shape of `ranks`.

    Examples:
        >>> ndcg(torch.tensor([0, 2, 10]), k=10)
        tensor([1.0000, 0.5000, 0.0000], dtype=torch.float64)
    """
    return rank_gains(ranks, k=k, metric="ndcg")


def hit_rate(ranks: Tensor, *, k: int) -> Tensor:
    """HR@k of each user: 1 where the target is among the first k.

    Args:
        ranks: of the targets, any shape, integers >= 0.
        k: cut-off.

    Returns:
        float64, the shape of `ranks`.
    """
    return rank_gains(ranks, k=k, metric="hit")


def mrr(ranks: Tensor, *, k: int) -> Tensor:
    """MRR@k of each user: the reciprocal rank of the target, 0 beyond k.

    Args:
        ranks: of the targets, any shape, 0-based, integers >= 0.
        k: cut-off.

    Returns:
        float64, the shape of `ranks`.
    """
    return rank_gains(ranks, k=k, metric="mrr")


def slate_hits(slates: Tensor, targets: Tensor) -> Tensor:
    """Whether each slate holds its target, (...) bool.

    Args:
        slates: (..., k) item ids.
        targets: (...) or broadcastable to it, the held-out item.
    """
    return (slates == targets.unsqueeze(-1)).any(-1)


def slate_gains(
    slates: Tensor,
    targets: Tensor,
    *,
    reward_type: RewardType = "ndcg",
    weights: tuple[float, float, float] = (0.5, 0.25, 0.25),
) -> Tensor:
    """Gain of each slot of each slate; the row sum is the metric at k = the slate's length.

    Args:
        slates: (..., k) item ids, best first, distinct within a slate.
        targets: (...) or broadcastable to it, the held-out item.
        reward_type: `mixed` is the weighted sum of ndcg, hit and mrr.
        weights: of ndcg, hit and mrr, for `mixed`.

    Returns:
        (..., k) float32, 0 at every slot but the target's.

    Examples:
        >>> slate_gains(torch.tensor([5, 6, 8]), torch.tensor(8))
        tensor([0.0000, 0.0000, 0.5000])
    """
    k = slates.shape[-1]
    slots = torch.arange(k, device=slates.device)
    match reward_type:
        case "mixed":
            ndcg_weight, hit_weight, mrr_weight = weights
            per_slot = ndcg_weight * ndcg(slots, k=k) + hit_weight * hit_rate(slots, k=k) + mrr_weight * mrr(slots, k=k)
        case "ndcg" | "hit" | "mrr":
            per_slot = rank_gains(slots, k=k, metric=reward_type)
    hits = slates == targets.unsqueeze(-1)
    return torch.where(hits, per_slot, torch.zeros_like(per_slot)).to(torch.float32)  # (..., k)
