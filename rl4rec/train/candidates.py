"""Candidate sets: the target and sampled negatives, drawn from a seed that a prompt carries.

Sampler, trainer and reference all need the very same candidates of a prompt. Instead of carrying hundreds of ids, a
prompt carries one integer, and every side draws the same negatives from it: a counter-based generator (a hash), the
same on every device and independent of the batch.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from rl4rec.model.batch import Histories
from rl4rec.model.keyed_random import mix
from rl4rec.params import CandidateParams


class CandidateRule:
    """How the candidates of a prompt are drawn.

    Args:
        params: the `rl.candidates` section.
        item_counts: (I,) training interactions, for `source: popularity`.
        exclude_seen: negatives are never items of the history.
    """

    def __init__(self, params: CandidateParams, item_counts: Tensor, *, exclude_seen: bool) -> None:
        self._params = params
        self._weights = item_counts.double().clamp_min(1.0) ** params.popularity_exponent
        self._exclude_seen = exclude_seen

    def candidates(self, histories: Histories, targets: Tensor, seeds: Tensor) -> Tensor | None:
        """(b, n + 1) item indices in rising order; None for the whole catalogue."""
        if self._params.source == "full":
            return None
        self._weights = self._weights.to(targets.device)  # once: it stays there
        return draw_candidates(
            histories,
            targets,
            seeds,
            negatives=self._params.negatives,
            num_items=len(self._weights),
            source=self._params.source,
            popularity=self._weights,
            exclude_seen=self._exclude_seen,
        )


def draw_candidates(
    histories: Histories,
    targets: Tensor,
    seeds: Tensor,
    *,
    negatives: int,
    num_items: int,
    source: Literal["uniform", "popularity"] = "uniform",
    popularity: Tensor | None = None,
    exclude_seen: bool = True,
) -> Tensor:
    """The target and exactly `negatives` distinct others of each prompt (fewer if the catalogue has fewer).

    Args:
        histories: b prompts; their items are no negatives (`exclude_seen`).
        targets: (b,) item indices.
        seeds: (b,) int64 >= 0; the same seed and target give the same order of draws.
        negatives: how many, n.
        num_items: size of the catalogue, I.
        source: `uniform`, or `popularity`: successive sampling without replacement, proportional to `popularity`.
        popularity: (I,) weights above 0, for `popularity`.
        exclude_seen: negatives are never items of the history.

    Returns:
        (b, min(n, I - 1) + 1) item indices in rising order, padded at the end with `num_items`.
    """
    negatives = min(negatives, num_items - 1)
    seen = histories.items if exclude_seen else histories.items[:, :0]
    excluded = torch.cat([seen, targets.unsqueeze(1)], 1).sort(1).values  # (b, l + 1)
    draws = min(num_items, negatives + excluded.shape[1])
    keys = mix(mix(seeds) ^ mix((seeds >> 32) + 0x9E3779B9) ^ mix(targets + 0x85EBCA6B))  # (b,)
    match source:
        case "uniform":
            drawn = _permutation_prefix(keys, count=draws, size=num_items)
        case "popularity":
            assert popularity is not None
            drawn = _exponential_race(keys, popularity, count=draws)
    place = torch.searchsorted(excluded, drawn).clamp_max(excluded.shape[1] - 1)
    fresh = excluded.gather(1, place) != drawn  # (b, draws)
    kept = fresh & (fresh.cumsum(1) <= negatives)
    candidates = torch.cat([torch.where(kept, drawn, num_items), targets.unsqueeze(1)], 1)
    return candidates.sort(1).values[:, : negatives + 1].contiguous()


def _permutation_prefix(keys: Tensor, *, count: int, size: int) -> Tensor:
    """First `count` values of a keyed permutation of 0..size-1 for each key: distinct, uniform, O(count).

    A four-round Feistel network over the next power of four, with cycle walking (Black & Rogaway 2002). A round
    function sees half of the bits only, so it is tabulated once a key.
    """
    half = max(1, math.ceil(math.log2(max(size, 2)) / 2))
    low = (1 << half) - 1
    halves = torch.arange(low + 1, device=keys.device)
    rounds = torch.arange(4, device=keys.device).unsqueeze(1) * 0x27D4EB2F
    table = (mix(halves ^ rounds ^ keys.view(-1, 1, 1)) & low).flatten()  # (b, 4, 2^half)
    base = (torch.arange(len(keys), device=keys.device) * (4 * (low + 1))).repeat_interleave(count)
    value = torch.arange(count, device=keys.device).repeat(len(keys))
    walking = torch.arange(len(value), device=keys.device)
    # Asking who still walks costs a CPU next to nothing; a GPU makes the host wait, so there all very probably arrive.
    outside = max(1 - size / 4**half, 1e-9)
    walks = 1 if keys.device.type == "cpu" else math.ceil(math.log(1000 * len(value)) / -math.log(outside))
    while len(walking):
        out, row = value[walking], base[walking]
        for walk in range(walks):
            left, right = out >> half, out & low
            for round_ in range(4):
                left, right = right, left ^ table[row + (right + round_ * (low + 1))]
            stepped = (left << half) | right
            out = stepped if walk == 0 else torch.where(out >= size, stepped, out)
        value[walking] = out
        walking = walking[out >= size]
    return value.view(len(keys), count)


def _exponential_race(keys: Tensor, weights: Tensor, *, count: int) -> Tensor:
    """Weighted sampling without replacement for each key: the items whose exponential clocks ring first."""
    items = torch.arange(len(weights), device=keys.device)
    bits = mix(mix(items + 0x165667B1).unsqueeze(0) ^ keys.unsqueeze(1))  # (b, I)
    uniform = (bits.double() + 0.5) / 2**32
    arrival = -uniform.log() / weights.double()
    return arrival.topk(count, dim=1, largest=False, sorted=True).indices
