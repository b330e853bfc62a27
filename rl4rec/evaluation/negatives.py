"""Sampled negatives: for each user a fixed set of distinct items that are in no part of the user's sequence.

One draw serves every policy and both folds. It depends on the data and the seed alone, never on a batch size.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rl4rec.data.dataset import IntArray, Ragged

_USERS_A_BLOCK = 8192


@dataclass(frozen=True)
class Negatives:
    """Negatives of each user, ascending, padded with -1 where a user has fewer than n eligible items."""

    items: npt.NDArray[np.int32]  # (u, n)

    @property
    def short_users(self) -> int:
        """Users with fewer than n negatives."""
        return int((self.items[:, -1] < 0).sum())

    @property
    def digest(self) -> str:
        """SHA-256 (first 16 hex digits) of the sets: equal digest, equal negatives."""
        return hashlib.sha256(np.ascontiguousarray(self.items, dtype="<i4").tobytes()).hexdigest()[:16]


def sample_negatives(sequences: Ragged, *, num_items: int, n: int, seed: int) -> Negatives:
    """Draw n items a user, uniformly and without repeats, from the items outside the user's whole sequence.

    Floyd's algorithm (Bentley & Floyd 1987) draws distinct positions among the eligible items, for all users at
    once; positions become items by stepping over the user's own.

    Args:
        sequences: u rows, everything each user ever took, the targets included.
        num_items: size of the catalogue.
        n: negatives a user.
        seed: of the draw.
    """
    own = sequences.distinct(num_items)
    rng = np.random.Generator(np.random.PCG64(seed))
    items = np.empty((len(own), n), dtype=np.int32)
    for start in range(0, len(own), _USERS_A_BLOCK):
        stop = min(start + _USERS_A_BLOCK, len(own))
        eligible = num_items - own.lengths[start:stop]
        positions = _distinct_positions(rng.random((stop - start, n)), eligible)  # (b, n)
        items[start:stop] = _step_over(positions, own, start, stop, num_items)
    return Negatives(items)


def _distinct_positions(uniform: npt.NDArray[np.float64], eligible: IntArray) -> IntArray:
    """Floyd's sample without replacement of min(n, eligible) positions below `eligible`, ascending, -1 at the end."""
    users, n = uniform.shape
    wanted = np.minimum(n, eligible)  # (b,)
    chosen = np.full((users, n), -1, dtype=np.int64)
    for slot in range(n):
        last = eligible - wanted + slot
        draw = np.floor(uniform[:, slot] * (last + 1)).astype(np.int64)
        taken = (chosen[:, :slot] == draw[:, None]).any(axis=1)
        chosen[:, slot] = np.where(slot < wanted, np.where(taken, last, draw), -1)
    beyond = np.iinfo(np.int64).max
    ordered = np.sort(np.where(chosen < 0, beyond, chosen), axis=1)
    return np.where(ordered == beyond, -1, ordered)


def _step_over(positions: IntArray, own: Ragged, start: int, stop: int, num_items: int) -> IntArray:
    """Item at each position among the items that are not the user's own (b, n); -1 stays."""
    first, last = own.offsets[start], own.offsets[stop]
    row = np.repeat(np.arange(stop - start), own.lengths[start:stop])
    within = np.arange(first, last) - own.offsets[start:stop][row]
    # Own item m follows `value - m` eligible items: those with value - m <= p come before eligible position p.
    behind = row * (num_items + 1) + own.values[first:last] - within
    rows = np.arange(stop - start)[:, None]
    wanted = rows * (num_items + 1) + positions
    skipped = np.searchsorted(behind, wanted, side="right") - (own.offsets[start:stop] - first)[:, None]
    return np.where(positions < 0, -1, positions + skipped)
