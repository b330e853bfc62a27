"""Which weights RL may change: all of them, the body without the item embeddings, or low-rank adapters."""

from __future__ import annotations

import copy
from typing import Literal

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers.pytorch_utils import Conv1D

from rl4rec.model.policy import SlatePolicy
from rl4rec.params import LoraParams


def set_trainable(policy: SlatePolicy, trainable: Literal["all", "body", "lora"], lora: LoraParams) -> None:
    """Freeze what must not change, in place.

    `body` leaves out the token embeddings and the output layer (often one tied matrix): they hold most weights of a
    recommender and are what memorises training targets. `lora` freezes everything and adds adapters to every linear
    layer of the blocks (Hu et al. 2022).
    """
    match trainable:
        case "all":
            policy.requires_grad_(True)
        case "body":
            policy.requires_grad_(True)
            policy.get_input_embeddings().requires_grad_(False)
            policy.get_output_embeddings().requires_grad_(False)
        case "lora":
            policy.requires_grad_(False)
            config = LoraConfig(
                r=lora.r,
                lora_alpha=lora.alpha,
                target_modules="all-linear",
                bias="none",
                fan_in_fan_out=any(isinstance(module, Conv1D) for module in policy.modules()),  # GPT-2's layers
            )
            inject_adapter_in_model(config, policy.lm)


def frozen_copy(policy: SlatePolicy) -> SlatePolicy:
    """A copy in evaluation mode without gradients: the reference of the KL terms."""
    reference = copy.deepcopy(policy)
    reference.requires_grad_(False)
    reference.train(False)
    return reference


def without_adapters(policy: SlatePolicy) -> SlatePolicy:
    """The policy itself, or, if it carries adapters, a copy with the adapters merged into plain layers."""
    if not any(isinstance(module, BaseTunerLayer) for module in policy.modules()):
        return policy
    merged = copy.deepcopy(policy)
    for name, module in list(merged.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(merged.get_submodule(parent), child, module.get_base_layer())
    return merged
