"""The mathematics of PPO and GRPO on tensors: advantages over the slots of a slate, clipped losses, KL."""

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


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the masked entries (0 if there are none)."""
    return (values * mask).sum() / mask.sum().clamp_min(1)


def clipped_policy_loss(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor, *, clip_range: float
) -> tuple[Tensor, Tensor]:
    """PPO's clipped surrogate (Schulman et al. 2017, eq. 7), to be minimised.

    Args:
        log_probs: (..., k) under the current policy, with gradients.
        old_log_probs: (..., k) under the policy that sampled.
        advantages: (..., k).
        mask: (..., k) bool, slots that count.
        clip_range: epsilon.

    Returns:
        (loss, share of masked slots whose ratio lies outside 1 +- epsilon), scalars.
    """
    ratio = torch.exp(log_probs - old_log_probs)
    clipped = ratio.clamp(1.0 - clip_range, 1.0 + clip_range)
    loss = -torch.minimum(ratio * advantages, clipped * advantages)
    outside = ((ratio.detach() - 1.0).abs() > clip_range).to(loss.dtype)
    return masked_mean(loss, mask), masked_mean(outside, mask)


def clipped_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, *, clip_range: float | None
) -> Tensor:
    """Half the squared error of the value head, clipped around the old values (as in the PPO2 baseline).

    Args:
        values: (..., k) with gradients.
        old_values: (..., k) at the time of sampling.
        returns: (..., k).
        mask: (..., k) bool.
        clip_range: largest change of a value that is rewarded; None: no clipping.
    """
    loss = (values - returns).square()
    if clip_range is not None:
        clipped = old_values + (values - old_values).clamp(-clip_range, clip_range)
        loss = torch.maximum(loss, (clipped - returns).square())
    return 0.5 * masked_mean(loss, mask)


def kl_estimate(log_probs: Tensor, reference_log_probs: Tensor) -> Tensor:
    """Per-slot estimate of KL(policy || reference) from the policy's own samples, never negative.

    exp(d) - d - 1 with d = log p_ref - log p (Schulman 2020, "k3"); the one that TRL's GRPO uses too.
    """
    difference = reference_log_probs - log_probs
    return torch.exp(difference) - difference - 1.0


class AdaptiveKL:
    """KL coefficient that drifts towards a target KL (Ziegler et al. 2019, section 2.2).

    The coefficient is multiplied by 1 + 0.1 clip(kl / target - 1, -0.2, 0.2) after each step.
    """

    def __init__(self, coefficient: float, *, target: float) -> None:
        self.value = coefficient
        self._target = target

    def update(self, kl: float) -> None:
        """Move the coefficient after a step whose mean KL was `kl` (nats a slot)."""
        error = min(max(kl / self._target - 1.0, -0.2), 0.2)
        self.value *= 1.0 + 0.1 * error
