"""Run by every process of `test_sharding.py`: trainings with the blocks' weights spread over the processes."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from rl4rec.data.dataset import PreparedData, load_prepared
from rl4rec.model.load import load_policy
from rl4rec.model.policy import SlatePolicy
from rl4rec.params import GRPOParams, PPOParams, SFTParams
from rl4rec.train.loop import Trainer
from rl4rec.train.sft import SFTTrainer
from tests.train.helpers import make_run, make_trainer, rl_params

# Batches that two processes cannot share evenly; PPO's mini-batches are often one process's alone.
PPO = PPOParams(learning_rate=5e-3, max_steps=3, batch_size=14, mini_batch_size=2, max_grad_norm=0.3)
GRPO = GRPOParams(
    learning_rate=5e-3, max_steps=3, batch_size=1, gradient_accumulation_steps=7, num_sample_generations=4
)
SFT = SFTParams(max_steps=3, batch_size=4, gradient_accumulation_steps=3, learning_rate=1e-3, precision="fp32")
NAMES = ("sft", "ppo, all", "grpo, body", "grpo, lora")

Rows = list[dict[str, float]]


def make(name: str, policy: SlatePolicy, data: PreparedData, rows: Rows) -> Trainer:
    """One of the trainings, validated after each step."""
    algorithm, _, trainable = name.partition(", ")
    if algorithm == "sft":
        trainer: Trainer = SFTTrainer(policy, data, SFT, make_run(data, rows))
        trainer._eval_every = 1
        return trainer
    settings = {"trainable": trainable, "ppo": PPO, "grpo": GRPO, "eval_every": 1, "logging_steps": 1}
    made: Trainer = make_trainer(algorithm, policy, data, rl_params(**settings), rows)
    return made


def trained(trainer: Trainer) -> dict[str, torch.Tensor]:
    """The weights that train."""
    return {name: weight.detach().cpu().clone() for name, weight in trainer.policy.named_parameters()}


def main(folder: Path) -> None:
    """Train all of them, one also interrupted and resumed; process 0 writes what came out."""
    data = load_prepared(folder / "data/prepared")
    found: dict[str, torch.Tensor] = {}
    for name in (*NAMES, "ppo, all, resumed"):
        rows: Rows = []
        kind = name.removesuffix(", resumed")
        checkpoints = folder / "checkpoints" / kind
        if kind != name:
            first = make(kind, load_policy(folder / "start"), data, [])
            first.total_steps = 2
            first.train(checkpoints=checkpoints, digest="run")
        trainer = make(kind, load_policy(folder / "start"), data, rows)
        blocks = list(trainer.policy.lm.base_model.h.parameters())
        held = sum(weight.to_local().numel() for weight in blocks) / sum(weight.numel() for weight in blocks)
        trainer.train(checkpoints=None if kind == name else checkpoints, digest="run")
        found |= {f"{name}/{key}": weight for key, weight in trained(trainer).items()}
        found[f"{name}/held"] = torch.tensor(held)
        found[f"{name}/log"] = torch.tensor([row["train/grad_norm"] for row in rows if "train/grad_norm" in row])
    if trainer.accelerator.is_main_process:
        save_file(found, folder / "found.safetensors")
    trainer.accelerator.wait_for_everyone()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
