"""Diversity of what is shown: how little the items of one slate go together in the training data.

Intra-list diversity (Ziegler et al. 2005, as 1 - mean pairwise similarity) with the cosine of co-occurrence as
similarity, which needs no item features: c(i, j) / sqrt(c(i) c(j)), c counting how often the training sequences hold
an item, and two items together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from rl4rec.data.dataset import Ragged

IntArray = npt.NDArray[np.int64]
_WINDOW = 50  # items of a sequence further apart do not count as together: bounds the pairs of very long sequences
_BLOCK = 4096  # users looked up at once


class CoOccurrence:
    """Cosine similarity of items by the training sequences that hold both.

    Args:
        sequences: training part of every user.
        num_items: size of the catalogue, I.
    """

    def __init__(self, sequences: Ragged, num_items: int) -> None:
        users = np.repeat(np.arange(len(sequences)), sequences.lengths)
        values = sequences.values.astype(np.int64)
        self._num_items = num_items
        self._counts = np.bincount(values, minlength=num_items)  # (I,)
        keys: list[IntArray] = [np.empty(0, np.int64)]
        for lag in range(1, min(_WINDOW, int(sequences.lengths.max(initial=0)))):
            together = users[lag:] == users[:-lag]
            first, second = values[lag:][together], values[:-lag][together]
            keys.append(np.minimum(first, second) * num_items + np.maximum(first, second))
        self._pairs, self._together = np.unique(np.concatenate(keys), return_counts=True)

    def similarity(self, first: IntArray, second: IntArray) -> npt.NDArray[np.float64]:
        """Cosine of each pair of items, any shape; 0 for pairs never seen together."""
        if not len(self._pairs):
            return np.zeros(first.shape)
        pair = np.minimum(first, second) * self._num_items + np.maximum(first, second)
        place = np.searchsorted(self._pairs, pair).clip(max=len(self._pairs) - 1)
        together = np.where(self._pairs[place] == pair, self._together[place], 0)
        cosine = together / np.sqrt(np.maximum(self._counts[first] * self._counts[second], 1.0))
        return np.asarray(cosine.clip(max=1.0))  # a sequence may hold an item twice

    def diversity(self, shown: npt.NDArray[np.int32], ks: Sequence[int]) -> list[float]:
        """Mean over users of 1 - mean similarity of the pairs among the first k shown items.

        Args:
            shown: (u, K) items best first, -1 for none.
            ks: cut-offs; those above K take all K. With one item shown the diversity is 1.

        Returns:
            One value a cut-off.
        """
        width = shown.shape[1]
        left, right = np.triu_indices(width, 1)
        order = np.argsort(right, kind="stable")  # pairs of the first k items come first
        left, right = left[order], right[order]
        ends = [min(k, width) * (min(k, width) - 1) // 2 for k in ks]
        totals = np.zeros(len(ks))
        for start in range(0, len(shown), _BLOCK):
            items = shown[start : start + _BLOCK].astype(np.int64)
            real = (items[:, left] >= 0) & (items[:, right] >= 0)
            similar = np.where(real, self.similarity(items[:, left].clip(0), items[:, right].clip(0)), 0.0)
            for column, end in enumerate(ends):
                pairs = real[:, :end].sum(1)
                totals[column] += (1.0 - similar[:, :end].sum(1) / np.maximum(pairs, 1)).sum()
        return [float(total) for total in totals / max(len(shown), 1)]
