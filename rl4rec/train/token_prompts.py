"""RL prompts as tokens, the only form in which TRL hands them around.

    history ... [SEP] target seed ... seed

All but the separator are item tokens: the target must be among the candidates, and the base-I digits of a seed draw the
negatives, so `generate` and the log-probabilities see the same candidates without any side channel. Only the history
is ever read by the model.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rl4rec.data.dataset import PreparedData
from rl4rec.model.batch import Histories
from rl4rec.model.noise import combine
from rl4rec.model.policy import SlatePolicy, SlatePolicyConfig
from rl4rec.params import CandidateParams, RLParams
from rl4rec.train.candidates import draw_candidates
from rl4rec.train.prompts import PromptBatch, PromptSet, seed_digits


class Prompts(NamedTuple):
    """Distinct prompts of a batch of rows."""

    histories: Histories  # b prompts
    targets: Tensor  # (b,)
    seeds: Tensor  # (b,)
    rows: Tensor  # (n,) which prompt each row of the batch is


def prompt_texts(batch: PromptBatch, tokenizer: PreTrainedTokenizerBase, policy: SlatePolicy) -> list[str]:
    """Prompts as text that `tokenizer` reads back as the tokens above (checked on the first one)."""
    offset, items = policy.config.item_offset, policy.num_items
    powers = items ** np.arange(seed_digits(items))[::-1]
    digits = (batch.seeds[:, None] // powers % items).tolist()  # (b, digits), the highest first
    encoded = [
        [*(history + offset).tolist(), tokenizer.sep_token_id, *(offset + item for item in (target, *seed))]
        for history, target, seed in zip(batch.histories, batch.targets.tolist(), digits, strict=True)
    ]
    names = tokenizer.convert_ids_to_tokens(list(range(offset + items)))
    for joiner in (" ", ""):  # a word-level item vocabulary, or item tokens added to a text vocabulary
        if tokenizer(joiner.join(names[i] for i in encoded[0]), add_special_tokens=False)["input_ids"] == encoded[0]:
            return [joiner.join(names[i] for i in ids) for ids in encoded]
    raise ValueError("the tokenizer does not read item tokens back; was it saved with the policy?")


def read_prompts(tokens: Tensor, policy: SlatePolicy) -> Prompts:
    """Parse left-padded prompt tokens (n, p), as TRL pads them, and merge equal rows."""
    offset, items = policy.config.item_offset, policy.num_items
    distinct, rows = torch.unique(tokens, dim=0, return_inverse=True)
    digits = seed_digits(items)
    target = distinct[:, -digits - 1] - offset
    powers = items ** torch.arange(digits - 1, -1, -1, device=tokens.device)
    seeds = ((distinct[:, -digits:] - offset) * powers).sum(1)
    history = distinct[:, : -digits - 2] - offset
    real = (history >= 0) & (history < items)  # not padding, nor a BOS that a tokenizer puts in front
    lengths = real.sum(1)
    source = torch.arange(history.shape[1], device=tokens.device) + (history.shape[1] - lengths).unsqueeze(1)
    inside = source < history.shape[1]
    aligned = torch.where(inside, history.gather(1, source.clamp_max(history.shape[1] - 1)), -1)
    tables = None if policy.leave_out is None else policy.leave_out.of_seeds(seeds)
    return Prompts(Histories(aligned[:, : int(lengths.max())], lengths, tables), target, seeds, rows)


def prompts_of(data: PreparedData, rl: RLParams, policy: SlatePolicy, *, seed: int) -> PromptSet:
    """The prompts of an RL run: all training prefixes, or with `rl.crossfit` the targets of its split points."""
    return PromptSet(
        data,
        max_history=policy.config.max_history,
        seed=seed,
        mask_seen=policy.config.mask_seen,
        latest=rl.feedback == "latest",
        split_points=rl.crossfit.split_points,
    )


class CandidateRule:
    """How the candidates of a prompt are drawn; `None` from `candidates` means the whole catalogue."""

    def __init__(self, params: CandidateParams, item_counts: Tensor, *, exclude_seen: bool) -> None:
        self._params = params
        self._weights = item_counts.double().clamp_min(1.0) ** params.popularity_exponent
        self._exclude_seen = exclude_seen

    def candidates(self, histories: Histories, targets: Tensor, seeds: Tensor) -> Tensor | None:
        """(b, n + 1) item indices in rising order, or None."""
        if self._params.source == "full":
            return None
        return draw_candidates(
            histories,
            targets,
            seeds,
            negatives=self._params.negatives,
            num_items=len(self._weights),
            source=self._params.source,
            popularity=self._weights.to(targets.device),
            exclude_seen=self._exclude_seen,
        )


class TokenPromptPolicy(SlatePolicy):
    """A slate policy whose `generate` reads token prompts, as TRL's GRPOTrainer calls it."""

    config_class = SlatePolicyConfig

    rule: CandidateRule | None = None  # set by the trainer
    temperature = 1.0
    slate_length = 10

    @torch.no_grad()
    def generate(self, input_ids: Tensor, **_: Any) -> Tensor:
        """Append one slate of item tokens to every row: (n, p) -> (n, p + k); equal rows share one forward pass."""
        assert self.rule is not None
        prompts = read_prompts(input_ids, self)
        support = self.support(
            prompts.histories, self.rule.candidates(prompts.histories, prompts.targets, prompts.seeds)
        )
        place = place_in_group(prompts.rows)
        slates = self.sample(
            prompts.histories,
            support,
            num_slates=int(place.max()) + 1,
            k=self.slate_length,
            temperature=self.temperature,
            keys=combine(prompts.seeds, prompts.targets),
        )
        return torch.cat([input_ids, slates[prompts.rows, place] + self.config.item_offset], 1)


def place_in_group(rows: Tensor) -> Tensor:
    """Running number of each row among the rows of the same prompt: [0, 1, 0, 0] -> [0, 0, 1, 2]."""
    order = torch.argsort(rows, stable=True)
    counts = torch.bincount(rows)
    starts = counts.cumsum(0) - counts
    place = torch.empty_like(rows)
    place[order] = torch.arange(len(rows), device=rows.device) - starts[rows[order]]
    return place
