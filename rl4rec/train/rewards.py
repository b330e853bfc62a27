"""The reward of slates in training: one of the metrics, or a function of the user's own (`docs/reward.md`)."""

from __future__ import annotations

import inspect
import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from rl4rec.data.dataset import PreparedData
from rl4rec.errors import UserError, shown
from rl4rec.metrics import slate_gains
from rl4rec.params import RLParams

GainsFunction = Callable[[Tensor, Tensor, PreparedData], Tensor]
"""A reward of one's own: slates (n, k), targets (n,) and the data -> gain of each slot, (n, k) floats."""


@dataclass(frozen=True)
class Reward:
    """Gain of each slot of slates; the sum over the slots is the slate's reward.

    `ends_at_hit`: nothing after the slot of the target earns anything, so PPO's episode may end there.
    """

    gains: Callable[[Tensor, Tensor], Tensor]
    ends_at_hit: bool

    def __call__(self, slates: Tensor, targets: Tensor) -> Tensor:
        """Gains of slates.

        Args:
            slates: (..., k) item indices, best first, distinct within a slate.
            targets: (...) or broadcastable to it, the held-out item of each slate.

        Returns:
            (..., k) float32 on the device of `slates`.

        Raises:
            UserError: a reward of the user's own fails, or returns something else than finite floats (n, k).
        """
        return self.gains(slates, targets)


def make_reward(rl: RLParams, data: PreparedData, own: GainsFunction | None = None) -> Reward:
    """The reward that `rl.reward_type` names.

    Args:
        rl: the `rl` section.
        data: handed to `own`.
        own: the function behind `reward_type: custom`.

    Raises:
        UserError: `custom` without a function, or a function that would not be used.
    """
    if rl.reward_type != "custom":
        if own is not None:
            raise UserError(
                f"rl.reward_type: is {rl.reward_type}, so {_name(own)} would not be used. Set rl.reward_type: custom"
            )
        weights = (rl.mixed.ndcg, rl.mixed.hit, rl.mixed.mrr)
        return Reward(partial(slate_gains, reward_type=rl.reward_type, weights=weights), ends_at_hit=True)
    if own is None:
        raise UserError("rl.reward_type: custom needs a function: `gains` in pipelines/reward.py, or the argument")
    return Reward(partial(_own_gains, own, data), ends_at_hit=False)


def _own_gains(own: GainsFunction, data: PreparedData, slates: Tensor, targets: Tensor) -> Tensor:
    """Call a function of the user's on flat copies, and check what it returns."""
    k = slates.shape[-1]
    flat = slates.reshape(-1, k).clone()  # (n, k)
    try:
        found = own(flat, targets.expand(slates.shape[:-1]).reshape(-1).clone(), data)
    except UserError:
        raise
    except Exception as error:  # whatever a user's code raises
        inside = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == _file(own)]
        where = f"{_name(own)}, line {inside[-1]}" if inside else _name(own)
        raise UserError(
            f"{where}: {type(error).__name__}: {error}. It got slates of shape {tuple(flat.shape)} and targets of "
            f"shape {(len(flat),)}"
        ) from error
    expected = f"expected a float tensor of shape (n, k) = {tuple(flat.shape)}, a gain for each slot of each slate"
    if not isinstance(found, Tensor):
        raise UserError(f"{_name(own)}: {expected}; got {type(found).__name__} {shown(found)}")
    if found.shape != flat.shape:
        raise UserError(f"{_name(own)}: {expected}; got shape {tuple(found.shape)}")
    if not found.is_floating_point():
        raise UserError(f"{_name(own)}: {expected}; got {found.dtype}. Convert it, such as with `.float()`")
    gains = found.detach().to(slates.device, torch.float32)
    sound = torch.isfinite(gains)
    if not sound.all():
        row, slot = (~sound).nonzero()[0].tolist()
        raise UserError(
            f"{_name(own)}: the gain of slot {slot} is {gains[row, slot].item()} for the slate "
            f"{shown(slates.reshape(-1, k)[row].tolist())}. Gains must be finite"
        )
    return gains.view(slates.shape)


def _file(own: GainsFunction) -> str:
    """Where a function is from; empty for what has no file, such as an object that can be called."""
    try:
        return inspect.getfile(own)
    except TypeError:
        return ""


def _name(own: GainsFunction) -> str:
    """A function for a message, with its file where it has one (a cell of a notebook has none)."""
    name = getattr(own, "__qualname__", type(own).__name__)
    return f"{os.path.relpath(_file(own))}: {name}" if Path(_file(own)).is_file() else name
