"""GRPO's advantages, losses and gradients against TRL's GRPOTrainer, run as its users run it: the oracle.

TRL trains a tiny GPT-2 that writes four tokens per prompt. A callback catches the gradients of every update before they
are used. From the same completions and rewards the project's functions must give the same gradients: of what is
maximised, of all of TRL's loss types that are one number here, of the KL and entropy terms, with ratios away from 1.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from rl4rec.train.losses import cispo_loss, clipped_surrogate, group_advantages, kl_estimate, kl_penalty

WORDS, LENGTH, GROUP, PROMPTS = 16, 4, 3, 4
TEMPERATURE = 0.7


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny untrained GPT-2 with opinions, and its tokenizer."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("gpt2")
    config = GPT2Config(
        vocab_size=WORDS + 2, n_positions=32, n_embd=16, n_layer=1, n_head=2,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=WORDS, eos_token_id=WORDS, pad_token_id=WORDS + 1,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        model.lm_head.weight[WORDS:] = 0.0
        model.transformer.wte.weight[WORDS:] = 0.0
    model.generation_config.min_new_tokens = LENGTH  # no completion ends early: slates have a fixed length too
    model.save_pretrained(folder)
    vocabulary = {f"w{word}": word for word in range(WORDS)} | {"<end>": WORDS, "<pad>": WORDS + 1}
    words = Tokenizer(WordLevel(vocabulary, unk_token="<end>"))
    words.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="<end>", pad_token="<pad>", padding_side="left"
    ).save_pretrained(folder)
    return folder


class Watch(TrainerCallback):
    """The gradients of each update, before the optimizer uses them."""

    def __init__(self) -> None:
        self.gradients: list[dict[str, Tensor]] = []
        self.weights: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(self, *_: object, model: torch.nn.Module, **__: object) -> None:
        named = dict(model.named_parameters())
        self.gradients.append({name: p.grad.clone() for name, p in named.items() if p.grad is not None})
        self.weights.append({name: p.detach().clone() for name, p in named.items()})


def run_trl(start: Path, folder: Path, **settings: object) -> tuple[Watch, list[list[int]], list[list[int]], Tensor]:
    """One rollout of TRL with its updates: gradients, prompts, completions and rewards (b, g)."""
    seen: list[tuple[list[list[int]], list[list[int]], list[float]]] = []
    tokenizer = PreTrainedTokenizerFast.from_pretrained(start)

    def reward(prompts: list[str], completion_ids: list[list[int]], **_: object) -> list[float]:
        values = [sum(ids) / 10 + (ids[0] == ids[1]) for ids in completion_ids]
        seen.append(([tokenizer(prompt)["input_ids"] for prompt in prompts], completion_ids, values))
        return values

    values: dict[str, Any] = {
        "output_dir": str(folder), "per_device_train_batch_size": PROMPTS * GROUP, "num_generations": GROUP,
        "max_completion_length": LENGTH, "max_steps": 1, "learning_rate": 0.0, "max_grad_norm": 1e9,
        "temperature": TEMPERATURE, "top_k": 0, "top_p": 1.0, "beta": 0.0, "loss_type": "grpo", "scale_rewards": "none",
        "epsilon": 0.2, "epsilon_high": None, "entropy_coef": 0.0, "bf16": False, "activation_checkpointing": False,
        "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "logging_strategy": "no", "seed": 3,
        "mask_truncated_completions": False, "dataloader_pin_memory": False,
        "optim": "sgd", "lr_scheduler_type": "constant", "shuffle_dataset": False,
    }  # fmt: skip
    watch = Watch()
    prompts = [f"w{first} w{first + 3} w{first + 5}" for first in range(PROMPTS)]
    trainer = GRPOTrainer(
        model=str(start), reward_funcs=[reward], args=GRPOConfig(**values | settings), processing_class=tokenizer,
        train_dataset=Dataset.from_dict({"prompt": prompts}), callbacks=[watch],
    )  # fmt: skip
    trainer.train()
    prompt_ids, completions, rewards = seen[0]
    assert {len(ids) for ids in completions} == {LENGTH}
    return watch, prompt_ids, completions, torch.tensor(rewards).view(PROMPTS, GROUP)


def log_probs_of(
    model: GPT2LMHeadModel, prompts: list[list[int]], completions: list[list[int]]
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies of the completions' tokens by their definition, (b, g, LENGTH) each."""
    tokens = torch.tensor([[*prompt, *ids] for prompt, ids in zip(prompts, completions, strict=True)])
    logits = model(tokens).logits[:, -LENGTH - 1 : -1] / TEMPERATURE
    log_q = torch.log_softmax(logits, -1)
    taken = log_q.gather(-1, tokens[:, -LENGTH:].unsqueeze(-1)).squeeze(-1)
    return taken.view(PROMPTS, GROUP, LENGTH), -(log_q.exp() * log_q).sum(-1).view(PROMPTS, GROUP, LENGTH)


def gradients_of(model: GPT2LMHeadModel, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    largest = max(float(gradient.abs().max()) for gradient in theirs.values())
    assert largest > 1e-3
    for name, gradient in ours.items():
        assert torch.allclose(gradient, theirs[name], atol=2e-6 * max(1.0, largest), rtol=1e-4), name


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo", "bnpo"])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_all_loss_types_of_completions_of_one_length_are_one_number(
    start: Path, tmp_path: Path, loss_type: str, scale: str
) -> None:
    watch, prompts, completions, rewards = run_trl(start, tmp_path, loss_type=loss_type, scale_rewards=scale)
    model = GPT2LMHeadModel.from_pretrained(start)
    log_probs, _ = log_probs_of(model, prompts, completions)
    advantages = group_advantages(rewards, scale).unsqueeze(-1)  # type: ignore[arg-type]
    loss, outside = clipped_surrogate(log_probs, log_probs.detach(), advantages, low=0.2, high=0.2)
    assert_same(gradients_of(model, loss.mean()), watch.gradients[0])
    assert not outside.any()


def test_kl_and_entropy_terms(start: Path, tmp_path: Path) -> None:
    """In the second update of a rollout, where the policy has left the reference."""
    settings = {"beta": 0.3, "entropy_coef": 0.05, "num_iterations": 2, "max_steps": 2, "learning_rate": 0.05}
    watch, prompts, completions, rewards = run_trl(start, tmp_path, **settings)
    reference = GPT2LMHeadModel.from_pretrained(start)
    old = log_probs_of(reference, prompts, completions)[0].detach()
    advantages = group_advantages(rewards, "none").unsqueeze(-1)
    for weights, theirs in zip(watch.weights, watch.gradients, strict=True):
        model = copy.deepcopy(reference)
        model.load_state_dict(weights, strict=False)
        log_probs, entropy = log_probs_of(model, prompts, completions)
        slots, _ = clipped_surrogate(log_probs, old, advantages, low=0.2, high=0.2)
        loss = (slots + 0.3 * kl_penalty(log_probs, old, old)).mean() - 0.05 * entropy.mean()
        assert_same(gradients_of(model, loss), theirs)
    assert float(kl_estimate(log_probs.detach(), old).mean()) > 1e-3


@pytest.mark.parametrize(
    ("loss_type", "bound"), [("grpo", None), ("grpo", 0.05), ("cispo", 1.02)], ids=["grpo", "higher", "cispo"]
)
def test_the_second_update_of_a_rollout_clips_alike(
    start: Path, tmp_path: Path, loss_type: str, bound: float | None
) -> None:
    settings = {"num_iterations": 2, "max_steps": 2, "learning_rate": 0.2, "loss_type": loss_type}
    watch, prompts, completions, rewards = run_trl(start, tmp_path, **settings, epsilon_high=bound)
    model = GPT2LMHeadModel.from_pretrained(start)
    old = log_probs_of(model, prompts, completions)[0].detach()
    model.load_state_dict(watch.weights[1], strict=False)
    log_probs, _ = log_probs_of(model, prompts, completions)
    advantages = group_advantages(rewards, "none").unsqueeze(-1)
    if loss_type == "cispo":
        slots, outside = cispo_loss(log_probs, old, advantages, max_ratio=bound or 0.0)
    else:
        slots, outside = clipped_surrogate(log_probs, old, advantages, low=0.2, high=bound or 0.2)
    assert 0.1 < float(outside.double().mean()) < 0.9
    assert_same(gradients_of(model, slots.mean()), watch.gradients[1])
