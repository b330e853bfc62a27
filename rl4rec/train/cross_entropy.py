"""The SFT loss: cross-entropy against the next items, which never holds the (positions x items) logits.

`linear_cross_entropy` is exact: loss and gradients are computed together, a chunk of rows at a time, as Liger Kernel's
fused linear cross-entropy does on CUDA (Hsu et al. 2024), so that peak memory is one chunk of logits.
`sampled_cross_entropy` estimates the sum over the catalogue from some sampled items, for catalogues of millions.
Both take several weighted targets a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rl4rec.model.device import to_device

NONE = -1  # no item: padding, and what follows the last item of a sequence


class Targets(NamedTuple):
    """What each of n rows should predict: a distribution over at most m items."""

    items: Tensor  # (n, m) int64
    weights: Tensor  # (n, m) float32, each row sums to 1; 0 where there are fewer


class SampledItems(NamedTuple):
    """Items drawn with replacement, shared by all rows of a batch."""

    items: Tensor  # (s,) int64
    expected: Tensor  # (s,) float32, how often each was expected among the s draws: s times its probability


@dataclass(frozen=True)
class NextItemsLoss:
    """How a policy learns from what came next: the settings of the SFT loss."""

    window: int = 1  # a position predicts this many of the items that follow it
    decay: float = 1.0  # weight of each of them against the one before
    label_smoothing: float = 0.0
    matmul_dtype: torch.dtype = torch.float32

    def following(self, items: Tensor) -> Tensor:
        """The next `window` items of each position, (b, l, window), from the next one, (b, l); `NONE` past the end."""
        padded = torch.nn.functional.pad(items, (0, self.window - 1), value=NONE)
        return padded.unfold(1, self.window, 1)

    def targets(self, following: Tensor) -> Targets:
        """Weights of the items that follow n positions, (n, window); the first of each row is there.

        A mean with geometric weights over the items within a window, as in the window losses of PinnerFormer
        (Pancha et al. 2022): in sparse data the one item that happened to come next is a noisy target.
        """
        there = following != NONE
        scale = self.decay ** torch.arange(self.window, device=following.device, dtype=torch.float32)
        weights = there * scale
        items = torch.where(there, following, following[:, :1])
        return Targets(items, weights / weights.sum(1, keepdim=True))

    def __call__(
        self,
        hidden: Tensor,
        weight: Tensor,
        following: Tensor,
        sampled: SampledItems | None = None,
        *,
        unit_rows: bool = False,
    ) -> Tensor:
        """Summed loss of n positions, () float32.

        Args:
            hidden: (n, d).
            weight: (items, d) output embeddings.
            following: (n, window), see `following`.
            sampled: estimate the softmax's sum from these items.
            unit_rows: bring the rows of `weight` to unit length first.
        """
        targets = self.targets(following)
        if sampled is not None:
            return sampled_cross_entropy(
                hidden,
                weight,
                targets,
                sampled,
                label_smoothing=self.label_smoothing,
                unit_rows=unit_rows,
                matmul_dtype=self.matmul_dtype,
            )
        if unit_rows:
            weight = torch.nn.functional.normalize(weight, dim=-1)
        return linear_cross_entropy(
            hidden, weight, targets, label_smoothing=self.label_smoothing, matmul_dtype=self.matmul_dtype
        )


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Targets,
    *,
    label_smoothing: float = 0.0,
    matmul_dtype: torch.dtype = torch.float32,
    rows: tuple[int, int] | None = None,
) -> Tensor:
    """Sum over rows of the cross-entropy of `softmax(hidden @ weight.T)` against the targets.

    Args:
        hidden: (n, d).
        weight: (items, d) output embeddings.
        targets: of the n rows.
        label_smoothing: mass spread evenly over all items, as in `torch.nn.functional.cross_entropy`.
        matmul_dtype: type of the matrix products' inputs and results (bfloat16 where the machine is fast at it); the
            softmax and the sums over chunks are float32.
        rows: how many rows of gradients are held at a time, and of float32 logits among them (a divisor of the first);
            default: by device.

    Returns:
        Scalar float32, the summed loss in nats.

    Raises:
        ValueError: the second of `rows` does not divide the first.
    """
    chunk_rows, tile_rows = rows or _rows_held(weight)
    if chunk_rows % tile_rows:
        raise ValueError(f"a chunk of {chunk_rows} rows is not made of whole tiles of {tile_rows}")
    loss: Tensor = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden,
        weight,
        targets.items,
        targets.weights,
        label_smoothing,
        matmul_dtype,
        chunk_rows,
        tile_rows,
    )
    return loss


_UNIT = 32  # products have a multiple of this many rows
_TILE_BYTES = 3 * 2**19  # float32 logits that stay in a CPU core's cache


def _padded(rows: int, tile_rows: int) -> int:
    """Rows rounded up to whole units: oneDNN keeps megabytes for every new shape of a bfloat16 product."""
    unit = min(_UNIT, tile_rows)
    return -(-rows // unit) * unit


def _rows_held(weight: Tensor) -> tuple[int, int]:
    """Rows of a chunk, as many as keep the products busy, and of a tile, as few as stay in a CPU's cache."""
    items = len(weight)
    if weight.device.type != "cpu":
        rows = max(2, 2**26 // items // _UNIT) * _UNIT
        return rows, rows
    tile = min(max(1, _TILE_BYTES // (4 * items) // _UNIT), 32) * _UNIT
    return max(2, 2**23 // items // tile) * tile, tile


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        target_items: Tensor,
        target_weights: Tensor,
        label_smoothing: float,
        matmul_dtype: torch.dtype,
        chunk_rows: int,
        tile_rows: int,
    ) -> Tensor:
        count, items = len(hidden), len(weight)
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        low_weight = weight.to(matmul_dtype)
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden, dtype=torch.float32) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        height = min(chunk_rows, _padded(count, tile_rows))
        held = torch.empty(height, items, dtype=matmul_dtype, device=hidden.device)
        for start in range(0, count, chunk_rows):
            stop = min(start + chunk_rows, count)
            size = stop - start
            low_hidden = hidden.new_zeros(_padded(size, tile_rows), hidden.shape[1], dtype=matmul_dtype)
            low_hidden[:size] = hidden[start:stop]
            grads = held[: len(low_hidden)]  # (chunk, items) of the logits
            for first in range(0, size, tile_rows):
                logits = (low_hidden[first : first + tile_rows] @ low_weight.T)[: size - first]
                log_p = torch.log_softmax(logits, -1, dtype=torch.float32)  # (tile, items)
                rows = slice(start + first, start + first + len(log_p))
                share = (1.0 - label_smoothing) * target_weights[rows]
                loss -= (share * log_p.gather(1, target_items[rows])).sum()
                if label_smoothing:
                    loss -= label_smoothing * log_p.mean(-1).sum()
                if needs_hidden or needs_weight:
                    grad = log_p.exp_().scatter_add_(1, target_items[rows], -share)
                    if label_smoothing:
                        grad.sub_(label_smoothing / items)
                    grads[first : first + len(grad)] = grad
            grads[size:] = 0.0
            if grad_hidden is not None:
                grad_hidden[start:stop] = (grads @ low_weight)[:size]
            if grad_weight is not None:
                grad_weight += grads.T @ low_hidden
        ctx.grad_hidden, ctx.grad_weight = grad_hidden, grad_weight
        ctx.dtypes = hidden.dtype, weight.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        hidden_dtype, weight_dtype = ctx.dtypes
        grad_hidden = None if ctx.grad_hidden is None else (ctx.grad_hidden * grad).to(hidden_dtype)
        grad_weight = None if ctx.grad_weight is None else (ctx.grad_weight * grad).to(weight_dtype)
        return grad_hidden, grad_weight, *([None] * 6)


def sampled_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Targets,
    sampled: SampledItems,
    *,
    label_smoothing: float = 0.0,
    unit_rows: bool = False,
    matmul_dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Sum over rows of the cross-entropy against the targets, with the softmax's sum over the catalogue estimated.

    The sum is that over the row's own targets, exactly, and over the other items by importance sampling: each draw
    counts exp(logit) / expected count (the "logQ correction", Bengio & Senecal 2008), draws that are among the row's
    targets count nothing. Its expectation is the full sum.

    Args:
        hidden: (n, d).
        weight: (items, d) output embeddings.
        targets: of the n rows.
        sampled: draws from all items.
        label_smoothing: mass spread evenly over all items; their mean logit is estimated from the draws too.
        unit_rows: bring the picked rows of `weight` to unit length first.
        matmul_dtype: type of the matrix products' inputs.

    Returns:
        Scalar float32, the summed loss in nats.
    """
    rows, width = targets.items.shape
    picked = torch.nn.functional.embedding(torch.cat([targets.items.flatten(), sampled.items]), weight)
    if unit_rows:
        picked = torch.nn.functional.normalize(picked, dim=-1)
    own = picked[: rows * width].view(rows, width, -1)  # (n, m, d)
    others = picked[rows * width :]  # (s, d)
    target_logits = (hidden.unsqueeze(1) * own).sum(-1).float()  # (n, m)
    logits = (hidden.to(matmul_dtype) @ others.to(matmul_dtype).T).float()  # (n, s)
    drawn_target = (sampled.items == targets.items.unsqueeze(2)).any(1)  # (n, s)
    # A target that a row has twice, and the filling of short rows, belong to the sum once.
    earlier = (targets.items.unsqueeze(2) == targets.items.unsqueeze(1)).tril(-1).any(2)  # (n, m)
    summands = [
        target_logits.masked_fill(earlier, -torch.inf),
        (logits - sampled.expected.log()).masked_fill(drawn_target, -torch.inf),
    ]
    wanted = (targets.weights * target_logits).sum()
    loss: Tensor = torch.logsumexp(torch.cat(summands, 1), 1).sum() - (1.0 - label_smoothing) * wanted
    if label_smoothing:
        loss = loss - label_smoothing * (logits @ sampled.expected.reciprocal()).sum() / len(weight)
    return loss


class ItemSampler:
    """Draws items with replacement, with probability proportional to (count + 1) ** exponent.

    Draws use torch's global generator on the CPU, which checkpoints save: a resumed run draws the same.

    Args:
        counts: (I,) how often each item occurs in training.
        draws: items a draw, s.
        exponent: 0 draws uniformly, 1 by popularity.
    """

    def __init__(self, counts: Tensor, *, draws: int, exponent: float) -> None:
        weights = (counts.double() + 1.0) ** exponent  # (I,)
        self._edges = weights.cumsum(0)
        self._expected = (draws * weights / self._edges[-1]).float()
        self._draws = draws

    def draw(self, device: torch.device | str = "cpu") -> SampledItems:
        """A fresh sample."""
        places = torch.rand(self._draws, dtype=torch.float64) * self._edges[-1]
        items = torch.searchsorted(self._edges, places, right=True).clamp_max(len(self._edges) - 1)
        return SampledItems(to_device(items, device), to_device(self._expected[items], device))
