"""Weights of a policy's blocks spread over the processes (FSDP, Zhao et al. 2023): for models too large for one card.

Each process keeps its part of every block's weights, and has a block's whole weights only while it reads with it. The
rest (embeddings, output layer) is whole everywhere. It is torch's `fully_shard`: in place, without a wrapper. All
processes must read equally often, since they hand each other their parts at every reading.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

from rl4rec.errors import UserError, shown

VARIABLE = "RL4REC_SHARD"


def wants_sharding() -> bool:
    """Whether `RL4REC_SHARD` asks for it.

    Raises:
        UserError: it is neither `true` nor `false`.
    """
    given = os.environ.get(VARIABLE) or "false"
    if given not in ("true", "false"):
        raise UserError(f"{VARIABLE}: expected true or false, got {shown(given)}")
    return given == "true"


def shard(policy: nn.Module, device: torch.device, processes: int) -> None:
    """Spread the weights of a policy's blocks over the processes, each block on its way to the device.

    Args:
        policy: whole, with what trains already chosen.
        device: of this process.
        processes: how many there are.

    Raises:
        UserError: transformers does not say what the blocks of this architecture are.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    names = {name for module in policy.modules() for name in getattr(module, "_no_split_modules", None) or ()}
    blocks = [module for module in policy.modules() if type(module).__name__ in names]
    if not blocks:
        raise UserError(f"{VARIABLE}: the blocks of {type(policy).__name__} are not known. Unset it")
    mesh = init_device_mesh(device.type, (processes,))
    for block in blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=True)


def is_sharded(module: nn.Module) -> bool:
    """Whether some of a module's weights are spread over the processes."""
    return any(map(is_sharded_tensor, module.parameters()))


def is_sharded_tensor(tensor: Tensor) -> bool:
    """Whether a tensor is spread over the processes (a DTensor, whose module is not imported for the question)."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Any) -> Tensor:
    """A tensor with all of its parts, if it is spread: all processes must ask for it."""
    full: Tensor = tensor.full_tensor() if is_sharded_tensor(tensor) else tensor
    return full


def spread(value: Tensor, like: Any) -> Tensor:
    """A whole tensor spread as another one is."""
    if not is_sharded_tensor(like):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
