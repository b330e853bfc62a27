"""Items for the sampled softmax, drawn uniformly or by popularity."""

from __future__ import annotations

import torch
from torch import Tensor

from rl4rec.train.cross_entropy import SampledItems


class ItemSampler:
    """Draws items with replacement, with probability proportional to (count + 1) ** exponent.

    Draws use torch's global generator on the CPU, which checkpoints save: a resumed run draws the same.

    Args:
        counts: (I,) how often each item occurs in training.
        draws: items a draw, s.
        exponent: 0 draws uniformly, 1 by popularity.
    """

    def __init__(self, counts: Tensor, *, draws: int, exponent: float) -> None:
        weights = (counts.double() + 1.0) ** exponent  # (I,)
        self._edges = weights.cumsum(0)
        self._expected = (draws * weights / self._edges[-1]).float()
        self._draws = draws

    def draw(self, device: torch.device | str = "cpu") -> SampledItems:
        """A fresh sample."""
        places = torch.rand(self._draws, dtype=torch.float64) * self._edges[-1]
        items = torch.searchsorted(self._edges, places, right=True).clamp_max(len(self._edges) - 1)
        return SampledItems(items.to(device), self._expected[items].to(device))
