"""Batches: padded histories, what a policy keeps of them, and the one support of sampling and log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rl4rec.model.crossfit_embeddings import CrossfitEmbeddings
from rl4rec.model.device import to_device


class Rows(NamedTuple):
    """Numbers of some rows of a batch, on the host and on the device of its tensors."""

    host: Tensor  # (n,) int64
    placed: Tensor  # the same numbers


def place_parts(parts: Sequence[Tensor], device: torch.device) -> list[Rows]:
    """Rows of each part of a batch, known on the host, for tensors on a device."""
    placed = torch.split_with_sizes(to_device(torch.cat(list(parts)), device), [len(part) for part in parts])
    return [Rows(*each) for each in zip(parts, placed, strict=True)]


def invert(parts: Sequence[Rows]) -> Tensor:
    """Where each row of a batch lies among its parts, one after the other, (b,), on their device."""
    return to_device(torch.cat([part.host for part in parts]).argsort(), parts[0].placed.device)


def _placed(rows: Rows | Tensor | slice) -> Tensor | slice:
    return rows.placed if isinstance(rows, Rows) else rows


@dataclass(frozen=True)
class Histories:
    """Right-padded histories of b users, oldest item first; rows are picked as from a tensor, `histories[rows]`.

    What decides which rows are read together is kept on the host: asking a GPU for it would make the host wait.
    """

    items: Tensor  # (b, l) item indices; -1 is padding; on the policy's device
    lengths: Tensor  # (b,) at least 1; on the host
    # (b,) the cross-fitted embeddings that stand in for the policy's own, on the host; None: its own
    tables: Tensor | None = None
    crossfit: CrossfitEmbeddings | None = None  # what `tables` counts

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, rows: Rows | Tensor | slice) -> Histories:
        """Some of the histories; a tensor of rows is one on the host."""
        if isinstance(rows, Tensor):
            (rows,) = place_parts([rows], self.items.device)
        host = rows.host if isinstance(rows, Rows) else rows
        tables = None if self.tables is None else self.tables[host]
        return Histories(self.items[_placed(rows)], self.lengths[host], tables, self.crossfit)

    def first(self, width: int) -> Histories:
        """The same without the columns from `width` on."""
        return replace(self, items=self.items[:, :width])

    def repeat_interleave(self, times: int) -> Histories:
        """Each row `times` times."""
        return self[torch.arange(len(self)).repeat_interleave(times)]


@dataclass(frozen=True)
class States:
    """What a policy keeps of b histories that it has read, for the policy alone; rows are picked as `states[rows]`."""

    vectors: Tensor  # (b, d) after the last item
    histories: Histories  # what was read

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, rows: Rows | Tensor | slice) -> States:
        return States(self.vectors[_placed(rows)], self.histories[rows])


@dataclass(frozen=True)
class Support:
    """What a slate may be chosen from. `items` None: the whole catalogue, candidate c is item c."""

    items: Tensor | None  # (b, c) item indices in rising order, `num_items` is padding
    mask: Tensor  # (b, c) bool

    def __getitem__(self, rows: Rows | Tensor | slice) -> Support:
        rows = _placed(rows)
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
    return Histories(to_device(torch.from_numpy(padded), device), torch.from_numpy(lengths))


def length_groups(lengths: Tensor, *, worth: int = 1) -> list[tuple[Tensor, int]]:
    """Rows of similar length, up to 4, 8, 16 ... items: read group by group, they need little padding.

    Batches can then be drawn at random, where bucketing whole batches by length would tie what is learned together
    to how long users stay.

    Args:
        lengths: (b,) at least 1; on the host.
        worth: items of padding that a group must save to be one of its own.

    Returns:
        For each group that is not empty: its rows, and the length of its longest row.
    """
    groups = []
    low, high, longest = 0, 4, int(lengths.max())
    while low < longest:
        rows = ((lengths > low) & (lengths <= high)).nonzero().squeeze(1)
        width = int(lengths[rows].max()) if len(rows) else low
        if high >= longest or len(rows) * (longest - width) >= worth:
            groups.append((rows, width))
            low = high
        high *= 2
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
