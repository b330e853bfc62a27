"""Training prompts: every prefix of every training sequence, and the order in which RL visits them."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rl4rec.data.dataset import PreparedData, Ragged
from rl4rec.errors import UserError

IntArray = npt.NDArray[np.int64]

_SEEDS = 2**31 - 1  # seeds of prompts lie below


class PromptBatch(NamedTuple):
    """Prompts as plain arrays."""

    histories: list[IntArray]  # item indices, oldest first, at most `max_history`
    targets: IntArray  # (b,) the item that came next
    seeds: IntArray  # (b,) of the draws of candidates and slates

    def share(self, rank: int, world: int) -> PromptBatch:
        """Every `world`-th prompt from `rank` on: the part of one of several processes."""
        return PromptBatch(self.histories[rank::world], self.targets[rank::world], self.seeds[rank::world])


def seed_digits(num_items: int) -> int:
    """How many base-`num_items` digits carry the seed of a prompt."""
    digits = 1
    while max(num_items, 2) ** digits < _SEEDS:
        digits += 1
    return digits


def check_slate_fits(data: PreparedData, *, k: int, max_history: int, mask_seen: bool, latest: bool = False) -> None:
    """Make sure that every prompt leaves enough unseen items for a slate.

    Raises:
        UserError: the catalogue is too small.
    """
    sequences = data.train_sequences(latest=latest)
    distinct = max((len(np.unique(sequences[row][:-1])) for row in range(len(sequences))), default=0)
    longest = min(max_history, distinct) if mask_seen else 0
    if data.num_items - longest < k:
        raise UserError(
            f"rl.k: a slate of {k} unseen items does not fit: the catalogue has {data.num_items} items, and a history "
            f"of {longest} distinct items takes that many out. Lower rl.k or policy.max_history"
        )


class PromptSet:
    """All (prefix, next item) pairs of the training sequences, visited epoch by epoch in a seeded order.

    Visit v is prompt `permutation_of_epoch(v // n)[v % n]` with its own candidate seed: a pure function of (seed, v),
    so PPO and GRPO see the same prompts and a resumed run goes on where it stopped.

    Args:
        data: its training parts.
        max_history: items of a prefix that the policy reads, the latest.
        seed: of the order and of the candidates.
        mask_seen: leave out prompts whose target is among the items read: the policy may not propose it.
        latest: the validation targets belong to the feedback too.
        split_points: 0: every prefix of every sequence is a prompt. n: only those whose target is one of a user's
            last n items, each with the leave-out table (seed modulo n) that has not seen it.

    Raises:
        UserError: there is no prompt.
    """

    def __init__(
        self,
        data: PreparedData,
        *,
        max_history: int,
        seed: int,
        mask_seen: bool = True,
        latest: bool = False,
        split_points: int = 0,
    ) -> None:
        self._sequences: Ragged = data.train_sequences(latest=latest)
        self._max_history = max_history
        self._seed = seed
        self._num_items = data.num_items
        starts = self._sequences.offsets[:-1]
        position = np.arange(len(self._sequences.values)) - np.repeat(starts, self._sequences.lengths)
        usable = position > 0
        if mask_seen:
            usable &= _since_last_taken(self._sequences) > max_history
        self._tables = max(1, split_points)
        from_end = np.repeat(self._sequences.offsets[1:], self._sequences.lengths) - np.arange(len(position)) - 1
        if split_points:
            # of users who have a target to hold out at that split point, as `PreparedData.split` counts them
            full = np.repeat(data.sequences.lengths, self._sequences.lengths)
            usable &= (from_end < split_points) & (full - from_end >= (3 if latest else 4))
        self._targets_at = np.flatnonzero(usable)  # index into the flat values, one a prompt
        if len(self._targets_at) == 0:
            raise UserError(
                "no user has two training items (the last two of each are held out): no prompt for RL"
                + (f", and split points need users with 4 and more items ({split_points=})" if split_points else "")
                + ". Bring more data"
            )
        self._position = position[self._targets_at]
        self._table = from_end[self._targets_at] if split_points else np.zeros(len(self._targets_at), np.int64)
        self._epoch: int | None = None
        self._order = np.empty(0, np.int64)

    def __len__(self) -> int:
        return len(self._targets_at)

    def visit(self, start: int, count: int) -> PromptBatch:
        """The prompts of visits start .. start + count - 1."""
        chosen = np.concatenate([self._visits(v, stop) for v, stop in self._per_epoch(start, start + count)])
        ends = self._targets_at[chosen]
        begins = ends - np.minimum(self._position[chosen], self._max_history)
        values = self._sequences.values
        histories = [values[begin:end] for begin, end in zip(begins, ends, strict=True)]
        # From the visit's number, so a prompt meets other negatives and slates when it comes again.
        visits = np.arange(start, start + count, dtype=np.int64)
        draws = (visits * 2654435761 + self._seed * 40503) % (_SEEDS // self._tables)
        seeds = draws * self._tables + self._table[chosen]
        return PromptBatch(histories, values[ends], seeds)

    def _per_epoch(self, start: int, stop: int) -> list[tuple[int, int]]:
        bounds = [start]
        while bounds[-1] < stop:
            bounds.append(min(stop, (bounds[-1] // len(self) + 1) * len(self)))
        return list(pairwise(bounds))

    def _visits(self, start: int, stop: int) -> IntArray:
        epoch = start // len(self)
        if epoch != self._epoch:
            self._order = np.random.default_rng([self._seed, epoch]).permutation(len(self))
            self._epoch = epoch
        first = start - epoch * len(self)
        return self._order[first : first + stop - start]


def _since_last_taken(sequences: Ragged) -> IntArray:
    """Steps since the user last took the same item, for every entry of the flat values; huge for a first time."""
    user = np.repeat(np.arange(len(sequences)), sequences.lengths)
    order = np.lexsort((np.arange(len(user)), sequences.values, user))
    again = (np.diff(user[order]) == 0) & (np.diff(sequences.values[order]) == 0)
    since = np.full(len(user), np.iinfo(np.int64).max)
    since[order[1:][again]] = np.diff(order)[again]
    return since
