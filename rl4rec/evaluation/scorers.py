"""The scorers that can be evaluated: the popularity baseline and a saved policy."""

from __future__ import annotations

from pathlib import Path

import torch

from rl4rec.algorithms import BASELINE, get_policy
from rl4rec.data.dataset import PreparedData
from rl4rec.errors import UserError
from rl4rec.evaluation.ranking import Scorer


def popularity_scorer(data: PreparedData) -> Scorer:
    """The baseline that gives every user the training counts as scores.

    Args:
        data: whose `item_counts` are the scores.

    Returns:
        A scorer for `evaluate`.
    """
    counts = torch.from_numpy(data.item_counts).to(torch.float32)  # (I,)
    return lambda histories: counts.expand(len(histories), -1)


def load_scorer(name: str, data: PreparedData, models: Path) -> Scorer:
    """Scorer of `popularity` or of the policy saved in `models/<name>`, on the accelerator where there is one.

    Raises:
        UserError: the policy is missing, cannot be read, or was trained on another catalogue.
    """
    if name == BASELINE:
        return popularity_scorer(data)
    folder = models / name
    stage = get_policy(name).stage
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no policy there (config.json is missing). Run `dvc repro {stage}` first.")
    # transformers takes seconds to import, and the baseline needs none of it
    from rl4rec.model.load import load_policy

    policy = load_policy(folder, then=f"Run `dvc repro {stage}`.")
    if policy.num_items != data.num_items:
        raise UserError(
            f"{folder}: trained on a catalogue of {policy.num_items} items, but {data.folder} has {data.num_items}. "
            f"Run `dvc repro {stage}` on the present data."
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.nn.Module.to(policy, device)
    scorer: Scorer = policy.factors
    return scorer
