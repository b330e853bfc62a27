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

# The least number that has a logarithm here, the logarithm of less, and one whose exponential is 0.
_TINY, _NOTHING, _ZERO = 1e-300, -1e300, -800.0


class SlateLogProbs(NamedTuple):
    """Per-slot log-probabilities and the entropy of each slot's choice."""

    log_probs: Tensor  # (b, g, k) float32, or float64 for scores in float64
    entropy: Tensor  # (b, g, k) of the same type, nats


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
    """Exact log-probability and entropy of every slot, in O(b c + b g k^2) instead of O(b g k c).

    What is left before slot j is the slate's own items from slot j on and everything outside of the slate. The former
    is a cumulative sum from the end. The latter would lose its digits as "all of the mass less the slate's" where a
    slate takes nearly all. So it is the sum of two parts: those of the prompt's k most probable items that the slate
    does not have, and all others less the slate's own among them. A slate that has an item from outside of those k
    leaves out one of them that is at least as probable: where the difference loses digits, it is the smaller part.
    All sums are in logarithms and of positive terms: nothing underflows, and float32 is enough for the candidates. No
    step depends on what the numbers are, which a GPU would have to tell its host.

    Args:
        scores: (b, c), already divided by the temperature; gradients flow to it.
        support: (b, c) bool, the same that the slates were sampled with.
        slates: (b, g, k) positions, distinct and inside the support.

    Returns:
        Per-slot log-probabilities and entropies, (b, g, k) each.
    """
    batch, groups, k = slates.shape
    masked = scores.to(torch.promote_types(scores.dtype, torch.float32)).masked_fill(~support, -torch.inf)  # (b, c)
    top_scores, top = masked.topk(min(k, masked.shape[1]), dim=-1)  # (b, t)
    outside = masked.scatter(1, top, -torch.inf)  # (b, c)
    highest = outside.detach().amax(1, keepdim=True).clamp_min(torch.finfo(masked.dtype).min / 4)  # (b, 1)
    apart = (outside - highest).clamp_min(_ZERO)
    weights = apart.exp()
    mass, spread = weights.sum(1, keepdim=True).double(), -(weights * apart).sum(1, keepdim=True).double()  # (b, 1)

    # from here on in float64: no more than (b, g, k)
    top_scores, highest = top_scores.double(), highest.double()
    total = torch.cat([top_scores, highest + mass.clamp_min(_TINY).log()], 1).logsumexp(1, keepdim=True)
    chosen = masked.gather(1, slates.reshape(batch, groups * k)).view(batch, groups, k).double()
    shared = slates.unsqueeze(-1) == top.view(batch, 1, 1, -1)  # (b, g, k, t)
    own = (chosen.masked_fill(shared.any(3), -torch.inf) - highest.unsqueeze(2)).clamp_min(_ZERO)
    own_weights = own.exp()
    mass = mass - own_weights.sum(2)  # (b, g)
    spread = spread + (own_weights * own).sum(2)

    chosen = chosen - total.unsqueeze(2)
    top_left = (top_scores - total).unsqueeze(1).masked_fill(shared.any(2), _NOTHING)  # (b, g, t)
    highest = highest - total
    left = _left(top_left, highest + mass.clamp_min(_TINY).log(), chosen)

    def log_surprise(log_p: Tensor) -> Tensor:  # log(-log p), finite where p is 0 or 1
        return (-log_p.clamp(_NOTHING, -_TINY)).log()

    # -p log p sums up like p, since all of its terms are positive too
    terms = _left(
        top_left + log_surprise(top_left),
        highest + (spread - highest * mass).clamp_min(_TINY).log(),
        chosen + log_surprise(chosen),
    )
    entropy = left + (terms - left).exp()
    return SlateLogProbs((chosen - left).to(masked.dtype), entropy.clamp_min(0.0).to(masked.dtype))


def _left(top_left: Tensor, rest: Tensor, chosen: Tensor) -> Tensor:
    """Logarithms of what is left before each slot, (b, g, k), from those of its parts (b, g, t), (b, g), (b, g, k)."""
    outside = torch.cat([top_left, rest.unsqueeze(-1)], -1).logsumexp(-1)
    sums = []
    for slot in reversed(chosen.unbind(-1)):
        outside = torch.logaddexp(outside, slot)
        sums.append(outside)
    return torch.stack(sums[::-1], -1)


def _check_support(support: Tensor, k: int) -> None:
    fewest = int(support.sum(-1).min())
    if fewest < k:
        raise ValueError(f"a slate of k={k} needs at least {k} candidates, but one prompt has only {fewest}")
