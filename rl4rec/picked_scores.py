"""Scores of a few candidates a prompt, with gradients, in a memory that does not grow with the batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

# Multiplying out the catalogue runs at the speed of arithmetic, gathering rows of embeddings at that of memory; they
# break even where the catalogue is about this many times as large as a candidate set.
_BREAK_EVEN = 50
_CPU_BYTES, _ACCELERATOR_BYTES = 4 * 2**20, 256 * 2**20


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
    room = _CPU_BYTES if states.device.type == "cpu" else _ACCELERATOR_BYTES
    size = min(len(states), max(16, room // (states.element_size() * max(1, width))))
    buffer = None if gather else states.new_empty(size, width)
    for start in range(0, len(states), max(1, size)):
        stop = min(start + size, len(states))
        yield slice(start, stop), None if buffer is None else buffer[: stop - start]
