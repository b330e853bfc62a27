"""SlatePolicy: a Hugging Face causal language model that reads a history once and proposes slates of items.

Items are tokens of the model's vocabulary: item index i is token `item_offset + i`. Everything outside this module
speaks in item indices 0..I-1. Histories are padded on the *right*: causal attention never looks at the padding, so no
attention mask or position ids are needed, whatever position encoding the model uses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from rl4rec.model.batch import Histories, Support, build_support, length_groups, pad_histories
from rl4rec.model.crossfit_embeddings import LeaveOutEmbeddings
from rl4rec.model.noise import combine
from rl4rec.model.scores import Factors, picked_scores
from rl4rec.model.slates import SlateLogProbs, greedy_slate, sample_slates, slate_log_probs
from rl4rec.train.cross_entropy import IGNORE, NextItemsLoss, SampledItems


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
        self.generation = generation
        self.score = score  # of state and item embedding: dot | cosine
        self.score_temperature = score_temperature  # of cosines
        super().__init__(**kwargs)


@dataclass
class SlatePolicyOutput(ModelOutput):
    """What `SlatePolicy.forward` returns; fields that were not asked for are None."""

    loss: Tensor | None = None  # () mean next-item cross-entropy over labelled positions
    states: Tensor | None = None  # (b, d) prompt states, after the last item of the history
    log_probs: Tensor | None = None  # (b, g, k)
    entropy: Tensor | None = None  # (b, g, k)
    target_loss: Tensor | None = None  # () mean cross-entropy of the prompts' targets on the support


class SlatePolicy(PreTrainedModel):
    """A causal LM whose item scores define a distribution over slates.

    `generation: slate` (default): one forward pass gives the scores of a Plackett-Luce distribution, from which any
    number of slates is drawn. `generation: autoregressive`: the LM generates item after item, each conditioned on the
    ones before, under a constraint to the support and to distinct items; the reference for the fast route.
    """

    config_class = SlatePolicyConfig
    base_model_prefix = "lm"

    def __init__(self, config: SlatePolicyConfig, lm: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        if lm is None:
            lm = AutoModelForCausalLM.from_config(_lm_config(config), trust_remote_code=False)
        self.lm = lm
        self.generation_config = lm.generation_config
        self.next_items_loss = NextItemsLoss()  # set by the SFT trainer
        self.leave_out: LeaveOutEmbeddings | None = None  # set by the RL trainers, never saved
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

    def item_weight(self) -> Tensor:
        """What prompt states are multiplied with for the items' scores, (I, d)."""
        return self._directions(self.item_embeddings())

    def _directions(self, vectors: Tensor) -> Tensor:
        """Vectors (.., d) as they enter a score: of unit length if scores are cosines."""
        if self.config.score == "cosine":
            return torch.nn.functional.normalize(vectors, dim=-1)
        return vectors

    # --- reading histories -----------------------------------------------------------------------

    def pad_histories(self, histories: Sequence[npt.NDArray[np.int64]]) -> Histories:
        """The latest `max_history` items of each history, right-padded, on the policy's device.

        Args:
            histories: item indices, oldest first, none of them empty.
        """
        return pad_histories(histories, max_history=self.config.max_history, device=self.device)

    def hidden_states(self, items: Tensor, tables: Tensor | None = None) -> Tensor:
        """States at every position, (b, l, d), for right-padded item indices (b, l) with -1 as padding.

        `tables` (b,): read each row through these leave-out embeddings instead of the policy's own.
        """
        body = self.lm.base_model
        items = items.clamp_min(0)
        if tables is None:
            output = body(input_ids=items + self.config.item_offset, use_cache=False)
        else:
            # Through the policy's own embedding layer, which may do more than look up (scale, for one).
            assert self.leave_out is not None
            rows = {"weight": self.leave_out.inputs.flatten(0, 1)}  # (n * I, d)
            read = torch.func.functional_call(
                self.get_input_embeddings(), rows, (items + tables.unsqueeze(1) * self.num_items,)
            )
            output = body(inputs_embeds=read, use_cache=False)
        states: Tensor = output.last_hidden_state
        if self.config.score == "cosine":
            states = self._directions(states) / self.config.score_temperature
        return states

    def prompt_states(self, histories: Histories) -> Tensor:
        """State after the last item of each history, (b, d)."""
        states, order = [], []
        for rows, width in length_groups(histories.lengths):
            tables = None if histories.tables is None else histories.tables[rows]
            hidden = self.hidden_states(histories.items[rows, :width], tables)
            states.append(hidden[torch.arange(len(rows), device=rows.device), histories.lengths[rows] - 1])
            order.append(rows)
        return torch.cat(states)[torch.cat(order).argsort()]

    def support(self, histories: Histories, candidates: Tensor | None = None) -> Support:
        """Candidates less the seen items (`mask_seen`): the one support of sampling and of all log-probabilities.

        Args:
            histories: b prompts.
            candidates: (b, c) item indices in rising order, padded with `num_items`; None: the whole catalogue.
        """
        return build_support(histories, candidates, num_items=self.num_items, mask_seen=self.config.mask_seen)

    def candidate_scores(self, states: Tensor, support: Support, tables: Tensor | None = None) -> Tensor:
        """Scores of the candidates, (b, c), or (b, n, c) for states (b, n, d).

        `tables` (b,): score each row with these leave-out embeddings instead of the policy's own.
        """
        if tables is None:
            return self._scores(states, support, self.item_embeddings())
        assert self.leave_out is not None
        parts, order = [], []
        for table in sorted(set(tables.tolist())):
            rows = (tables == table).nonzero().squeeze(1)
            listed = None if support.items is None else support.items[rows]
            parts.append(self._scores(states[rows], Support(listed, support.mask[rows]), self.leave_out.outputs[table]))
            order.append(rows)
        return torch.cat(parts)[torch.cat(order).argsort()]

    def _scores(self, states: Tensor, support: Support, embeddings: Tensor) -> Tensor:
        if support.items is None:
            return states @ self._directions(embeddings).T
        directions = self._directions(embeddings)
        index = support.items.clamp_max(self.num_items - 1)
        if states.dim() == 3:
            return states @ directions[index].transpose(1, 2)
        return picked_scores(states, directions, index)

    # --- one entry point with gradients ------------------------------------------------------------

    def forward(
        self,
        input_ids: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        sampled: SampledItems | None = None,
        histories: Histories | None = None,
        candidates: Tensor | None = None,
        slates: Tensor | None = None,
        targets: Tensor | None = None,
        temperature: float = 1.0,
        **_: Any,
    ) -> SlatePolicyOutput:
        """Either the SFT loss (`input_ids`, `labels`) or the log-probabilities of slates (`histories`, `slates`).

        Going through one `forward` keeps distributed wrappers (DDP, FSDP) in charge of gradients.

        Args:
            input_ids: (b, l) right-padded item indices, -1 is padding.
            labels: (b, l) the item that came next at each position, `IGNORE` where there is none.
            num_items_in_batch: divide the summed loss by this (gradient accumulation); default: the labelled positions.
            sampled: estimate the softmax's sum from these items instead of the whole catalogue.
            histories: b prompts.
            candidates: see `support`.
            slates: (b, g, k) item indices inside the support.
            targets: (b,) item indices inside the support; also return their mean cross-entropy.
            temperature: scores are divided by it.
        """
        if histories is None:
            assert input_ids is not None and labels is not None
            following = self.next_items_loss.following(labels)  # (b, l, window)
            hidden: list[Tensor] = []
            expected: list[Tensor] = []
            for rows, width in length_groups((input_ids >= 0).sum(1)):
                labelled = labels[rows, :width] != IGNORE
                hidden.append(self.hidden_states(input_ids[rows, :width])[labelled])
                expected.append(following[rows, :width][labelled])
            total = self.next_items_loss(
                torch.cat(hidden),
                self.item_embeddings(),
                torch.cat(expected),
                sampled,
                unit_rows=self.config.score == "cosine",
            )
            count = (labels != IGNORE).sum() if num_items_in_batch is None else num_items_in_batch
            return SlatePolicyOutput(loss=total / count)

        support = self.support(histories, candidates)
        states = self.prompt_states(histories)
        output = SlatePolicyOutput(states=states)
        if slates is not None:
            result = self.log_probs(histories, support, slates, temperature=temperature, states=states)
            output.log_probs, output.entropy = result
        if targets is not None:
            scores = self.candidate_scores(states, support, histories.tables).masked_fill(~support.mask, -torch.inf)
            index = support.positions(targets.view(-1, 1, 1)).flatten()
            output.target_loss = torch.nn.functional.cross_entropy(scores.float(), index)
        return output

    # --- slates -----------------------------------------------------------------------------------

    def log_probs(
        self,
        histories: Histories,
        support: Support,
        slates: Tensor,
        *,
        temperature: float = 1.0,
        states: Tensor | None = None,
    ) -> SlateLogProbs:
        """Per-slot log-probabilities and entropies of slates under the policy, (b, g, k) each.

        Args:
            histories: b prompts.
            support: what the slates were sampled from.
            slates: (b, g, k) item indices.
            temperature: scores are divided by it.
            states: (b, d) prompt states if the caller has them (`generation: slate` only).
        """
        if self.config.generation == "autoregressive":
            return self._autoregressive_log_probs(histories, support, slates, temperature)
        if states is None:
            states = self.prompt_states(histories)
        scores = self.candidate_scores(states, support, histories.tables) / temperature
        return slate_log_probs(scores, support.mask, support.positions(slates))

    @torch.no_grad()
    def sample(
        self,
        histories: Histories,
        support: Support,
        *,
        num_slates: int,
        k: int,
        temperature: float = 1.0,
        states: Tensor | None = None,
        keys: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw slates of distinct items in evaluation mode (no dropout).

        Args:
            histories: b prompts.
            support: what may be chosen, see `support`.
            num_slates: slates a prompt.
            k: slots.
            temperature: scores are divided by it.
            states: (b, d) prompt states if the caller has them (`generation: slate` only).
            keys: (b,) int64 below 2^32; then a prompt's slates depend on its scores and its key alone.
            generator: without keys, the source of randomness; the global one by default.

        Returns:
            (b, num_slates, k) item indices.

        Raises:
            ValueError: fewer than k items may be chosen.
        """
        training = self.training
        self.train(False)
        try:
            if self.config.generation == "autoregressive":
                return self._autoregressive_sample(histories, support, num_slates, k, temperature, keys, generator)
            if states is None:
                states = self.prompt_states(histories)
            scores = self.candidate_scores(states, support, histories.tables) / temperature
            positions = sample_slates(scores, support.mask, num_slates=num_slates, k=k, keys=keys, generator=generator)
            return support.item_indices(positions)
        finally:
            self.train(training)

    @torch.no_grad()
    def recommend(self, histories: Sequence[npt.NDArray[np.int64]], *, k: int) -> tuple[Tensor, Tensor]:
        """The k best unseen items of each history with their scores, (b, k) each.

        Only the latest `max_history` items count as seen; longer histories are masked by the evaluator.

        Args:
            histories: item indices, oldest first, none of them empty.
            k: items a list.

        Raises:
            ValueError: fewer than k items are unseen.
        """
        padded = self.pad_histories(histories)
        support = self.support(padded)
        scores = self.candidate_scores(self.prompt_states(padded), support)
        items = greedy_slate(scores, support.mask, k=k)
        return items, scores.gather(1, items)

    @torch.no_grad()
    def factors(self, histories: Sequence[npt.NDArray[np.int64]]) -> Factors:
        """Next-item scores over the whole catalogue as a product, for `evaluate`; seen items are not masked.

        Args:
            histories: item indices, oldest first, none of them empty.
        """
        return Factors(self.prompt_states(self.pad_histories(histories)).float(), self.item_weight().detach().float())

    def scores(self, histories: Sequence[npt.NDArray[np.int64]]) -> Tensor:
        """Next-item scores over the whole catalogue, (b, I) float32; seen items are not masked.

        Args:
            histories: item indices, oldest first, none of them empty.
        """
        states, items = self.factors(histories)
        return states @ items.T

    # --- the plain route: item after item ----------------------------------------------------------

    def _rows_with_slates(self, histories: Histories, slates: Tensor) -> tuple[Tensor, Tensor]:
        """Histories followed by slates: right-padded items (b*g, l+k) and the lengths (b*g,) of the histories."""
        groups, k = slates.shape[1:]
        items = histories.items.repeat_interleave(groups, 0)
        items = torch.nn.functional.pad(items, (0, k), value=-1)  # (b*g, l+k)
        lengths = histories.lengths.repeat_interleave(groups, 0)
        columns = lengths.unsqueeze(1) + torch.arange(k, device=items.device)
        return items.scatter(1, columns, slates.flatten(0, 1)), lengths

    def _autoregressive_log_probs(
        self, histories: Histories, support: Support, slates: Tensor, temperature: float
    ) -> SlateLogProbs:
        batch, groups, k = slates.shape
        items, lengths = self._rows_with_slates(histories, slates)
        hidden = self.hidden_states(items)
        columns = (lengths - 1).unsqueeze(1) + torch.arange(k, device=items.device)  # (b*g, k)
        states = hidden.gather(1, columns.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))  # (b*g, k, d)
        states = states.view(batch, groups * k, -1)
        scores = self.candidate_scores(states, support).view(batch, groups, k, -1) / temperature
        positions = support.positions(slates)
        log_probs, entropies = [], []
        open_ = support.mask.unsqueeze(1).expand(-1, groups, -1)  # (b, g, c)
        for slot in range(k):
            log_q = torch.log_softmax(scores[:, :, slot].double().masked_fill(~open_, -torch.inf), -1)
            position = positions[:, :, slot : slot + 1]
            log_probs.append(log_q.gather(-1, position).squeeze(-1))
            safe = log_q.masked_fill(~open_, 0.0)
            entropies.append(-torch.where(open_, safe.exp() * safe, 0.0).sum(-1))
            open_ = open_.scatter(-1, position, False)
        return SlateLogProbs(torch.stack(log_probs, -1).float(), torch.stack(entropies, -1).float())

    def _autoregressive_sample(
        self,
        histories: Histories,
        support: Support,
        num_slates: int,
        k: int,
        temperature: float,
        keys: Tensor | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        rows = Histories(
            histories.items.repeat_interleave(num_slates, 0), histories.lengths.repeat_interleave(num_slates, 0)
        )
        listed = None if support.items is None else support.items.repeat_interleave(num_slates, 0)
        open_ = support.mask.repeat_interleave(num_slates, 0)  # (b*g, c)
        numbers = torch.arange(num_slates * k, device=open_.device).view(1, num_slates, k)
        slots = [None] * k if keys is None else combine(keys.view(-1, 1, 1), numbers).flatten(0, 1).unbind(1)  # (b*g,)
        chosen: list[Tensor] = []
        items = torch.nn.functional.pad(rows.items, (0, k), value=-1)
        for slot in range(k):
            width = rows.items.shape[1] + slot
            states = self.prompt_states(Histories(items[:, :width], rows.lengths + slot))
            scores = self.candidate_scores(states, Support(listed, open_)) / temperature
            drawn = sample_slates(scores, open_, num_slates=1, k=1, keys=slots[slot], generator=generator)
            position = drawn.view(-1, 1)
            open_ = open_.scatter(1, position, False)
            item = position if listed is None else listed.gather(1, position)
            items = items.scatter(1, (rows.lengths + slot).unsqueeze(1), item)
            chosen.append(item)
        return torch.cat(chosen, 1).view(-1, num_slates, k)


def _lm_config(config: SlatePolicyConfig) -> PreTrainedConfig:
    values = dict(config.lm_config)
    return AutoConfig.for_model(values.pop("model_type"), **values)
