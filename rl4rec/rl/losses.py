"""PPO's clipped losses and the KL controllers."""

from __future__ import annotations

import torch
from torch import Tensor


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
