"""Random numbers as a function of integer keys: the same in every process, in every batch and on every device.

A counter-based generator (Salmon et al. 2011) without state: candidates and slates of a prompt come from the seed that
the prompt carries, whichever process works on it and after however many interruptions.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK32 = 0xFFFFFFFF


def mix(x: Tensor) -> Tensor:
    """A 32-bit hash (xorshift-multiply finaliser) of int64 tensors; products stay below 2^63."""
    x = x & _MASK32
    x = ((x ^ (x >> 16)) * 0x45D9F3B) & _MASK32
    x = ((x ^ (x >> 16)) * 0x45D9F3B) & _MASK32
    return x ^ (x >> 16)


def combine(*parts: Tensor) -> Tensor:
    """One key below 2^32 from several int64 tensors that broadcast; their order matters."""
    key = torch.zeros_like(parts[0])
    for part in parts:
        key = mix(3 * key + mix(part + 0x9E3779B9))
    return key


def exponential(keys: Tensor, count: int) -> Tensor:
    """Independent standard exponentials, `count` for each key.

    Entry i is a function of (key, i) alone. All passes over the output are in place and of 32 bits, which on CPU makes
    this faster than torch's generator.

    Args:
        keys: (...) int64, 0 <= key < 2^32, as `combine` makes them.
        count: numbers for each key, n.

    Returns:
        (..., n) float32, above 0 and below 17.
    """
    places = mix(torch.arange(count, device=keys.device) + 0x165667B1)
    bits = keys.unsqueeze(-1).to(torch.int32) ^ places.to(torch.int32)  # (..., n)
    _mix_in_place(bits)
    # 31 bits; small numbers are what a race is about, and float32 resolves them best
    uniform = bits.bitwise_and_(0x7FFFFFFF).float().add_(0.5).mul_((1 - 2**-24) / 2**31)  # in (0, 1)
    return uniform.neg_().log1p_().neg_()


def _mix_in_place(x: Tensor) -> None:
    """The hash "lowbias32" (Wellons 2018) on int32 tensors, whose products wrap around."""
    shifted = torch.empty_like(x)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B - 2**32), (16, 1)):
        torch.bitwise_right_shift(x, shift, out=shifted)
        shifted.bitwise_and_((1 << (32 - shift)) - 1)  # the shift repeats the sign
        x.bitwise_xor_(shifted).mul_(factor)
