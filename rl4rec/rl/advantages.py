"""Advantages over the slots of a slate, and their whitening."""

from __future__ import annotations

import torch
from torch import Tensor


def live_slots(gains: Tensor) -> Tensor:
    """Slots at which the slate can still earn something: up to and including the one that hits the target.

    With one held-out item nothing after the hit changes the reward, so the episode ends there. Later slots have a
    policy gradient of zero expectation; leaving them out of the loss only takes variance away.

    Args:
        gains: (..., k), 0 at every slot but the target's.

    Returns:
        (..., k) bool.
    """
    hit = (gains > 0).to(torch.int8)
    return (hit.cumsum(-1) - hit) == 0


def gae(rewards: Tensor, values: Tensor, live: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16) over the slots of a slate.

    delta_j = r_j + gamma V_{j+1} - V_j and A_j = delta_j + gamma lam A_{j+1}, with V = 0 after the last live slot.

    Args:
        rewards: (..., k) per-slot rewards.
        values: (..., k) value of each slot's state, before the slot is filled.
        live: (..., k) bool, see `live_slots`.
        gamma: discount a slot.
        lam: trace decay; 1 is Monte Carlo, 0 one-step.

    Returns:
        (advantages, returns), (..., k) each, 0 at slots that are not live.
    """
    advantages = torch.zeros_like(rewards)
    running = torch.zeros_like(rewards[..., 0])
    next_value = torch.zeros_like(running)
    for slot in reversed(range(values.shape[-1])):
        alive = live[..., slot].to(values.dtype)
        delta = rewards[..., slot] + gamma * next_value - values[..., slot]
        running = alive * (delta + gamma * lam * running)
        advantages[..., slot] = running
        next_value = alive * values[..., slot]
    return advantages, (advantages + values) * live


def bandit(rewards: Tensor, values: Tensor, live: Tensor) -> tuple[Tensor, Tensor]:
    """The slate as one action: its whole reward less the prompt's value, the same for every live slot.

    Args:
        rewards: (..., k).
        values: (..., k); the first slot's is the value of the prompt.
        live: (..., k) bool.

    Returns:
        (advantages, returns), (..., k) each, 0 at slots that are not live.
    """
    total = rewards.sum(-1, keepdim=True)
    return (total - values[..., :1]) * live, total * live


def whiten(values: Tensor, mask: Tensor, *, eps: float = 1e-8) -> Tensor:
    """Zero mean and unit variance over the masked entries of the batch; 0 elsewhere.

    Args:
        values: any shape.
        mask: bool, the same shape.
        eps: added to the variance.
    """
    count = mask.sum().clamp_min(1)
    mean = (values * mask).sum() / count
    centred = (values - mean) * mask
    return centred * torch.rsqrt(centred.square().sum() / count + eps)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns) over the masked entries; 0 where the returns do not vary."""
    target = returns[mask].double()
    variance = target.var(unbiased=False)
    if not len(target) or float(variance) == 0.0:
        return 0.0
    return float(1.0 - (target - values[mask].double()).var(unbiased=False) / variance)
