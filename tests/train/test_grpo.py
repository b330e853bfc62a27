"""GRPO on TRL: token prompts, the shared distribution, the loss's gradient, learning, resuming."""

import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
import trl
from transformers import PreTrainedTokenizerBase
from trl import GRPOTrainer

from rl4rec.data.dataset import PreparedData
from rl4rec.metrics import slate_gains
from rl4rec.model.policy import SlatePolicy
from rl4rec.params import GRPOParams, RLParams
from rl4rec.train.grpo import SlateGRPOTrainer, build_grpo, grpo_steps, train_grpo
from rl4rec.train.prompts import PromptSet
from rl4rec.train.seeding import seed_everything
from rl4rec.train.token_prompts import place_in_group, prompt_texts, read_prompts
from tests.train.helpers import make_monitor, raises_interrupted, rl_params, same_weights


@pytest.fixture
def sft_folder(tiny_policy: SlatePolicy, tmp_path: Path) -> Path:
    tiny_policy.save_pretrained(tmp_path / "sft")
    return tmp_path / "sft"


def trainer_for(
    sft: Path, tokenizer: PreTrainedTokenizerBase, data: PreparedData, rl: RLParams, folder: Path
) -> SlateGRPOTrainer:
    seed_everything(0)
    return build_grpo(sft, tokenizer, data, rl, make_monitor(data, folder / "best", []), checkpoints=folder / "ck")


def test_prompts_survive_the_way_through_text_and_padding(
    tiny_policy: SlatePolicy, tiny_data: PreparedData, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    batch = PromptSet(tiny_data, max_history=8, seed=0).visit(0, 6)
    texts = prompt_texts(batch, tiny_tokenizer, tiny_policy)
    tokens = tiny_tokenizer([texts[i] for i in (3, 0, 3, 5)], padding=True, return_tensors="pt")["input_ids"]
    read = read_prompts(tokens, tiny_policy)
    assert len(read.targets) == 3
    for row, prompt in enumerate((3, 0, 3, 5)):
        own = int(read.rows[row])
        length = int(read.histories.lengths[own])
        assert read.histories.items[own, :length].tolist() == batch.histories[prompt].tolist()
        assert (read.histories.items[own, length:] == -1).all()
        assert int(read.targets[own]) == batch.targets[prompt]
        assert int(read.seeds[own]) == batch.seeds[prompt]


def test_place_in_group() -> None:
    assert place_in_group(torch.tensor([0, 1, 0, 0, 1, 2])).tolist() == [0, 0, 1, 2, 1, 0]


@pytest.mark.parametrize("generation", ["slate", "autoregressive"])
@pytest.mark.parametrize("source", ["uniform", "popularity", "full"])
def test_recomputed_log_probs_are_those_of_the_sampled_slates(
    sft_folder: Path,
    tiny_data: PreparedData,
    tiny_tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    source: str,
    generation: str,
) -> None:
    """Rollout through TRL, then log-probabilities through TRL: each row equals the policy's own, alone."""
    rl = rl_params(candidates={"source": source, "negatives": 8})
    trainer = trainer_for(sft_folder, tiny_tokenizer, tiny_data, rl, tmp_path)
    policy = trainer.model
    policy.config.generation = generation
    rows = [trainer.train_dataset[i] for i in (0, 0, 0, 0, 1, 1, 1, 1)]
    policy.train()
    batch = trainer._generate_and_score_completions(rows)
    tokens = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    log_probs, entropy, _ = trainer._get_per_token_logps_and_entropies(policy, tokens, mask, 3, compute_entropy=True)
    assert log_probs.shape == entropy.shape == (8, 3)

    prompts = PromptSet(tiny_data, max_history=8, seed=0).visit(0, 2)
    slates = batch["completion_ids"] - policy.config.item_offset
    for row in range(8):
        prompt = row // 4
        history = policy.pad_histories([prompts.histories[prompt]])
        target = torch.tensor([int(prompts.targets[prompt])])
        seed = torch.tensor([int(prompts.seeds[prompt])])
        support = policy.support(history, policy.rule.candidates(history, target, seed))
        assert support.mask[0, support.positions(slates[row].view(1, 1, 3)).flatten()].all()
        own = policy.log_probs(history, support, slates[row].view(1, 1, 3)).log_probs[0, 0]
        assert torch.allclose(log_probs[row], own, atol=1e-5)
    rewards = slate_gains(slates, torch.from_numpy(np.repeat(prompts.targets, 4))).sum(-1)
    centred = rewards.view(2, 4) - rewards.view(2, 4).mean(1, keepdim=True)
    assert torch.allclose(batch["advantages"].view(2, 4), centred, atol=1e-5)


def test_gradient_of_a_step_is_the_policy_gradient(
    sft_folder: Path, tiny_data: PreparedData, tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """dr_grpo without scaling: the gradient of -(1 / nk) sum of advantage times log-probability."""
    rl = rl_params(sft_coef=0.3)
    trainer = trainer_for(sft_folder, tiny_tokenizer, tiny_data, rl, tmp_path)
    policy = trainer.model
    policy.train()
    rows = [trainer.train_dataset[i] for i in range(4) for _ in range(4)]
    batch = trainer._generate_and_score_completions(rows)
    trainer.current_gradient_accumulation_steps = 1
    trainer.compute_loss(policy, batch).backward()
    ours = {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}
    policy.zero_grad()

    prompts = PromptSet(tiny_data, max_history=8, seed=0).visit(0, 4)
    histories = policy.pad_histories(prompts.histories)
    targets, seeds = torch.from_numpy(prompts.targets), torch.from_numpy(prompts.seeds)
    candidates = policy.rule.candidates(histories, targets, seeds)
    slates = (batch["completion_ids"] - policy.config.item_offset).view(4, 4, 3)
    output = policy(histories=histories, candidates=candidates, slates=slates, targets=targets)
    loss = -(batch["advantages"].view(4, 4, 1) * output.log_probs).sum() / (16 * 3) + 0.3 * output.target_loss
    loss.backward()
    for name, parameter in policy.named_parameters():
        assert torch.allclose(ours[name], parameter.grad, atol=1e-6), name


def test_learns_and_logs_under_our_names(
    sft_folder: Path, tiny_data: PreparedData, tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    rl = rl_params(
        grpo=GRPOParams(batch_size=16, num_sample_generations=8, learning_rate=1e-2, temperature=1.0, max_steps=40),
        eval_every=20,
    )
    rows: list[dict[str, float]] = []
    seed_everything(0)
    monitor = make_monitor(tiny_data, tmp_path / "best", rows)
    train_grpo(sft_folder, tiny_tokenizer, tiny_data, rl, monitor, checkpoints=tmp_path / "ck", digest="d")
    train = [row for row in rows if "train/reward" in row]
    assert np.mean([row["train/reward"] for row in train[-3:]]) > 1.3 * train[0]["train/reward"]
    expected = {
        "reward", "hit_share", "no_signal_share", "kl", "entropy", "clip_fraction", "grad_norm", "loss",
        "learning_rate", "slates_per_second", "peak_memory_mb",
    }  # fmt: skip
    assert {f"train/{name}" for name in expected} <= train[0].keys()
    assert train[0]["train/kl"] < train[-1]["train/kl"]
    assert rows[-1]["summary"] and rows[-1]["samples"] == 40 * 128
    assert [row["step"] for row in rows if "valid/full/ndcg@3" in row] == [0, 20, 40]


def test_kl_penalty_holds_the_policy_back(
    sft_folder: Path, tiny_data: PreparedData, tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    last = {}
    for kl_coef in (0.0, 5.0):
        rl = rl_params(
            grpo=GRPOParams(
                batch_size=16,
                num_sample_generations=8,
                learning_rate=1e-2,
                temperature=1.0,
                max_steps=12,
                kl_coef=kl_coef,
            )
        )
        rows: list[dict[str, float]] = []
        folder = tmp_path / str(kl_coef)
        seed_everything(0)
        monitor = make_monitor(tiny_data, folder / "best", rows)
        train_grpo(sft_folder, tiny_tokenizer, tiny_data, rl, monitor, checkpoints=folder / "ck", digest="d")
        last[kl_coef] = [row["train/kl"] for row in rows if "train/kl" in row][-1]
    assert last[5.0] < last[0.0] / 2


def test_resumed_equals_uninterrupted(
    sft_folder: Path, tiny_data: PreparedData, tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    def run(name: str, interrupt_at: int | None = None) -> list[dict[str, float]]:
        rows: list[dict[str, float]] = []
        folder = tmp_path / name
        seed_everything(0)
        monitor = make_monitor(tiny_data, folder / "best", rows, interrupt_at=interrupt_at)
        train_grpo(sft_folder, tiny_tokenizer, tiny_data, rl_params(), monitor, checkpoints=folder / "ck", digest="d")
        return rows

    whole = run("whole")
    assert raises_interrupted(lambda: run("cut", interrupt_at=6))
    resumed = run("cut")
    assert same_weights(tmp_path / "whole/best", tmp_path / "cut/best")
    rewards = [[row["train/reward"] for row in rows if "train/reward" in row] for rows in (whole, resumed)]
    assert rewards[0] == rewards[1]


def test_length_by_steps_epochs_or_budget() -> None:
    rl = rl_params(num_slates=6400)
    base = {"batch_size": 8, "num_sample_generations": 4, "gradient_accumulation_steps": 2}  # 64 slates a step
    assert grpo_steps(rl, GRPOParams(**base), prompts=100) == 100
    assert grpo_steps(rl, GRPOParams(**base, num_iterations=3), prompts=100) == 300
    assert grpo_steps(rl, GRPOParams(**base, num_epochs=2), prompts=160) == 20  # 320 prompts, 16 a step
    assert grpo_steps(rl, GRPOParams(**base, num_epochs=2, max_steps=7), prompts=160) == 7
    assert grpo_steps(rl, GRPOParams(**base), prompts=100, world=2) == 50


def test_what_this_project_relies_on_in_trl_1_16() -> None:
    """If this fails after an upgrade, read `rl4rec/train/grpo.py` against the new GRPOTrainer."""
    assert trl.__version__.startswith("1.16.")
    signature = inspect.signature(GRPOTrainer._get_per_token_logps_and_entropies)
    assert list(signature.parameters)[:8] == [
        "self", "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size", "compute_entropy",
        "compute_aux_loss",
    ]  # fmt: skip
    loss = inspect.getsource(GRPOTrainer._compute_loss)
    assert "compute_aux_loss=self.aux_loss_enabled" in loss
    assert "loss = loss + self.router_aux_loss_coef * aux_loss / normalizer" in loss
    assert "if self.beta != 0.0:" in loss
    scoring = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    assert "if self.ref_model is not None:" in scoring
    rollout = inspect.getsource(GRPOTrainer._generate_single_turn)
    assert "prompt_completion_ids[:, prompt_length:]" in rollout and 'padding_side="left"' in rollout
