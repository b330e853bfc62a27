"""Saved policies. One that somebody else may have made is read with checks, and nothing of it is run.

A folder of a policy is `config.json` (numbers and names), `model.safetensors` (numbers) and the tokenizer's JSON.
Whatever would make transformers fetch or run something else is refused: weights in pickle form, code of the
folder's own (`auto_map`), an adapter that names another model.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from rl4rec._io import read_json
from rl4rec.errors import UserError, listed, shown
from rl4rec.model.policy import SlatePolicy

_REFUSED_FILES = ("adapter_config.json", "model.safetensors.index.json")
_REFUSED_KEYS = ("auto_map", "quantization_config", "custom_pipelines")


def load_policy(folder: Path, *, then: str = "Replace it by a whole copy.") -> SlatePolicy:
    """A saved policy, in evaluation mode on the CPU.

    Args:
        folder: what `SlatePolicy.save_pretrained` wrote.
        then: what to do where it is damaged, for the message.

    Raises:
        UserError: a file is missing or damaged, weights are missing or of other shapes, or the folder asks for code.
    """
    config = read_json(folder / "config.json", then=then)
    problem = next(_problems(folder, config), None)
    if problem:
        raise UserError(f"{folder}: {problem}. {then}")
    transformers_logging.disable_progress_bar()
    try:
        policy: SlatePolicy
        policy, loading = SlatePolicy.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    except Exception as error:  # transformers, safetensors and torch raise whatever they stumble over
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{folder}: cannot be read as a policy ({type(error).__name__}: {reason}). {then}") from None
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if loading.get(what):  # transformers would go on, with random weights in their place
            names = listed(sorted(map(str, loading[what])))
            raise UserError(f"{folder / 'model.safetensors'}: {what.replace('_', ' ')}: {names}. {then}")
    if len(policy.item_embeddings()) != policy.num_items:
        rows = len(policy.item_embeddings())
        raise UserError(f"{folder}: config.json names {policy.num_items} items, the weights have {rows}. {then}")
    with torch.no_grad():
        for weight in policy.parameters():
            weight.data = weight.data.clone()  # where a file puts them in memory changes the last bit of products
    torch.nn.Module.train(policy, False)
    return policy


def weights_digest(folder: Path) -> str:
    """Digest of a policy folder's weights and configuration."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), folder / "config.json"]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def policy_digest(policy: SlatePolicy) -> str:
    """Digest of a policy's weights in memory."""
    digest = hashlib.sha256(policy.config.to_json_string().encode())
    for _, weight in policy.named_parameters():
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def save_policy(policy: SlatePolicy, folder: Path) -> None:
    """Save a policy's weights and configuration, replacing the folder in one step."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    transformers_logging.disable_progress_bar()
    policy.save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _problems(folder: Path, config: dict[str, Any]) -> Iterator[str]:
    for name in _REFUSED_FILES:
        if (folder / name).exists():
            yield f"{name} is not part of a policy: it may name other files or models"
    weights = folder / "model.safetensors"
    if not weights.is_file():
        yield "no model.safetensors (weights in pickle form, such as pytorch_model.bin, are never read)"
    try:
        weights.open("rb").close()
    except OSError as error:  # safetensors calls a file that may not be read one that is not there
        yield f"model.safetensors: {error.strerror or error}"
    if config.get("model_type") != "slate_policy":
        yield f"config.json: model_type: expected 'slate_policy', got {shown(config.get('model_type'))}"
    inner = config.get("lm_config")
    if not isinstance(inner, dict) or not isinstance(inner.get("model_type"), str):
        yield f"config.json: lm_config: expected the settings of a language model, got {shown(inner)}"
        return
    for key in _REFUSED_KEYS:
        if key in config or key in inner:
            yield f"config.json: '{key}' is not supported: a policy is numbers, not code"
    for key, least in (("num_items", 1), ("item_offset", 0), ("max_history", 1)):
        number = config.get(key)
        if not isinstance(number, int) or isinstance(number, bool) or not least <= number < 2**31:
            yield f"config.json: {key}: expected a whole number from {least}, got {shown(number)}"
    positions = inner.get("n_positions") or inner.get("max_position_embeddings")
    if isinstance(positions, int) and config["max_history"] > positions:
        yield f"config.json: max_history: {config['max_history']} is more than the {positions} positions of the model"
    if type(config.get("mask_seen")) is not bool:
        yield f"config.json: mask_seen: expected true or false, got {shown(config.get('mask_seen'))}"
    for key, known in (("generation", ("slate", "autoregressive")), ("score", ("dot", "cosine"))):
        if config.get(key) not in known:
            yield f"config.json: {key}: expected one of {', '.join(known)}, got {shown(config.get(key))}"
    temperature = config.get("score_temperature")
    if not isinstance(temperature, int | float) or isinstance(temperature, bool) or not 0 < temperature <= 100:
        yield f"config.json: score_temperature: expected a number above 0, got {shown(temperature)}"
