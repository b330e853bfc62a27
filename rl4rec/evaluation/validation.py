"""A quick look at one protocol, for use during training."""

from __future__ import annotations

import torch

from rl4rec import metrics
from rl4rec.data.dataset import Fold, PreparedData
from rl4rec.evaluation.ranking import full_ranks, ranked_fold, score_blocks
from rl4rec.model.device import to_device
from rl4rec.model.ranking import RankingPolicy


def validate(
    policy: RankingPolicy, data: PreparedData, *, fold: Fold = "valid", k: int = 10, batch_size: int = 512
) -> dict[str, float]:
    """NDCG@k and HR@k of the full ranking without seen items: `{"valid/full/ndcg@10": .., "valid/full/hit@10": ..}`.

    Raises:
        UserError: a score is NaN.
    """
    ranked = ranked_fold(data, fold)
    targets = torch.from_numpy(ranked.targets)
    parts = []
    for start, stop, scores in score_blocks(
        ranked.block_scorer(policy),
        users=len(targets),
        num_items=data.num_items,
        batch_size=batch_size,
        name="validation",
    ):
        seen = ranked.seen_pairs(start, stop, scores.device)
        parts.append(full_ranks(scores, to_device(targets[start:stop], scores.device), seen)[0])
    ranks = torch.cat(parts).cpu().masked_fill(torch.from_numpy(ranked.repeated), data.num_items - 1)
    return {
        metrics.metric_key(fold, "full", "ndcg", k): float(metrics.ndcg(ranks, k=k).mean()),
        metrics.metric_key(fold, "full", "hit", k): float(metrics.hit_rate(ranks, k=k).mean()),
    }
