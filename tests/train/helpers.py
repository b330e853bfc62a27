"""Doubles and shortcuts for the trainers' tests."""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from rl4rec.data.dataset import PreparedData
from rl4rec.evaluation.validation import validate
from rl4rec.model.policy import SlatePolicy
from rl4rec.params import CandidateParams, CrossfitParams, GRPOParams, PPOParams, RLParams
from rl4rec.train.continued import ContinuedSFTTrainer
from rl4rec.train.grpo import GRPOTrainer
from rl4rec.train.log import RunLog
from rl4rec.train.loop import PromptTrainer
from rl4rec.train.ppo import PPOTrainer
from rl4rec.train.seeding import seed_everything

TRAINERS: dict[str, type[PromptTrainer]] = {
    "ppo": PPOTrainer,
    "grpo": GRPOTrainer,
    "sft_continued": ContinuedSFTTrainer,
}


class Interrupted(Exception):
    """Stands for a machine that goes away."""


def make_run(
    data: PreparedData, rows: list[dict[str, float]], *, interrupt_at: int | None = None, **changes: Any
) -> RunLog:
    """A run that validates for real, collects rows, and may break off at a step's log row."""

    def on_log(row: Mapping[str, float]) -> None:
        if row["step"] == interrupt_at and "train/loss" in row:
            raise Interrupted
        rows.append(dict(row))

    settings: dict[str, Any] = {
        "validate": lambda policy: validate(policy, data, k=3),
        "metric": "valid/full/ndcg@3",
        "on_log": on_log,
    }
    return RunLog(**(settings | changes))


def make_trainer(
    algorithm: str,
    start: SlatePolicy,
    data: PreparedData,
    rl: RLParams,
    rows: list[dict[str, float]] | None = None,
    *,
    interrupt_at: int | None = None,
    **more: Any,
) -> Any:
    """A trainer of a copy of `start`, seeded; the copy is `trainer.policy`."""
    seed_everything(0)
    run = make_run(data, [] if rows is None else rows, interrupt_at=interrupt_at)
    return TRAINERS[algorithm](copy.deepcopy(start), data, rl, run, **more)


def rl_params(**changes: object) -> RLParams:
    """Small settings over slates of three."""
    values: dict[str, object] = {
        "k": 3,
        "candidates": CandidateParams(negatives=8),
        "trainable": "all",
        "crossfit": CrossfitParams(split_points=0),
        "eval_every": 4,
        "logging_steps": 2,
        "ppo": PPOParams(
            batch_size=32, mini_batch_size=16, ppo_epochs=2, learning_rate=5e-3, temperature=1.0, max_steps=8
        ),
        "grpo": GRPOParams(batch_size=8, num_sample_generations=4, learning_rate=5e-3, temperature=1.0, max_steps=8),
    }
    return RLParams.model_validate(values | changes)


CLOCKS = ("seconds", "per_second", "peak_memory_mb")


def measured(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    """Log rows without what a clock or the machine says."""
    return [{name: value for name, value in row.items() if not name.endswith(CLOCKS)} for row in rows]


def weights(policy: SlatePolicy | Path) -> dict[str, torch.Tensor]:
    """All weights of a policy, or of a saved one."""
    found = SlatePolicy.from_pretrained(policy) if isinstance(policy, Path) else policy
    return dict(found.state_dict())


def same_weights(first: SlatePolicy | Path, second: SlatePolicy | Path) -> bool:
    """Whether two policies are equal to the last bit."""
    a, b = weights(first), weights(second)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def raises_interrupted(function: Callable[[], object]) -> bool:
    """Run and tell whether it was interrupted."""
    try:
        function()
    except Interrupted:
        return True
    return False
