"""Batches: padded histories, what a policy keeps of them, and the one support of sampling and log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rl4rec.model.crossfit_embeddings import CrossfitEmbeddings


@dataclass(frozen=True)
class Histories:
    """Right-padded histories of b users, oldest item first; rows are picked as from a tensor, `histories[rows]`."""

    items: Tensor  # (b, l) item indices; -1 is padding
    lengths: Tensor  # (b,) at least 1
    tables: Tensor | None = None  # (b,) the cross-fitted embeddings that stand in for the policy's own; None: its own
    crossfit: CrossfitEmbeddings | None = None  # what `tables` counts

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, rows: Tensor | slice) -> Histories:
        tables = None if self.tables is None else self.tables[rows]
        return Histories(self.items[rows], self.lengths[rows], tables, self.crossfit)

    def first(self, width: int) -> Histories:
        """The same without the columns from `width` on."""
        return replace(self, items=self.items[:, :width])

    def repeat_interleave(self, times: int) -> Histories:
        """Each row `times` times."""
        return self[torch.arange(len(self), device=self.items.device).repeat_interleave(times)]


@dataclass(frozen=True)
class States:
    """What a policy keeps of b histories that it has read, for the policy alone; rows are picked as `states[rows]`."""

    vectors: Tensor  # (b, d) after the last item
    histories: Histories  # what was read

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, rows: Tensor | slice) -> States:
        return States(self.vectors[rows], self.histories[rows])


@dataclass(frozen=True)
class Support:
    """What a slate may be chosen from. `items` None: the whole catalogue, candidate c is item c."""

    items: Tensor | None  # (b, c) item indices in rising order, `num_items` is padding
    mask: Tensor  # (b, c) bool

    def __getitem__(self, rows: Tensor | slice) -> Support:
        return Support(None if self.items is None else self.items[rows], self.mask[rows])

    def repeat_interleave(self, times: int) -> Support:
        """Each row `times` times."""
        return self[torch.arange(len(self.mask), device=self.mask.device).repeat_interleave(times)]

    def positions(self, slates: Tensor) -> Tensor:
        """Candidate positions of item indices, (b, g, k) -> (b, g, k)."""
        if self.items is None:
            return slates
        flat = slates.reshape(slates.shape[0], -1)
        return torch.searchsorted(self.items, flat.contiguous()).view(slates.shape)

    def item_indices(self, positions: Tensor) -> Tensor:
        """Item indices of candidate positions, (b, g, k) -> (b, g, k)."""
        if self.items is None:
            return positions
        return self.items.gather(1, positions.reshape(positions.shape[0], -1)).view(positions.shape)


def pad_histories(
    histories: Sequence[npt.NDArray[np.int64]], *, max_history: int, device: torch.device | str = "cpu"
) -> Histories:
    """The latest `max_history` items of each history, right-padded with -1.

    Raises:
        ValueError: a history is empty.
    """
    full = np.fromiter(map(len, histories), dtype=np.int64, count=len(histories))
    lengths = np.minimum(full, max_history)
    if len(lengths) and lengths.min() < 1:
        raise ValueError("a history is empty: the policy needs at least one item to read")
    padded = np.full((len(histories), int(lengths.max(initial=1))), -1, dtype=np.int64)
    if len(lengths):
        to_end = np.repeat(np.cumsum(full), full) - np.arange(full.sum())  # 1 for a history's last item
        latest = np.concatenate(histories)[to_end <= max_history]
        padded[np.arange(padded.shape[1]) < lengths[:, None]] = latest
    return Histories(torch.from_numpy(padded).to(device), torch.from_numpy(lengths).to(device))


def length_groups(lengths: Tensor) -> list[tuple[Tensor, int]]:
    """Rows of similar length, up to 4, 8, 16 ... items: read group by group, they need little padding.

    Batches can then be drawn at random, where bucketing whole batches by length would tie what is learned together
    to how long users stay.

    Args:
        lengths: (b,) at least 1.

    Returns:
        For each group that is not empty: its rows, and the length of its longest row.
    """
    groups = []
    low, high, longest = 0, 4, int(lengths.max())
    while low < longest:
        rows = ((lengths > low) & (lengths <= high)).nonzero().squeeze(1)
        if len(rows):
            groups.append((rows, int(lengths[rows].max())))
        low, high = high, 2 * high
    return groups


def build_support(
    histories: Histories, candidates: Tensor | None = None, *, num_items: int, mask_seen: bool = True
) -> Support:
    """Candidates less the items seen in the history.

    Args:
        histories: b prompts.
        candidates: (b, c) item indices in rising order, padded with `num_items`; None: the whole catalogue.
        num_items: size of the catalogue.
        mask_seen: take the items of the history out.
    """
    items = histories.items
    if candidates is None:
        mask = torch.ones(len(items), num_items + 1, dtype=torch.bool, device=items.device)
        if mask_seen:
            mask.scatter_(1, torch.where(items < 0, num_items, items), False)
        return Support(None, mask[:, :-1])
    mask = candidates < num_items
    if mask_seen:
        columns = torch.searchsorted(candidates, items.contiguous()).clamp_max(candidates.shape[1] - 1)
        seen = (candidates.gather(1, columns) == items).to(torch.int8)
        mask = mask & (torch.zeros_like(mask, dtype=torch.int8).scatter_add(1, columns, seen) == 0)
    return Support(candidates, mask)
