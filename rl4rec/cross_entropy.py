"""Next-item cross-entropy that never holds the (tokens x items) logits.

The loss and its gradients are computed together, a chunk of rows at a time, as Liger Kernel's fused linear
cross-entropy does on CUDA (Hsu et al. 2024): peak memory is one chunk of logits instead of all of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    label_smoothing: float = 0.0,
    matmul_dtype: torch.dtype = torch.float32,
    chunk_rows: int = 128,
) -> Tensor:
    """Sum over rows of the cross-entropy of `softmax(hidden @ weight.T)` against `targets`.

    Args:
        hidden: (n, d).
        weight: (items, d) output embeddings.
        targets: (n,) int64, item indices.
        label_smoothing: mass spread evenly over all items, as in `torch.nn.functional.cross_entropy`.
        matmul_dtype: type of the matrix products' inputs (bfloat16 where the machine is fast at it); the softmax
            and all sums are float32.
        chunk_rows: rows of logits held at a time.

    Returns:
        Scalar float32, the summed loss in nats.
    """
    loss: Tensor = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden, weight, targets, label_smoothing, matmul_dtype, chunk_rows
    )
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        label_smoothing: float,
        matmul_dtype: torch.dtype,
        chunk_rows: int,
    ) -> Tensor:
        items = weight.shape[0]
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        low_weight = weight.to(matmul_dtype)
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden, dtype=torch.float32) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        for start in range(0, hidden.shape[0], chunk_rows):
            rows = slice(start, start + chunk_rows)
            low_hidden = hidden[rows].to(matmul_dtype)
            target = targets[rows].unsqueeze(1)
            logits = (low_hidden @ low_weight.T).float()  # (r, items)
            log_z = torch.logsumexp(logits, dim=-1, keepdim=True)  # (r, 1)
            target_logit = logits.gather(1, target)
            loss += (log_z - (1.0 - label_smoothing) * target_logit).sum()
            if label_smoothing:
                loss -= label_smoothing * logits.mean(-1).sum()
            if not (needs_hidden or needs_weight):
                continue
            grad = logits.sub_(log_z).exp_()  # (r, items) softmax
            grad.scatter_add_(1, target, torch.full_like(target_logit, label_smoothing - 1.0))
            if label_smoothing:
                grad.sub_(label_smoothing / items)
            low_grad = grad.to(matmul_dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = (low_grad @ low_weight).float()
            if grad_weight is not None:
                grad_weight += (low_grad.T @ low_hidden).float()
        ctx.grad_hidden, ctx.grad_weight = grad_hidden, grad_weight
        ctx.dtypes = hidden.dtype, weight.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        hidden_dtype, weight_dtype = ctx.dtypes
        grad_hidden = None if ctx.grad_hidden is None else (ctx.grad_hidden * grad).to(hidden_dtype)
        grad_weight = None if ctx.grad_weight is None else (ctx.grad_weight * grad).to(weight_dtype)
        return grad_hidden, grad_weight, None, None, None, None


def fast_matmul_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Type of the matrix products for `sft.precision`: `auto` is bfloat16 where the hardware multiplies it natively.

    Args:
        precision: `auto`, `bf16` or `fp32`.
        device: where the products run.
    """
    if precision == "fp32":
        return torch.float32
    if precision == "bf16":
        return torch.bfloat16
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if torch.cpu._is_amx_tile_supported() else torch.float32
