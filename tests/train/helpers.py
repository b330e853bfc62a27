"""Doubles and shortcuts for the trainers' tests."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from rl4rec.data.dataset import PreparedData
from rl4rec.evaluation.validation import validate
from rl4rec.model.policy import SlatePolicy
from rl4rec.params import CandidateParams, CrossfitParams, GRPOParams, PPOParams, RLParams
from rl4rec.train.monitor import Monitor


class Interrupted(Exception):
    """Stands for a machine that goes away."""


def make_monitor(
    data: PreparedData, folder: Path, rows: list[dict[str, float]], *, interrupt_at: int | None = None
) -> Monitor:
    """A monitor that validates for real, collects rows, and may break off at a step's log row."""

    def report(row: Mapping[str, float]) -> None:
        if row["step"] == interrupt_at and "train/loss" in row:
            raise Interrupted
        rows.append(dict(row))

    return Monitor(
        validate=lambda policy: validate(policy.scores, data, k=3),
        metric="full/ndcg@3",
        report=report,
        best_folder=folder,
    )


def rl_params(**changes: object) -> RLParams:
    """Small settings over slates of three."""
    values: dict[str, object] = {
        "k": 3,
        "candidates": CandidateParams(negatives=8),
        "trainable": "all",
        "dropout": False,
        "crossfit": CrossfitParams(split_points=0),
        "eval_every": 4,
        "logging_steps": 2,
        "ppo": PPOParams(
            batch_size=32, mini_batch_size=16, ppo_epochs=2, learning_rate=5e-3, temperature=1.0, max_steps=8
        ),
        "grpo": GRPOParams(batch_size=8, num_sample_generations=4, learning_rate=5e-3, temperature=1.0, max_steps=8),
    }
    return RLParams.model_validate(values | changes)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All weights of a saved policy."""
    return dict(SlatePolicy.from_pretrained(folder).state_dict())


def same_weights(first: Path, second: Path) -> bool:
    """Whether two saved policies are equal to the last bit."""
    a, b = weights(first), weights(second)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def raises_interrupted(function: Callable[[], object]) -> bool:
    """Run and tell whether it was interrupted."""
    try:
        function()
    except Interrupted:
        return True
    return False
