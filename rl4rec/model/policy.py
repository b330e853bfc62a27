"""SlatePolicy: a Hugging Face causal language model that reads a history once and proposes slates of items.

Items are tokens of the model's vocabulary: item index i is token `item_offset + i`. Everything outside this module
speaks in item indices 0..I-1. Histories are padded on the *right*: causal attention never looks at the padding, so no
attention mask or position ids are needed, whatever position encoding the model uses.

A policy has two seams. Ranking: `encode` histories to states, `score` the catalogue from them; evaluation and serving
know no more (`rl4rec.model.ranking`). Slates: `sample` them from states and a support, and take their `log_probs`;
RL trains on these.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from rl4rec.model import autoregressive
from rl4rec.model.batch import (
    Histories,
    States,
    Support,
    build_support,
    invert,
    length_groups,
    pad_histories,
    place_parts,
)
from rl4rec.model.device import to_device
from rl4rec.model.scores import Scores, picked_scores
from rl4rec.model.sharding import is_sharded
from rl4rec.model.slates import SlateLogProbs, greedy_slate, sample_slates, slate_log_probs

IntArray = npt.NDArray[np.int64]


# Multiplications of one row of a layer with itself that a GPU could do while one more group of rows is launched.
_LAUNCHES = 2**30


class SlatePolicyConfig(PreTrainedConfig):
    """The wrapped model's configuration and how items sit in its vocabulary."""

    model_type = "slate_policy"

    def __init__(
        self,
        lm_config: dict[str, Any] | None = None,
        num_items: int = 0,
        item_offset: int = 0,
        max_history: int = 50,
        mask_seen: bool = True,
        generation: str = "slate",
        score: str = "dot",
        score_temperature: float = 1.0,
        **kwargs: Any,
    ) -> None:
        self.lm_config = lm_config or {}
        self.num_items = num_items
        self.item_offset = item_offset
        self.max_history = max_history
        self.mask_seen = mask_seen
        self.generation = generation  # slate | autoregressive
        self.score = score  # of state and item embedding: dot | cosine
        self.score_temperature = score_temperature  # of cosines
        super().__init__(**kwargs)


class SlatePolicy(PreTrainedModel):
    """A causal LM whose item scores define a distribution over slates.

    `generation: slate` (default): one forward pass gives the scores of a Plackett-Luce distribution, from which any
    number of slates is drawn. `generation: autoregressive`: the LM generates item after item, each conditioned on the
    ones before (`rl4rec.model.autoregressive`); the reference for the fast route.
    """

    config_class = SlatePolicyConfig
    base_model_prefix = "lm"

    def __init__(self, config: SlatePolicyConfig, lm: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        if lm is None:
            lm = AutoModelForCausalLM.from_config(_lm_config(config), trust_remote_code=False)
        self.lm = lm
        self.generation_config = lm.generation_config
        self.post_init()  # type: ignore[no-untyped-call]

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, from safetensors only: weights in pickle form are refused, whatever the folder holds."""
        return super().from_pretrained(*args, **(kwargs | {"use_safetensors": True}))

    # --- plumbing that transformers expects -------------------------------------------------------

    def get_input_embeddings(self) -> torch.nn.Module:
        """Token embeddings of the wrapped model."""
        return self.lm.get_input_embeddings()

    def get_output_embeddings(self) -> torch.nn.Module:
        """Output layer of the wrapped model."""
        layer: torch.nn.Module = self.lm.get_output_embeddings()
        return layer

    def _init_weights(self, module: torch.nn.Module) -> None:
        self.lm._init_weights(module)

    @property
    def num_items(self) -> int:
        """Size of the catalogue, I."""
        return int(self.config.num_items)

    def item_embeddings(self) -> Tensor:
        """Output embeddings of the items as they are stored, (I, d)."""
        offset = self.config.item_offset
        weight: Tensor = self.lm.get_output_embeddings().weight
        return weight[offset : offset + self.num_items]

    def item_vectors(self) -> Tensor:
        """What states are multiplied with for the items' scores, (I, d)."""
        return self._directions(self.item_embeddings())

    def _directions(self, vectors: Tensor) -> Tensor:
        """Vectors (.., d) as they enter a score: of unit length if scores are cosines."""
        if self.config.score == "cosine":
            return torch.nn.functional.normalize(vectors, dim=-1)
        return vectors

    # --- reading histories -----------------------------------------------------------------------

    def pad_histories(self, histories: Sequence[IntArray]) -> Histories:
        """The latest `max_history` items of each history, right-padded, on the policy's device.

        Args:
            histories: item indices, oldest first, none of them empty.
        """
        return pad_histories(histories, max_history=self.config.max_history, device=self.device)

    def encode_positions(self, histories: Histories) -> Tensor:
        """State vectors after every item, (b, l, d); those at the padding mean nothing."""
        items = histories.items.clamp_min(0)
        # Embedded here, not by the body: it would ask a GPU whether there is padding.
        embed = self.get_input_embeddings()
        if histories.tables is None:
            read = embed(items + self.config.item_offset)
        else:
            # Through the policy's own embedding layer, which may do more than look up (scale, for one).
            assert histories.crossfit is not None
            weight = {"weight": histories.crossfit.inputs.flatten(0, 1)}  # (n * I, d)
            first = to_device(histories.tables * self.num_items, items.device)
            read = torch.func.functional_call(embed, weight, (items + first.unsqueeze(1),))
        output = self.lm.base_model(inputs_embeds=read, use_cache=False)
        vectors: Tensor = output.last_hidden_state.to(self.dtype)  # scores are never autocast
        if self.config.score == "cosine":
            vectors = self._directions(vectors) / self.config.score_temperature
        return vectors

    def length_groups(self, lengths: Tensor) -> list[tuple[Tensor, int]]:
        """Rows that are read together: those of similar length, as far as reading them apart pays on the device."""
        if is_sharded(self):
            return length_groups(lengths, worth=sys.maxsize)  # one, whatever the lengths: as many as other processes
        if self.device.type == "cpu":
            return length_groups(lengths)
        width: int = self.get_input_embeddings().get_parameter("weight").shape[1]
        return length_groups(lengths, worth=_LAUNCHES // width**2)

    def encode(self, histories: Histories | Sequence[IntArray]) -> States:
        """States after the last item of each history.

        Args:
            histories: b histories, padded or as arrays of item indices, oldest first, none of them empty.
        """
        if not isinstance(histories, Histories):
            histories = self.pad_histories(histories)
        groups = self.length_groups(histories.lengths)
        parts = place_parts([rows for rows, _ in groups], histories.items.device)
        vectors = []
        for rows, (_, width) in zip(parts, groups, strict=True):
            group = histories[rows].first(width)
            ends = to_device(torch.arange(len(group)) * width + group.lengths - 1, group.items.device)
            vectors.append(self.encode_positions(group).flatten(0, 1)[ends])
        return States(torch.cat(vectors)[invert(parts)], histories)

    # --- ranking ----------------------------------------------------------------------------------

    @torch.no_grad()
    def score(self, states: States) -> Scores:
        """Next-item scores over the whole catalogue, (b, I) float32, as two factors; seen items are not masked."""
        return Scores(states.vectors.float(), self.item_vectors().float())

    def scores(self, histories: Sequence[IntArray]) -> Tensor:
        """Next-item scores over the whole catalogue, (b, I) float32, without gradients; seen items are not masked.

        Args:
            histories: item indices, oldest first, none of them empty.
        """
        with torch.no_grad():
            return self.score(self.encode(histories)).dense()

    @torch.no_grad()
    def recommend(self, histories: Sequence[IntArray], *, k: int) -> tuple[Tensor, Tensor]:
        """The k best unseen items of each history with their scores, (b, k) each.

        Only the latest `max_history` items count as seen; longer histories are masked by the evaluator.

        Args:
            histories: item indices, oldest first, none of them empty.
            k: items per list.

        Raises:
            ValueError: fewer than k items are unseen.
        """
        states = self.encode(histories)
        support = self.support(states.histories)
        scores = self.score_candidates(states, support)
        items = greedy_slate(scores, support.mask, k=k)
        return items, scores.gather(1, items)

    # --- slates -----------------------------------------------------------------------------------

    def support(self, histories: Histories, candidates: Tensor | None = None) -> Support:
        """Candidates less the seen items (`mask_seen`): the one support of sampling and of all log-probabilities.

        Args:
            histories: b prompts.
            candidates: (b, c) item indices in rising order, padded with `num_items`; None: the whole catalogue.
        """
        return build_support(histories, candidates, num_items=self.num_items, mask_seen=self.config.mask_seen)

    def score_candidates(self, states: States, support: Support) -> Tensor:
        """Scores of the support's candidates, (b, c), with gradients."""
        tables = states.histories.tables
        if tables is None:
            return self._score_with(self.item_embeddings(), states.vectors, support)
        assert states.histories.crossfit is not None
        outputs = states.histories.crossfit.outputs
        rows_of_each = [(tables == table).nonzero().squeeze(1) for table in range(len(outputs))]
        parts = place_parts(rows_of_each, states.vectors.device)
        scores = [
            self._score_with(embeddings, states.vectors[rows.placed], support[rows])
            for embeddings, rows in zip(outputs, parts, strict=True)
        ]
        return torch.cat(scores)[invert(parts)]

    def _score_with(self, embeddings: Tensor, vectors: Tensor, support: Support) -> Tensor:
        directions = self._directions(embeddings)
        if support.items is None:
            return vectors @ directions.T
        return picked_scores(vectors, directions, support.items.clamp_max(self.num_items - 1))

    def log_probs(self, states: States, support: Support, slates: Tensor, *, temperature: float = 1.0) -> SlateLogProbs:
        """Per-slot log-probabilities and entropies of slates under the policy, (b, g, k) each, with gradients.

        Args:
            states: of b prompts.
            support: what the slates were sampled from.
            slates: (b, g, k) item indices.
            temperature: scores are divided by it.
        """
        if self.config.generation == "autoregressive":
            return autoregressive.log_probs(self, states, support, slates, temperature=temperature)
        scores = self.score_candidates(states, support) / temperature
        return slate_log_probs(scores, support.mask, support.positions(slates))

    @torch.no_grad()
    def sample(
        self,
        states: States,
        support: Support,
        *,
        num_slates: int,
        k: int,
        temperature: float = 1.0,
        keys: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw slates of distinct items.

        Args:
            states: of b prompts.
            support: what may be chosen, see `support`.
            num_slates: slates per prompt, g.
            k: slots.
            temperature: scores are divided by it.
            keys: (b,) int64 below 2^32; then a prompt's slates depend on its scores and its key alone.
            generator: without keys, the source of randomness; the global one by default.

        Returns:
            (b, g, k) item indices.

        Raises:
            ValueError: fewer than k items may be chosen.
        """
        how: dict[str, Any] = {"num_slates": num_slates, "k": k, "keys": keys, "generator": generator}
        if self.config.generation == "autoregressive":
            return autoregressive.sample(self, states, support, temperature=temperature, **how)
        scores = self.score_candidates(states, support) / temperature
        return support.item_indices(sample_slates(scores, support.mask, **how))


def _lm_config(config: SlatePolicyConfig) -> PreTrainedConfig:
    values = dict(config.lm_config)
    return AutoConfig.for_model(values.pop("model_type"), **values)
