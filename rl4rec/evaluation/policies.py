"""The scorers that can be evaluated: the popularity baseline and a saved policy."""

from __future__ import annotations

from pathlib import Path

from rl4rec.algorithms import BASELINE, get_policy
from rl4rec.data.dataset import PreparedData
from rl4rec.errors import UserError
from rl4rec.model.device import to_best_device
from rl4rec.model.ranking import PopularityPolicy, RankingPolicy


def load_ranking_policy(name: str, data: PreparedData, models: Path) -> RankingPolicy:
    """The policy `popularity` or of the policy saved in `models/<name>`, on the accelerator where there is one.

    Raises:
        UserError: the policy is missing, cannot be read, or was trained on another catalogue.
    """
    if name == BASELINE:
        return PopularityPolicy(data.item_counts)
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
    to_best_device(policy)
    ranking: RankingPolicy = policy
    return ranking
