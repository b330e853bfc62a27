"""Speed and memory of RL against stock TRL on the same model and data: `python benchmarks/rl.py`.

A GPT-2 of one layer, width 64, over 12,101 made-up items (the size of Amazon Beauty). Each variant runs in a process of
its own, in turns, so that peak memory is its own and a busy machine slows all alike; medians over rounds.

- GRPO: our step against TRL's GRPOTrainer as it comes (generates item tokens one by one), slates of 10.
- Rollouts: slates from one forward pass against the same policy's autoregressive route.
- PPO: our step with two passes over each rollout, also against TRL's GRPOTrainer (TRL removed its PPOTrainer), as many
  slates per step; `ppo_one_slate` draws one slate per prompt, which then has to pay for reading the history alone.

Writes `benchmarks/results/rl.json`.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from common import (
    POLICY,
    Numbers,
    made_up_data,
    median_peer_step,
    median_step,
    medians,
    now,
    plain_model,
    run_variant,
    save,
    silent_run,
)
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import GRPOConfig
from trl import GRPOTrainer as StockGRPOTrainer

from rl4rec.data.dataset import PreparedData
from rl4rec.data.vocabulary import ITEM_OFFSET, build_tokenizer
from rl4rec.model.create import create_policy
from rl4rec.params import CandidateParams, CrossfitParams, GRPOParams, PPOParams, RLParams
from rl4rec.train.grpo import GRPOTrainer
from rl4rec.train.log import peak_memory_mb
from rl4rec.train.ppo import PPOTrainer
from rl4rec.train.prompts import PromptSet

SLATE = 10


def rl_settings(**changes: object) -> RLParams:
    values: dict[str, object] = {
        "k": SLATE,
        "candidates": CandidateParams(negatives=500),
        "crossfit": CrossfitParams(split_points=0),
        "eval_every": 10_000,
        "logging_steps": 10_000,
        "grpo": GRPOParams(batch_size=64, num_sample_generations=16),
        "ppo": PPOParams(batch_size=64, num_sample_generations=16, mini_batch_size=64, ppo_epochs=2),
    }
    return RLParams.model_validate(values | changes)


def grpo_ours(data: PreparedData, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Numbers:
    policy, _ = create_policy(POLICY, data.item_ids, tokenizer)
    trainer = GRPOTrainer(policy, data, rl_settings(), silent_run())
    return {"slates_per_s": 64 * 16 / median_step(trainer, steps=12, skip=3)}


def grpo_trl(data: PreparedData, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Numbers:
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

    trainer = StockGRPOTrainer(
        model=plain_model(), reward_funcs=[hit], args=arguments, processing_class=tokenizer,
        train_dataset=Dataset.from_dict({"prompt": texts, "target": targets}),
    )  # fmt: skip
    return {"slates_per_s": 8 * 16 / median_peer_step(trainer, skip=1)}


def ppo(prompts: int, generations: int) -> Callable[..., Numbers]:
    def run(data: PreparedData, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Numbers:
        policy, _ = create_policy(POLICY, data.item_ids, tokenizer)
        rl = rl_settings()
        shape = {"batch_size": prompts, "num_sample_generations": generations, "mini_batch_size": min(prompts, 512)}
        rl = rl.model_copy(update={"ppo": rl.ppo.model_copy(update=shape)})
        trainer = PPOTrainer(policy, data, rl, silent_run())
        return {"slates_per_s": prompts * generations / median_step(trainer, steps=8, skip=2)}

    return run


def rollouts(generation: str, num_slates: int) -> Callable[..., Numbers]:
    def run(data: PreparedData, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Numbers:
        policy, _ = create_policy(POLICY.model_copy(update={"generation": generation}), data.item_ids, tokenizer)
        policy.to("cuda" if torch.cuda.is_available() else "cpu")
        histories = policy.pad_histories(PromptSet(data, max_history=50, seed=0).visit(0, 32).histories)
        support = policy.support(histories)
        seconds = []
        for _ in range(5):
            since = now()
            with torch.no_grad():
                states = policy.encode(histories)
            policy.sample(states, support, num_slates=num_slates, k=SLATE)
            seconds.append(now() - since)
        return {"slates_per_s": 32 * num_slates / statistics.median(seconds[1:])}

    return run


VARIANTS: dict[str, Callable[[PreparedData, PreTrainedTokenizerBase, Path], Numbers]] = {
    "grpo": grpo_ours,
    "grpo_trl": grpo_trl,
    "ppo": ppo(64, 16),
    "ppo_one_slate": ppo(1024, 1),
    "rollouts": rollouts("slate", 16),
    "rollouts_autoregressive": rollouts("autoregressive", 16),
}


def variant(name: str, folder: Path) -> Numbers:
    data = made_up_data()
    tokenizer = build_tokenizer(data.item_ids)
    before = peak_memory_mb()
    return VARIANTS[name](data, tokenizer, folder) | {"memory_before_mb": before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", choices=list(VARIANTS), help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.variant:
        run_variant(lambda folder: variant(arguments.variant, folder))
        return
    found = medians(__file__, list(VARIANTS), arguments.rounds)
    speed = {name: values["slates_per_s"] for name, values in found.items()}
    ratio = {
        "grpo_vs_stock_trl": round(speed["grpo"] / speed["grpo_trl"], 1),
        "ppo_vs_stock_trl": round(speed["ppo"] / speed["grpo_trl"], 1),
        "ppo_one_slate_vs_stock_trl": round(speed["ppo_one_slate"] / speed["grpo_trl"], 1),
        "rollout_slates_per_s_vs_autoregressive": round(speed["rollouts"] / speed["rollouts_autoregressive"], 1),
        "grpo_slates_per_s_vs_ppo": round(speed["grpo"] / speed["ppo"], 2),
    }
    save("rl", "step", ratio, {"median": found, "rounds": arguments.rounds})


if __name__ == "__main__":
    main()
