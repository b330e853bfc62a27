"""Scores of a whole catalogue: kept as the two factors of a matrix product until they are needed, and their top k."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

_GROUP = 64  # items whose maximum stands for them in `top_k`
_CPU_BYTES, _ACCELERATOR_BYTES = 3 * 2**20, 256 * 2**20


class Factors(NamedTuple):
    """Scores of b users over I items as `states @ items.T`."""

    states: Tensor  # (b, d)
    items: Tensor  # (I, d)

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
            yield start, stop, torch.mm(states[start:stop], items.T, out=buffer[: stop - start])


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
