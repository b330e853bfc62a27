"""Training speed and memory against stock TRL on the same model and data: `python benchmarks/training.py`.

A GPT-2 of one layer, width 64, over 12,101 made-up items (the size of Amazon Beauty). Each variant runs in a process of
its own, in turns, so that peak memory is its own and a busy machine slows all alike; medians over rounds.

- SFT: our SFT step against TRL's SFTTrainer as it comes (GPT2LMHeadModel, fused head over the whole vocabulary).
- GRPO: our step against TRL's GRPOTrainer as it comes (generates item tokens one by one), slates of 10.
- Rollouts: slates from one forward pass against the same policy's autoregressive route.
- PPO: our step (no peer: TRL removed its PPOTrainer), for the cost of a step against GRPO's.

Writes `benchmarks/results/training.json`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase, Trainer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from rl4rec.cross_entropy import fast_matmul_dtype
from rl4rec.data.prepared import PreparedData, Ragged
from rl4rec.data.vocabulary import ITEM_OFFSET, build_tokenizer
from rl4rec.params import CandidateParams, GRPOParams, PolicyParams, PPOParams, RLParams, SFTParams
from rl4rec.policy import SlatePolicy
from rl4rec.policy_init import create_policy
from rl4rec.rl.prompts import PromptSet
from rl4rec.trainers.grpo import build_grpo
from rl4rec.trainers.monitor import Monitor, peak_memory_mb
from rl4rec.trainers.ppo import PPOTrainer
from rl4rec.trainers.sft import SlateSFTTrainer, next_item_batch, sft_arguments, windows

RESULTS = Path(__file__).parent / "results" / "training.json"
ITEMS, USERS, SLATE = 12_101, 6_000, 10
POLICY = PolicyParams(n_layer=1, n_embd=64, n_head=1, dropout=0.2, max_history=50)
SFT = SFTParams(batch_size=256)


def made_up_data() -> PreparedData:
    """Sequences as long as Beauty's (5 and more, 8.9 on average) over skewed items."""
    rng = np.random.default_rng(0)
    lengths = np.minimum(5 + rng.geometric(0.2, USERS) - 1, 200)
    rows = [(ITEMS * rng.random(length) ** 2).astype(np.int64) for length in lengths]
    sequences = Ragged.from_rows(rows)
    return PreparedData(
        folder=Path("made-up"),
        users=[str(user) for user in range(USERS)],
        item_ids=[f"i{item}" for item in range(ITEMS)],
        item_counts=np.bincount(sequences.values, minlength=ITEMS).astype(np.int64),
        sequences=sequences,
        stats={"data_hash": "made-up"},
    )


class StepClock(TrainerCallback):
    """Seconds of every optimizer step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._since = 0.0

    def on_step_begin(self, *_: object, **__: object) -> None:
        self._since = time.perf_counter()

    def on_step_end(self, *_: object, **__: object) -> None:
        self.seconds.append(time.perf_counter() - self._since)


def timed(trainer: Trainer, skip: int) -> float:
    """Median seconds of a step, the first ones left out."""
    clock = StepClock()
    trainer.add_callback(clock)
    trainer.train()
    return statistics.median(clock.seconds[skip:])


def plain_model() -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=ITEM_OFFSET + ITEMS, n_positions=128, n_embd=64, n_layer=1, n_head=1,
        resid_pdrop=0.2, embd_pdrop=0.2, attn_pdrop=0.2, bos_token_id=2, eos_token_id=3, pad_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def sft_data(data: PreparedData) -> list[list[int]]:
    cut = windows(data.train_sequences(), POLICY.max_history + 1)
    np.random.default_rng(0).shuffle(cut)
    return cut


def sft_ours(data: PreparedData, tokenizer: PreTrainedTokenizerBase, folder: Path) -> dict[str, float]:
    policy, _ = create_policy(POLICY, data.item_ids, tokenizer)
    cut = sft_data(data)
    arguments = sft_arguments(SFT.model_copy(update={"max_steps": 16}), folder, steps_per_epoch=1000)
    policy.matmul_dtype = fast_matmul_dtype(SFT.precision, arguments.device)
    trainer = SlateSFTTrainer(
        model=policy, args=arguments, train_dataset=Dataset.from_dict({"input_ids": cut}), processing_class=tokenizer,
        data_collator=next_item_batch,
    )  # fmt: skip
    tokens = 256 * np.mean([len(items) - 1 for items in cut])
    return {"tokens_per_s": float(tokens / timed(trainer, 4))}


def sft_trl(data: PreparedData, tokenizer: PreTrainedTokenizerBase, folder: Path) -> dict[str, float]:
    cut = sft_data(data)
    rows = [[item + ITEM_OFFSET for item in items] for items in cut]
    arguments = SFTConfig(
        output_dir=str(folder), per_device_train_batch_size=256, max_steps=8, learning_rate=2e-3, bf16=False,
        activation_checkpointing=False, report_to="none", save_strategy="no", disable_tqdm=True, max_length=64,
        logging_strategy="no",
    )  # fmt: skip
    trainer = SFTTrainer(
        model=plain_model(), args=arguments, train_dataset=Dataset.from_dict({"input_ids": rows}),
        processing_class=tokenizer,
    )  # fmt: skip
    tokens = 256 * np.mean([len(items) - 1 for items in cut])
    return {"tokens_per_s": float(tokens / timed(trainer, 2))}


def rl_settings(**changes: object) -> RLParams:
    values: dict[str, object] = {
        "k": SLATE,
        "candidates": CandidateParams(negatives=500),
        "eval_every": 10_000,
        "logging_steps": 10_000,
        "grpo": GRPOParams(batch_size=64, num_sample_generations=16, max_steps=12),
        "ppo": PPOParams(batch_size=1024, mini_batch_size=512, ppo_epochs=2, max_steps=12),
    }
    return RLParams.model_validate(values | changes)


def warm_start(data: PreparedData, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
    policy, _ = create_policy(POLICY, data.item_ids, tokenizer)
    policy.save_pretrained(folder / "start")
    return folder / "start"


def silent_monitor(folder: Path) -> Monitor:
    return Monitor(validate=lambda _: {"none": 0.0}, metric="none", report=lambda _: None, best_folder=folder / "best")


def grpo_ours(data: PreparedData, tokenizer: PreTrainedTokenizerBase, folder: Path) -> dict[str, float]:
    start = warm_start(data, tokenizer, folder)
    trainer = build_grpo(start, tokenizer, data, rl_settings(), silent_monitor(folder), checkpoints=folder / "ck")
    return {"slates_per_s": 64 * 16 / timed(trainer, 3)}


def grpo_trl(data: PreparedData, tokenizer: PreTrainedTokenizerBase, folder: Path) -> dict[str, float]:
    prompts = PromptSet(data, max_history=50, seed=0).visit(0, 64)
    texts = [tokenizer.decode((history + ITEM_OFFSET).tolist()) for history in prompts.histories]
    targets = [ITEM_OFFSET + int(target) for target in prompts.targets]
    arguments = GRPOConfig(
        output_dir=str(folder), per_device_train_batch_size=8 * 16, num_generations=16, max_completion_length=SLATE,
        max_steps=3, learning_rate=5e-4, bf16=False, activation_checkpointing=False, report_to="none",
        save_strategy="no", disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip

    def hit(completion_ids: list[list[int]], target: list[int], **_: object) -> list[float | None]:
        return [float(t in ids) for ids, t in zip(completion_ids, target, strict=True)]

    trainer = GRPOTrainer(
        model=plain_model(), reward_funcs=[hit], args=arguments, processing_class=tokenizer,
        train_dataset=Dataset.from_dict({"prompt": texts, "target": targets}),
    )  # fmt: skip
    return {"slates_per_s": 8 * 16 / timed(trainer, 1)}


def ppo_ours(data: PreparedData, tokenizer: PreTrainedTokenizerBase, folder: Path) -> dict[str, float]:
    policy = SlatePolicy.from_pretrained(warm_start(data, tokenizer, folder))
    trainer = PPOTrainer(policy, data, rl_settings(), silent_monitor(folder), folder / "ck")
    seconds = []
    for step in range(8):
        since = time.perf_counter()
        rollout, _ = trainer.rollout(step, measure_kl=False)
        trainer.update(rollout, step)
        seconds.append(time.perf_counter() - since)
    return {"slates_per_s": 1024 / statistics.median(seconds[2:])}


def rollouts(generation: str, num_slates: int) -> Callable[..., dict[str, float]]:
    def run(data: PreparedData, tokenizer: PreTrainedTokenizerBase, folder: Path) -> dict[str, float]:
        policy, _ = create_policy(POLICY.model_copy(update={"generation": generation}), data.item_ids, tokenizer)
        histories = policy.pad_histories(PromptSet(data, max_history=50, seed=0).visit(0, 32).histories)
        support = policy.support(histories)
        seconds = []
        for _ in range(5):
            since = time.perf_counter()
            policy.sample(histories, support, num_slates=num_slates, k=SLATE)
            seconds.append(time.perf_counter() - since)
        return {"slates_per_s": 32 * num_slates / statistics.median(seconds[1:])}

    return run


VARIANTS: dict[str, Callable[[PreparedData, PreTrainedTokenizerBase, Path], dict[str, float]]] = {
    "sft": sft_ours,
    "sft_trl": sft_trl,
    "grpo": grpo_ours,
    "grpo_trl": grpo_trl,
    "ppo": ppo_ours,
    "rollouts": rollouts("slate", 16),
    "rollouts_autoregressive": rollouts("autoregressive", 16),
}


def run_variant(name: str) -> None:
    torch.manual_seed(0)
    data = made_up_data()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        before = peak_memory_mb()
        result = VARIANTS[name](data, build_tokenizer(data.item_ids), Path(folder))
    result |= {"peak_memory_mb": peak_memory_mb(), "added_memory_mb": round(peak_memory_mb() - before, 1)}
    sys.stdout.write(json.dumps(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", choices=list(VARIANTS), help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.variant:
        run_variant(arguments.variant)
        return
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    for _ in range(arguments.rounds):
        for name in VARIANTS:
            command = [sys.executable, __file__, "--variant", name]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            runs[name].append(json.loads(done.stdout))
    medians = {
        name: {key: round(statistics.median(run[key] for run in each), 1) for key in each[0]}
        for name, each in runs.items()
    }
    speed = {name: values.get("tokens_per_s", values.get("slates_per_s", 0.0)) for name, values in medians.items()}
    added = {name: values["added_memory_mb"] for name, values in medians.items()}
    result = {
        "ratio": {
            "sft_tokens_per_s_vs_trl": round(speed["sft"] / speed["sft_trl"], 2),
            "sft_added_memory_vs_trl": round(added["sft"] / added["sft_trl"], 2),
            "grpo_slates_per_s_vs_trl": round(speed["grpo"] / speed["grpo_trl"], 1),
            "rollout_slates_per_s_vs_autoregressive": round(speed["rollouts"] / speed["rollouts_autoregressive"], 1),
            "grpo_slates_per_s_vs_ppo": round(speed["grpo"] / speed["ppo"], 2),
        },
        "median": medians,
        "rounds": arguments.rounds,
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "torch": torch.__version__},
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps(result["ratio"], indent=2) + "\n")


if __name__ == "__main__":
    main()
