"""Making a policy: a GPT-2 architecture from scratch, any pretrained causal LM with item tokens added, the champion."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rl4rec._io import read_json, read_parquet
from rl4rec.data.vocabulary import ITEM_OFFSET, item_token
from rl4rec.errors import UserError
from rl4rec.model.policy import SlatePolicy, SlatePolicyConfig
from rl4rec.params import SLATE_ROOM, PolicyParams

logger = logging.getLogger(__name__)

# what two policies share whose weights fit each other, by the names that transformers gives every architecture
_ARCHITECTURE = (
    "model_type",
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "max_position_embeddings",
)


def create_policy(
    params: PolicyParams, item_ids: list[str], item_tokenizer: PreTrainedTokenizerBase
) -> tuple[SlatePolicy, PreTrainedTokenizerBase]:
    """A new policy over a catalogue, and the tokenizer of its vocabulary.

    Args:
        params: the `policy` section.
        item_ids: raw ids, index order.
        item_tokenizer: the item vocabulary that `prepare` saved, or `build_tokenizer(item_ids)`.

    Returns:
        The policy and its tokenizer.

    Raises:
        UserError: the pretrained model cannot be loaded.
    """
    match params.init:
        case "scratch":
            return _from_scratch(params, len(item_ids)), item_tokenizer
        case "pretrained":
            return _from_pretrained(params, item_ids)


def read_champion(folder: Path) -> dict[str, Any]:
    """`champion.json`: which champion it is, or why there is none.

    Raises:
        UserError: the file is missing or damaged.
    """
    return read_json(folder / "champion.json", then="Run `dvc repro champion`.")


def start_from_champion(policy: SlatePolicy, item_ids: Sequence[str], folder: Path) -> bool:
    """Copy the champion's weights into a new policy; items are matched by their raw ids.

    Items that the champion does not know start at the mean and spread of those it knows.

    Args:
        policy: as `create_policy` makes it, changed in place.
        item_ids: raw ids of its items, index order.
        folder: written by `rl4rec.ops.champion`.

    Returns:
        Whether there is a champion.

    Raises:
        UserError: the champion is of another architecture.
    """
    if read_champion(folder).get("init") == "fresh":
        return False
    champion = SlatePolicy.from_pretrained(folder / "policy")
    _check_same_architecture(policy, champion)
    place = {item: row for row, item in enumerate(read_parquet(folder / "items.parquet", ["item"])["item"])}
    theirs = torch.tensor([place.get(item, -1) for item in item_ids])  # (I,) the champion's index of each item
    offset, known = policy.config.item_offset, theirs >= 0
    if not known.any():
        raise UserError("sft.init: champion: it knows none of the items of data/prepared; use `sft.init: fresh`")
    layers = (policy.get_input_embeddings(), policy.get_output_embeddings())
    tables = {id(layer.get_parameter("weight")) for layer in layers}
    source = dict(champion.named_parameters())
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if id(weight) not in tables:
                weight.copy_(source[name])
                continue
            weight[:offset] = source[name][:offset]
            rows = source[name][offset:][theirs[known]]
            weight[offset:] = _like(rows, len(item_ids))
            weight[offset:][known] = rows
    logger.info("starting from the champion, which knows %d of %d items", int(known.sum()), len(item_ids))
    return True


def _from_scratch(params: PolicyParams, num_items: int) -> SlatePolicy:
    config = GPT2Config(
        vocab_size=ITEM_OFFSET + num_items,
        n_positions=params.max_history + SLATE_ROOM,
        n_embd=params.n_embd,
        n_layer=params.n_layer,
        n_head=params.n_head,
        resid_pdrop=params.dropout,
        embd_pdrop=params.dropout,
        attn_pdrop=params.dropout,
        activation_function="gelu_pytorch_tanh",  # GPT-2's own `gelu_new` as one kernel
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )
    return _wrap(GPT2LMHeadModel(config), params, num_items, ITEM_OFFSET)


def _from_pretrained(params: PolicyParams, item_ids: list[str]) -> tuple[SlatePolicy, PreTrainedTokenizerBase]:
    """Add one token an item to a pretrained model; new rows start at the old embeddings' mean and spread."""
    name = params.model_name
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        # float32 weights whatever the checkpoint has: small updates get lost in bfloat16, and scores would tie
        lm = AutoModelForCausalLM.from_pretrained(
            name, use_safetensors=True, trust_remote_code=False, dtype=torch.float32
        )
    except (OSError, ValueError) as error:
        what = "the folder" if Path(name).exists() else "the Hugging Face hub id"
        raise UserError(
            f"policy.model_name: cannot load {what} '{name}' as a causal language model "
            f"with safetensors weights: {error}. Name one that has them, a folder or a model of the Hugging Face hub"
        ) from None
    positions = getattr(lm.config.get_text_config(), "max_position_embeddings", None)
    needed = params.max_history + (SLATE_ROOM if params.generation == "autoregressive" else 0)
    if positions is not None and positions < needed:
        raise UserError(
            f"policy.max_history: {params.max_history} (plus room for a slate with generation: autoregressive) needs "
            f"{needed} positions, more than '{name}' reads ({positions}). Lower it, or choose another policy.model_name"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    item_offset = len(tokenizer)
    added = tokenizer.add_tokens([f"<|item:{item_token(raw)}|>" for raw in item_ids])
    if added != len(item_ids):
        raise UserError(f"policy.model_name: '{name}' already has some of the item tokens; use a plain checkpoint")
    lm.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    _spread_new_rows(lm, item_offset)
    return _wrap(lm, params, len(item_ids), item_offset), tokenizer


def _spread_new_rows(lm: PreTrainedModel, first: int) -> None:
    """Draw the embeddings from row `first` on from the older ones' mean and standard deviation, by dimension.

    transformers would put them all within a billionth of the mean: items could not be told apart by a cosine.
    """
    inputs, outputs = (
        layer.get_parameter("weight") for layer in (lm.get_input_embeddings(), lm.get_output_embeddings())
    )
    with torch.no_grad():
        for weight in (inputs,) if inputs is outputs else (inputs, outputs):
            weight[first:] = _like(weight[:first], len(weight) - first)


def _like(rows: Tensor, count: int) -> Tensor:
    """So many new rows, drawn with the mean and the standard deviation of the given ones, by dimension."""
    return rows.mean(0) + rows.std(0) * torch.randn(count, rows.shape[1], dtype=rows.dtype, device=rows.device)


def _wrap(lm: PreTrainedModel, params: PolicyParams, num_items: int, item_offset: int) -> SlatePolicy:
    config = SlatePolicyConfig(
        lm_config=lm.config.to_dict(),
        num_items=num_items,
        item_offset=item_offset,
        max_history=params.max_history,
        mask_seen=params.mask_seen,
        generation=params.generation,
        score=params.score,
        score_temperature=params.score_temperature,
        pad_token_id=lm.config.pad_token_id,
        bos_token_id=lm.config.bos_token_id,
        eos_token_id=lm.config.eos_token_id,
        tie_word_embeddings=lm.config.tie_word_embeddings,
    )
    return SlatePolicy(config, lm)


def _check_same_architecture(policy: SlatePolicy, champion: SlatePolicy) -> None:
    def shape(of: SlatePolicy) -> dict[str, object]:
        lm = of.lm.config.get_text_config()
        return {
            **{name: getattr(lm, name, None) for name in _ARCHITECTURE},
            "score": of.config.score,
            "item_offset": of.config.item_offset,
        }

    ours, theirs = shape(policy), shape(champion)
    differing = [key for key in ours if ours[key] != theirs.get(key)]
    if differing:
        raise UserError(
            "sft.init: champion: the champion is of another architecture than the section `policy` asks for: "
            + ", ".join(f"{key} {theirs.get(key)!r} instead of {ours[key]!r}" for key in differing)
            + ". Change `policy`, or use `sft.init: fresh`"
        )
