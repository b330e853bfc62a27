"""Plackett-Luce slates: sampling, exact log-probabilities and greedy decoding on one masked support.

A slate is an ordered list of k distinct candidates. With scores s and support C (the candidates that may be
chosen), the Plackett-Luce distribution (Plackett 1975) picks slot by slot from a softmax over what is left:

    log p(slate) = sum_j  s[slate_j] - logsumexp(s over C without slate_1 .. slate_{j-1})

Shapes: b prompts, c candidates, g slates a prompt, k slots. Slates hold *positions* in the candidate axis.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rl4rec.model.keyed_random import combine, exponential

# Below this share of remaining probability mass, 1 - sum(p) has lost too many digits: recompute slot by slot.
_MASS_FLOOR = 1e-6


class SlateLogProbs(NamedTuple):
    """Per-slot log-probabilities and the entropy of each slot's choice."""

    log_probs: Tensor  # (b, g, k) float32
    entropy: Tensor  # (b, g, k) float32, nats


def sample_slates(
    scores: Tensor,
    support: Tensor,
    *,
    num_slates: int,
    k: int,
    keys: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw slates by Gumbel top-k: perturb the scores, keep the k largest (Kool et al. 2019, section 3).

    Args:
        scores: (b, c), already divided by the temperature.
        support: (b, c) bool, which candidates may be chosen.
        num_slates: slates a prompt, all from the same scores.
        k: slots.
        keys: (b,) int64 below 2^32; then a prompt's slates depend on its scores and its key alone.
        generator: without keys, source of randomness on the device of `scores`; the global one by default.

    Returns:
        (b, num_slates, k) int64 positions.

    Raises:
        ValueError: a row of `support` has fewer than k candidates.
    """
    _check_support(support, k)
    batch, candidates = scores.shape
    if keys is None:
        clocks = torch.empty(batch, num_slates, candidates, dtype=torch.float32, device=scores.device)
        clocks.exponential_(generator=generator)
    else:
        numbers = torch.arange(num_slates, device=keys.device)
        clocks = exponential(combine(keys.unsqueeze(1), numbers), candidates)
    gumbel = clocks.clamp_min_(torch.finfo(torch.float32).tiny).log_().neg_()  # (b, g, c)
    perturbed = (gumbel + scores.detach().float().unsqueeze(1)).masked_fill_(~support.unsqueeze(1), -torch.inf)
    return perturbed.topk(k, dim=-1).indices


def greedy_slate(scores: Tensor, support: Tensor, *, k: int) -> Tensor:
    """The k best candidates of each prompt in order: the most probable slate, the usual top-k ranking.

    Args:
        scores: (b, c).
        support: (b, c) bool.
        k: slots.

    Returns:
        (b, k) int64 positions.

    Raises:
        ValueError: a row of `support` has fewer than k candidates.
    """
    _check_support(support, k)
    return scores.masked_fill(~support, -torch.inf).topk(k, dim=-1).indices


def slate_log_probs(scores: Tensor, support: Tensor, slates: Tensor) -> SlateLogProbs:
    """Exact log-probability and entropy of every slot, in O(b c + b g k) instead of O(b g k c).

    The normaliser of slot j is the total mass less the mass already taken, both relative to one log-sum-exp a
    prompt. Computed in float64; slates that have taken nearly all mass are recomputed slot by slot.

    Args:
        scores: (b, c), already divided by the temperature; gradients flow to it.
        support: (b, c) bool, the same that the slates were sampled with.
        slates: (b, g, k) positions, distinct and inside the support.

    Returns:
        Per-slot log-probabilities and entropies, (b, g, k) each.
    """
    batch, groups, k = slates.shape
    masked = scores.double().masked_fill(~support, -torch.inf)  # (b, c)
    log_p = masked - torch.logsumexp(masked, dim=-1, keepdim=True)  # (b, c)
    safe_log_p = log_p.masked_fill(~support, 0.0)
    p_log_p = torch.where(support, safe_log_p.exp() * safe_log_p, 0.0).sum(-1)  # (b,)

    chosen = log_p.gather(1, slates.reshape(batch, groups * k)).view(batch, groups, k)
    mass = chosen.exp()
    taken = mass.cumsum(-1) - mass  # (b, g, k) mass gone before the slot
    left = (1.0 - taken).clamp_min(_MASS_FLOOR)
    log_probs = chosen - left.log()
    chosen_p_log_p = mass * chosen
    left_p_log_p = p_log_p.view(batch, 1, 1) - (chosen_p_log_p.cumsum(-1) - chosen_p_log_p)
    entropy = left.log() - left_p_log_p / left

    exhausted = ((1.0 - taken).detach() < 2 * _MASS_FLOOR).any(-1)  # (b, g)
    if exhausted.any():
        rows, columns = exhausted.nonzero(as_tuple=True)
        exact = _slot_by_slot(masked[rows], slates[rows, columns])
        log_probs = log_probs.index_put((rows, columns), exact.log_probs)
        entropy = entropy.index_put((rows, columns), exact.entropy)
    return SlateLogProbs(log_probs.float(), entropy.clamp_min(0.0).float())


def _slot_by_slot(masked: Tensor, slates: Tensor) -> SlateLogProbs:
    """The definition, one log-softmax a slot: `masked` (n, c) with -inf outside the support, `slates` (n, k)."""
    log_probs, entropies = [], []
    open_ = masked > -torch.inf
    for slot in range(slates.shape[1]):
        position = slates[:, slot : slot + 1]
        log_q = torch.log_softmax(masked.masked_fill(~open_, -torch.inf), dim=-1)  # (n, c)
        log_probs.append(log_q.gather(1, position).squeeze(1))
        safe = log_q.masked_fill(~open_, 0.0)
        entropies.append(-torch.where(open_, safe.exp() * safe, 0.0).sum(-1))
        open_ = open_.scatter(1, position, False)
    return SlateLogProbs(torch.stack(log_probs, -1), torch.stack(entropies, -1))


def _check_support(support: Tensor, k: int) -> None:
    fewest = int(support.sum(-1).min())
    if fewest < k:
        raise ValueError(f"a slate of k={k} needs at least {k} candidates, but one prompt has only {fewest}")
