"""Training prompts: every prefix of every training sequence, and the order in which RL visits them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rl4rec.data.dataset import PreparedData, Ragged
from rl4rec.errors import UserError
from rl4rec.model.batch import Histories, Rows
from rl4rec.model.crossfit_embeddings import CrossfitEmbeddings
from rl4rec.model.device import to_device
from rl4rec.model.keyed_random import combine
from rl4rec.model.policy import SlatePolicy
from rl4rec.train.candidates import CandidateRule

IntArray = npt.NDArray[np.int64]

_SEEDS = 2**31 - 1  # seeds of prompts lie below


class PromptBatch(NamedTuple):
    """Prompts as plain arrays."""

    histories: list[IntArray]  # item indices, oldest first, at most `max_history`
    targets: IntArray  # (b,) the item that came next
    seeds: IntArray  # (b,) of the draws of candidates and slates
    tables: IntArray | None  # (b,) the cross-fitted embeddings that have not seen the target; None: no split points

    def share(self, rank: int, processes: int) -> PromptBatch:
        """Every `processes`-th prompt from `rank` on: the part of one of several processes."""
        mine = slice(rank, None, processes)
        tables = None if self.tables is None else self.tables[mine]
        return PromptBatch(self.histories[mine], self.targets[mine], self.seeds[mine], tables)

    def to_tensors(self, policy: SlatePolicy, crossfit: CrossfitEmbeddings | None, rule: CandidateRule) -> Prompts:
        """The prompts on the policy's device, with their candidates.

        Args:
            policy: what reads them.
            crossfit: the embeddings that `tables` counts; None: the policy's own read and score all.
            rule: how candidates are drawn.
        """
        histories = policy.pad_histories(self.histories)
        targets, seeds = to_device(torch.from_numpy(np.stack([self.targets, self.seeds])), policy.device)
        if crossfit is not None:
            assert self.tables is not None
            histories = Histories(histories.items, histories.lengths, torch.from_numpy(self.tables), crossfit)
        return Prompts(histories, targets, combine(seeds, targets), rule.candidates(histories, targets, seeds))


@dataclass(frozen=True)
class Prompts:
    """b prompts on a policy's device; rows are picked as `prompts[rows]`."""

    histories: Histories
    targets: Tensor  # (b,) the item that came next
    keys: Tensor  # (b,) of the draws of slates
    candidates: Tensor | None  # (b, c) item indices in rising order; None: the whole catalogue

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, rows: Rows | slice) -> Prompts:
        placed = rows.placed if isinstance(rows, Rows) else rows
        candidates = None if self.candidates is None else self.candidates[placed]
        return Prompts(self.histories[rows], self.targets[placed], self.keys[placed], candidates)


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
            last n items, each with the table of cross-fitted embeddings that has not seen it.

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
        from_end = np.repeat(self._sequences.offsets[1:], self._sequences.lengths) - np.arange(len(position)) - 1
        if split_points:
            usable &= from_end < split_points
        self._targets_at = np.flatnonzero(usable)  # index into the flat values, one a prompt
        if len(self._targets_at) == 0:
            raise UserError(
                "no prompt for RL: nobody has two training items"
                + (", the later of which the policy may propose (policy.mask_seen: true)" if mask_seen else "")
                + ". Bring more data"
            )
        self._position = position[self._targets_at]
        self._table = from_end[self._targets_at] if split_points else None
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
        seeds = (visits * 2654435761 + self._seed * 40503) % _SEEDS
        return PromptBatch(histories, values[ends], seeds, None if self._table is None else self._table[chosen])

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
