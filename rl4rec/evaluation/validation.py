"""A quick look at one protocol, for use during training."""

from __future__ import annotations

import torch

from rl4rec import metrics
from rl4rec.data.prepared import Fold, PreparedData
from rl4rec.evaluation.ranking import Scorer, full_ranks, ranked_fold, score_blocks, seen_pairs


def validate(
    scorer: Scorer, data: PreparedData, *, fold: Fold = "valid", k: int = 10, batch_size: int = 512
) -> dict[str, float]:
    """NDCG@k and HR@k of the full ranking without seen items: `{"full/ndcg@10": .., "full/hit@10": ..}`.

    Raises:
        UserError: a score is NaN.
    """
    ranked = ranked_fold(data, fold)
    parts = []
    blocks = score_blocks(
        ranked.block_scorer(scorer), users=len(ranked.targets), num_items=data.num_items, batch_size=batch_size
    )
    for start, stop, scores in blocks:
        targets = torch.from_numpy(ranked.targets[start:stop]).to(scores.device)
        parts.append(full_ranks(scores, targets, seen_pairs(ranked, start, stop, scores.device))[0].cpu())
    ranks = torch.cat(parts)
    return {
        f"full/ndcg@{k}": float(metrics.ndcg(ranks, k=k).mean()),
        f"full/hit@{k}": float(metrics.hit_rate(ranks, k=k).mean()),
    }
