"""Scores as products of states and item vectors: of the whole catalogue block by block, and of a few candidates.

Scores of a catalogue are kept as the two factors of a matrix product until they are needed. `picked_scores` gives those
of some candidates per history, with gradients, in a memory that does not grow with the batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

_GROUP = 64  # items whose maximum stands for them in `top_k`
_CPU_BYTES, _ACCELERATOR_BYTES = 3 * 2**20, 256 * 2**20
# Multiplying out the catalogue runs at the speed of arithmetic, gathering rows of embeddings at that of memory; they
# break even where the catalogue is about this many times as large as a candidate set.
_BREAK_EVEN = 50
_PICKED_CPU_BYTES = 4 * 2**20


class Scores(NamedTuple):
    """Scores of b users over I items: `states @ items.T`, plus a sparse part where there is one."""

    states: Tensor  # (b, d)
    items: Tensor  # (I, d)
    added: Tensor | None = None  # (b, I) sparse CSR: what is no product of two factors, such as a term for item pairs

    def dense(self) -> Tensor:
        """All scores at once, (b, I)."""
        return torch.cat([block.clone() for _, _, block in self.blocks()])

    def blocks(self) -> Iterator[tuple[int, int, Tensor]]:
        """The product some rows at a time: `(start, stop, (stop - start, I) scores)`.

        On a CPU a block is small enough to stay in the cache while it is ranked, which is as fast again as going
        through memory; with a catalogue of millions that is also what keeps it in memory at all. All blocks share
        one buffer: the scores are the caller's until the next block, and may be written to.
        """
        room = _CPU_BYTES if self.states.device.type == "cpu" else _ACCELERATOR_BYTES
        rows = max(16, room // (4 * len(self.items)))
        users = len(self.states)
        states, items = self.states.detach(), self.items.detach()
        buffer = states.new_empty(min(rows, users), len(items))
        for start in range(0, users, rows):
            stop = min(start + rows, users)
            block = torch.mm(states[start:stop], items.T, out=buffer[: stop - start])
            if self.added is not None:
                _add_rows(block, self.added, start, stop)
            yield start, stop, block


def _add_rows(block: Tensor, added: Tensor, start: int, stop: int) -> None:
    """Add the rows start..stop-1 of a sparse CSR tensor to a dense block of them, in place."""
    bounds = added.crow_indices()[start : stop + 1]
    entries = slice(int(bounds[0]), int(bounds[-1]))
    rows = torch.repeat_interleave(torch.arange(stop - start, device=block.device), bounds.diff())
    block.index_put_((rows, added.col_indices()[entries]), added.values()[entries], accumulate=True)


def top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest scores of each row, best first, and their columns, (b, k) each; nothing is sorted but candidates.

    The k largest lie in the k groups of columns with the largest maxima, so that one pass over the scores leaves
    k groups to look at. Which of equal scores come first is as open as in `torch.topk`.

    Args:
        scores: (b, I).
        k: at most I.
    """
    items = scores.shape[1]
    groups = items // _GROUP
    if scores.device.type != "cpu" or groups < 4 * k:  # torch's kernel is as fast
        return torch.topk(scores, k, dim=1)
    whole = groups * _GROUP
    maxima = scores[:, :whole].view(-1, groups, _GROUP).amax(2)  # (b, groups)
    chosen = maxima.topk(k, dim=1, sorted=False).indices  # (b, k)
    columns = (chosen.unsqueeze(2) * _GROUP + torch.arange(_GROUP)).flatten(1)  # (b, k * _GROUP)
    rest = torch.arange(whole, items).expand(len(scores), -1)
    columns = torch.cat([columns, rest], dim=1)
    best = scores.gather(1, columns).topk(k, dim=1)
    return best.values, columns.gather(1, best.indices)


def picked_scores(states: Tensor, items: Tensor, index: Tensor) -> Tensor:
    """Products of each state with the items that `index` names.

    Some rows at a time, so that what lies in between stays in the cache. It is computed again for the gradient.

    Args:
        states: (b, d).
        items: (I, d).
        index: (b, c) rows of `items`; a row may be named twice.

    Returns:
        (b, c), with gradients to `states` and `items`.
    """
    scores: Tensor = _PickedScores.apply(states, items, index)  # type: ignore[no-untyped-call]
    return scores


class _PickedScores(torch.autograd.Function):
    """`(states @ items.T).gather(1, index)`, or the same through `items[index]`."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, items: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(states, items, index)
        scores = states.new_empty(index.shape)
        for block, product in _blocks(states, items, index):
            if product is None:
                scores[block] = torch.bmm(items[index[block]], states[block].unsqueeze(2)).squeeze(2)
            else:
                torch.mm(states[block], items.T, out=product)
                torch.gather(product, 1, index[block], out=scores[block])
        return scores

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (gradient,) = gradients
        states, items, index = ctx.saved_tensors
        of_states = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        of_items = torch.zeros_like(items) if ctx.needs_input_grad[1] else None
        for block, product in _blocks(states, items, index):
            if product is None:
                if of_states is not None:
                    of_states[block] = torch.bmm(gradient[block].unsqueeze(1), items[index[block]]).squeeze(1)
                if of_items is not None:
                    rows = gradient[block].unsqueeze(2) * states[block].unsqueeze(1)  # (rows, c, d)
                    of_items.index_add_(0, index[block].flatten(), rows.flatten(0, 1))
            else:
                product.zero_().scatter_add_(1, index[block], gradient[block])
                if of_states is not None:
                    torch.mm(product, items, out=of_states[block])
                if of_items is not None:
                    of_items.addmm_(product.T, states[block])
        return of_states, of_items, None


def _blocks(states: Tensor, items: Tensor, index: Tensor) -> Iterator[tuple[slice, Tensor | None]]:
    """Slices of the batch, each with a workspace for its scores of the whole catalogue, or None: gather rows."""
    gather = len(items) > _BREAK_EVEN * index.shape[1]
    width = index.shape[1] * items.shape[1] if gather else len(items)
    room = _PICKED_CPU_BYTES if states.device.type == "cpu" else _ACCELERATOR_BYTES
    size = min(len(states), max(16, room // (states.element_size() * max(1, width))))
    buffer = None if gather else states.new_empty(size, width)
    for start in range(0, len(states), max(1, size)):
        stop = min(start + size, len(states))
        yield slice(start, stop), None if buffer is None else buffer[: stop - start]
