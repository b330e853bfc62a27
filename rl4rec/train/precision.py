"""In what precision a policy is trained: its body in bfloat16 or TF32 where that pays, losses in float32."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch

_WIDE = 512  # of a body's states: below, a GPU waits for the launches of its kernels, whatever their precision


@dataclass(frozen=True)
class Precision:
    """How the matrix products of a training are computed; validation and evaluation are always in float32.

    Attributes:
        body: type that the body's products are autocast to; None: that of its weights.
        tf32: float32 products of the body, and of all gradients, with TF32's mantissa of 10 bits.
        softmax: type of the products of SFT's softmax over the catalogue, whose sums are float32.
        device: where they run.
    """

    body: torch.dtype | None
    tf32: bool
    softmax: torch.dtype
    device: torch.device

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Around the body's forward passes, and nothing else."""
        cast = contextlib.nullcontext() if self.body is None else torch.autocast(self.device.type, self.body)
        with self._products(), cast:
            yield

    @contextlib.contextmanager
    def _products(self) -> Iterator[None]:
        if not self.tf32:
            yield
            return
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)

    gradients = _products  # around backward passes


FLOAT32 = Precision(None, False, torch.float32, torch.device("cpu"))


def choose_precision(name: str, device: torch.device, *, width: int) -> Precision:
    """What `sft.precision` and `rl.precision` mean.

    Args:
        name: `auto`: the body in bfloat16 if it is wide and the device a GPU that multiplies it natively, else in
            float32; the softmax of SFT in bfloat16 wherever it is native. `bf16`, `tf32`, `fp32`: for all of it (the
            softmax has float32 with `tf32`).
        device: where the products run.
        width: of the body's states.
    """
    fp32, bf16 = torch.float32, torch.bfloat16
    match name:
        case "bf16":
            return Precision(bf16, False, bf16, device)
        case "tf32":
            return Precision(None, device.type == "cuda", fp32, device)
        case "fp32":
            return Precision(None, False, fp32, device)
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return Precision(bf16 if native and width >= _WIDE else None, False, bf16 if native else fp32, device)
    return Precision(None, False, bf16 if torch.cpu._is_amx_tile_supported() else fp32, device)
