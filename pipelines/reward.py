"""Your own reward of a slate: `rl.reward_type: custom` trains PPO and GRPO on `gains`. Change it as you like.

Here: NDCG@k that counts more for a rare item. docs/reward.md has other rewards, and what changes with one.
"""

import torch
from torch import Tensor

from rl4rec.data.dataset import PreparedData
from rl4rec.metrics import slate_gains

RARITY = 0.5  # 0: plain NDCG; 1: a hit counts in inverse proportion to the item's interactions


def gains(slates: Tensor, targets: Tensor, data: PreparedData) -> Tensor:
    """Gain of each slot; the sum over a slate's slots is its reward.

    Args:
        slates: (n, k) item rows from 0 to I-1, best first, distinct within a slate.
        targets: (n,) the item that the user really took next.
        data: with `data.item_counts` (I,), `data.item_ids`, `data.popularity_percentiles()` (I,).

    Returns:
        (n, k) finite floats, of any sign.
    """
    counts = torch.from_numpy(data.item_counts).to(slates.device)  # (I,) training interactions
    weights = counts.clamp_min(1).double() ** -RARITY
    weights *= counts.sum() / (counts * weights).sum()  # mean 1 over interactions: NDCG's scale
    return slate_gains(slates, targets) * weights[targets].unsqueeze(1)
