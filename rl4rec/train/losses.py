"""The mathematics of PPO and GRPO on tensors: advantages over the slots of a slate, clipped losses, KL."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from rl4rec.model.batch import Support


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


def group_advantages(
    rewards: Tensor, scale: Literal["group", "batch", "none"], *, spread: Tensor | None = None
) -> Tensor:
    """Rewards less the mean of their group (Shao et al. 2024, section 4.1.2), one advantage per slate.

    Args:
        rewards: (b, g), the slates of a prompt are a group.
        scale: divide by the standard deviation of the group, of the batch, or by nothing (Liu et al. 2025 show that
            the group's favours prompts of little spread).
        spread: rewards whose deviation is the batch's, those of all processes; default: `rewards`.

    Returns:
        (b, g).
    """
    centred = rewards - rewards.mean(1, keepdim=True)
    match scale:
        case "group":
            return centred / (rewards.std(1, keepdim=True) + 1e-4)
        case "batch":
            return centred / ((rewards if spread is None else spread).std() + 1e-4)
        case "none":
            return centred


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


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 - Var(returns - values) / Var(returns) over the masked entries, (); 0 where the returns do not vary."""

    def variance(of: Tensor) -> Tensor:
        of = of.double()
        return masked_mean((of - masked_mean(of, mask)).square(), mask)

    total = variance(returns)
    return torch.where(total > 0, 1.0 - variance(returns - values) / total, 0.0)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the masked entries (0 if there are none)."""
    return (values * mask).sum() / mask.sum().clamp_min(1)


def clipped_surrogate(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, *, low: float, high: float
) -> tuple[Tensor, Tensor]:
    """The clipped surrogate of PPO and GRPO (Schulman et al. 2017, eq. 7), slot by slot, to be minimised.

    -min(r A, clip(r, 1 - low, 1 + high) A) with r = exp(log p - log p_old).

    Args:
        log_probs: (..., k) under the current policy, with gradients.
        old_log_probs: (..., k) under the policy that sampled.
        advantages: (..., k) or broadcastable to it.
        low: how far below 1 a ratio is followed.
        high: how far above 1.

    Returns:
        (loss, whether the ratio lies outside of the range), (..., k) each.
    """
    ratio = torch.exp(log_probs - old_log_probs)
    loss = -torch.minimum(ratio * advantages, ratio.clamp(1.0 - low, 1.0 + high) * advantages)
    followed = ratio.detach()
    return loss, (followed < 1.0 - low) | (followed > 1.0 + high)


def cispo_loss(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, *, max_ratio: float
) -> tuple[Tensor, Tensor]:
    """CISPO: the likelihood, weighted by a bounded ratio without gradient (MiniMax-M1 2025, eq. 4), slot by slot.

    -min(r, max_ratio) A log p; unlike the clipped surrogate no slot loses its gradient.

    Args:
        log_probs: (..., k) under the current policy, with gradients.
        old_log_probs: (..., k) under the policy that sampled.
        advantages: (..., k) or broadcastable to it.
        max_ratio: bound of the weight, above 1.

    Returns:
        (loss, whether the ratio is beyond the bound), (..., k) each.
    """
    ratio = torch.exp(log_probs - old_log_probs).detach()
    return -ratio.clamp(max=max_ratio) * advantages * log_probs, ratio > max_ratio


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


def kl_penalty(log_probs: Tensor, old_log_probs: Tensor, reference_log_probs: Tensor) -> Tensor:
    """`kl_estimate` weighted by the ratio r = exp(log p - log p_old), slot by slot: a penalty with the right gradient.

    The samples come from the old policy. Without the ratio its gradient, also where r = 1, is not that of the KL
    divergence (DeepSeek-V3.2 2025, section 3.1; TRL's `use_bias_correction_kl`).

    Args:
        log_probs: (..., k) under the current policy, with gradients.
        old_log_probs: (..., k) under the policy that sampled.
        reference_log_probs: (..., k) under the reference.
    """
    return torch.exp(log_probs - old_log_probs) * kl_estimate(log_probs, reference_log_probs)


def target_cross_entropy(scores: Tensor, support: Support, targets: Tensor) -> Tensor:
    """Mean cross-entropy of the targets on the support, () in nats: the supervised term of `rl.sft_coef`.

    Args:
        scores: (b, c) of the support's candidates, with gradients.
        support: of b prompts.
        targets: (b,) item indices inside the support.
    """
    open_scores = scores.masked_fill(~support.mask, -torch.inf).float()
    return torch.nn.functional.cross_entropy(open_scores, support.positions(targets.view(-1, 1, 1)).flatten())


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
