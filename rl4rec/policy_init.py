"""Making a policy: a GPT-2 architecture from scratch, or any pretrained causal LM with item tokens added."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rl4rec.data.vocabulary import ITEM_OFFSET, item_token
from rl4rec.errors import UserError
from rl4rec.params import SLATE_ROOM, PolicyParams
from rl4rec.policy import SlatePolicy, SlatePolicyConfig


def create_policy(
    params: PolicyParams, item_ids: list[str], item_tokenizer: PreTrainedTokenizerBase
) -> tuple[SlatePolicy, PreTrainedTokenizerBase]:
    """A new policy over a catalogue, and the tokenizer of its vocabulary.

    Args:
        params: the `policy` section.
        item_ids: raw ids, index order.
        item_tokenizer: the item vocabulary that `prepare` saved.

    Raises:
        UserError: the pretrained model cannot be loaded.
    """
    match params.init:
        case "scratch":
            return _from_scratch(params, len(item_ids)), item_tokenizer
        case "pretrained":
            return _from_pretrained(params, item_ids)


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
            f"with safetensors weights: {error}"
        ) from None
    positions = getattr(lm.config.get_text_config(), "max_position_embeddings", None)
    needed = params.max_history + (SLATE_ROOM if params.generation == "autoregressive" else 0)
    if positions is not None and positions < needed:
        raise UserError(
            f"policy.max_history: {params.max_history} (plus room for a slate with generation: autoregressive) needs "
            f"{needed} positions, more than '{name}' reads ({positions})"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    # GRPO's token prompts part history and candidates with a separator; item tokens never merge with text.
    tokenizer.add_special_tokens({"sep_token": "<|candidates|>"})
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
            old = weight[:first]
            weight[first:] = old.mean(0) + old.std(0) * torch.randn_like(weight[first:])


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
