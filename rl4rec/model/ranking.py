"""The ranking seam: what evaluation and serving know of a policy, and rules that need no training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rl4rec.model.scores import Scores

IntArray = npt.NDArray[np.int64]


class RankingPolicy(Protocol):
    """Ranks the catalogue for a history. Lists of the best items and ranks of targets follow from the scores."""

    def encode(self, histories: Sequence[IntArray]) -> Any:
        """States of b histories (item indices, oldest first, none empty); opaque, rows picked as `states[rows]`."""

    def score(self, states: Any) -> Scores | Tensor:
        """Next-item scores over the catalogue, (b, I), seen items included: as factors, or whole."""


class PopularityPolicy:
    """The rule that scores every item by how often it was taken in training, for everybody alike.

    Args:
        item_counts: (I,) interactions of each item in the training part.
    """

    def __init__(self, item_counts: IntArray) -> None:
        self._counts = torch.from_numpy(item_counts).to(torch.float32).unsqueeze(1)  # (I, 1)

    def encode(self, histories: Sequence[IntArray]) -> Tensor:
        """One for each history, (b, 1): nothing of it is read."""
        return torch.ones(len(histories), 1)

    def score(self, states: Tensor) -> Scores:
        """The counts for every user."""
        return Scores(states, self._counts)
