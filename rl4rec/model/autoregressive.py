"""Slates item after item: the language model reads each chosen item before it chooses the next.

The plain way to write a list with a language model, and the reference for the fast route: k forward passes per slate
where Plackett-Luce needs one per prompt. Both have the same seam, choose from the same support and agree on the first
slot.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rl4rec.model.batch import Histories, States, Support
from rl4rec.model.device import to_device
from rl4rec.model.keyed_random import combine
from rl4rec.model.slates import SlateLogProbs, sample_slates

if TYPE_CHECKING:
    from rl4rec.model.policy import SlatePolicy


def log_probs(
    policy: SlatePolicy, states: States, support: Support, slates: Tensor, *, temperature: float
) -> SlateLogProbs:
    """As `SlatePolicy.log_probs`: one pass over each history followed by its slate."""
    batch, groups, k = slates.shape
    histories = states.histories.repeat_interleave(groups)
    columns = to_device(histories.lengths.unsqueeze(1) + torch.arange(k), slates.device)  # (b*g, k)
    items = torch.nn.functional.pad(histories.items, (0, k), value=-1)  # (b*g, l+k)
    whole = Histories(items.scatter(1, columns, slates.flatten(0, 1)), histories.lengths + k)
    rows = torch.arange(len(items), device=slates.device).unsqueeze(1)
    vectors = policy.encode_positions(whole)[rows, columns - 1]  # (b*g, k, d) before each slot is filled
    scores = _scores(policy, vectors.view(batch, groups * k, -1), support).view(batch, groups, k, -1) / temperature
    positions = support.positions(slates)
    chosen, entropies = [], []
    open_ = support.mask.unsqueeze(1).expand(-1, groups, -1)  # (b, g, c)
    for slot in range(k):
        log_q = torch.log_softmax(scores[:, :, slot].double().masked_fill(~open_, -torch.inf), -1)
        position = positions[:, :, slot : slot + 1]
        chosen.append(log_q.gather(-1, position).squeeze(-1))
        safe = log_q.masked_fill(~open_, 0.0)
        entropies.append(-torch.where(open_, safe.exp() * safe, 0.0).sum(-1))
        open_ = open_.scatter(-1, position, False)
    return SlateLogProbs(torch.stack(chosen, -1).float(), torch.stack(entropies, -1).float())


def sample(
    policy: SlatePolicy,
    states: States,
    support: Support,
    *,
    num_slates: int,
    k: int,
    temperature: float,
    keys: Tensor | None,
    generator: torch.Generator | None,
) -> Tensor:
    """As `SlatePolicy.sample`: k passes over each history followed by what was chosen so far."""
    histories, open_ = states.histories.repeat_interleave(num_slates), support.repeat_interleave(num_slates)
    numbers = torch.arange(num_slates * k, device=open_.mask.device).view(1, num_slates, k)
    slots = [None] * k if keys is None else combine(keys.view(-1, 1, 1), numbers).flatten(0, 1).unbind(1)  # (b*g,)
    items = torch.nn.functional.pad(histories.items, (0, k), value=-1)
    lengths = to_device(histories.lengths, items.device)
    chosen: list[Tensor] = []
    for slot in range(k):
        width = histories.items.shape[1] + slot
        read = policy.encode(Histories(items[:, :width], histories.lengths + slot))
        scores = policy.score_candidates(read, open_) / temperature
        drawn = sample_slates(scores, open_.mask, num_slates=1, k=1, keys=slots[slot], generator=generator)
        item = open_.item_indices(drawn).view(-1, 1)
        open_ = Support(open_.items, open_.mask.scatter(1, drawn.view(-1, 1), False))
        items = items.scatter(1, (lengths + slot).unsqueeze(1), item)
        chosen.append(item)
    return torch.cat(chosen, 1).view(-1, num_slates, k)


def _scores(policy: SlatePolicy, vectors: Tensor, support: Support) -> Tensor:
    """Scores of the candidates for n vectors of each prompt, (b, n, d) -> (b, n, c)."""
    directions = policy.item_vectors()
    if support.items is None:
        return vectors @ directions.T
    return vectors @ directions[support.items.clamp_max(policy.num_items - 1)].transpose(1, 2)
