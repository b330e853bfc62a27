"""Retraining from end to end, as CI does it: a DVC remote, an MLflow server, the gate, new interactions."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from mlflow import MlflowClient

from rl4rec.data.sources.simulated import simulate
from rl4rec.params import SimulatedShop
from rl4rec.settings import load_params
from tests.graph import ROOT, STAGES, make_project, run, stages_run
from tests.servers import mlflow_server

pytestmark = pytest.mark.slow

SHOP: dict[str, Any] = {
    "data": {"source": "interactions", "path": "store", "k_core": 1, "columns": {"timestamp": "time"}},
    "policy": {"n_embd": 16, "max_history": 8, "dropout": 0.0},
    "sft": {"num_epochs": 6, "batch_size": 16, "learning_rate": 1.0e-2, "target_window": 1, "eval_every_epochs": 3},
    "rl": {
        "k": 5,
        "crossfit": {"num_epochs": 2},
        "candidates": {"negatives": 15},
        "num_slates": 256,
        "eval_every": 4,
        "ppo": {"batch_size": 16, "mini_batch_size": 8},
        "grpo": {"batch_size": 8, "num_sample_generations": 4},
    },
    "evaluate": {"ks": [5], "negatives": 15},
    "compare": {
        "bootstrap_samples": 500,
        "gate": {
            "metric": "test/full/ndcg@5",
            "guards": {
                "test/sampled100/ndcg@10": None,
                "test/full/hit@10": None,
                "test/full/coverage@10": None,
                "test/sampled15/ndcg@5": 0.2,
                "test/full/coverage@5": 0.9,
            },
        },
    },
    "monitor": {"new_users": 1.0},  # they all are
    "tracking": {"system_metrics": False, "registered_model": "shop"},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    with mlflow_server(folder, f"sqlite:///{folder}/mlflow.db") as address:
        yield address


def delivery(folder: Path, name: str, first: int, last: int) -> Path:
    """A table with the interactions of some of the simulated shop's users."""
    events = simulate(SimulatedShop(users=700, items=30, tastes=2, mean_length=7)).events()
    users = events["user"].unique(maintain_order=True)[first:last]
    events.filter(pl.col("user").is_in(users.implode())).write_csv(folder.parent / name)
    return folder.parent / name


def change(folder: Path, section: str, **settings: object) -> None:
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params[section] |= settings
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    load_params(folder / "params.yaml")


def retrain(folder: Path, server: str, incoming: Path | None = None) -> str:
    given = [f"MLFLOW_TRACKING_URI={server}", *([f"RL4REC_INCOMING={incoming}"] if incoming else [])]
    return run(folder, "env", *given, str(ROOT / ".ci" / "retrain"))


@pytest.mark.timeout(1500)
def test_first_promoted_worse_refused_new_data_promoted(tmp_path: Path, server: str) -> None:
    folder = make_project(
        tmp_path / "project", SHOP | {"data": SHOP["data"] | {"path": str(tmp_path / "project/store")}}
    )
    change(folder, "data", path="store")
    run(folder, "dvc", "remote", "add", "--local", "--default", "store", str(tmp_path / "remote"))
    client = MlflowClient(server)

    def champion() -> str:
        return str(client.get_model_version_by_alias("shop", "champion").version)

    first = retrain(folder, server, delivery(folder, "first.csv", 0, 100))
    assert stages_run(first) == STAGES
    assert "promoted: there is no champion yet" in first
    assert champion() == "1"
    summary = (folder / "reports/summary.md").read_text()
    assert "- promoted" in summary and "xychart-beta" in summary
    run(folder, "git", "add", ".")
    run(folder, "git", "commit", "--quiet", "-m", "first")

    change(folder, "sft", max_steps=1)  # hardly trained
    worse = retrain(folder, server)
    assert "prepare" not in stages_run(worse) and "sft" in stages_run(worse)
    assert "refused: test/full/ndcg@5 is not clearly better" in worse
    assert champion() == "1"
    summary = (folder / "reports/summary.md").read_text()
    assert "- refused" in summary and "## Metrics against the last commit" in summary and "test/full/ndcg@5" in summary

    change(folder, "sft", max_steps=None)
    assert stages_run(retrain(folder, server)) == set()  # all of it is in the cache
    change(folder, "sft", init="champion")
    few = retrain(folder, server, delivery(folder, "few.csv", 100, 101))
    assert "retraining is not due" in few and stages_run(few) == set()
    assert "not due" in (folder / "reports/summary.md").read_text()
    better = retrain(folder, server, delivery(folder, "second.csv", 101, 700))
    assert "retraining is due" in better
    assert stages_run(better) == STAGES
    assert "promoted: test/full/ndcg@5 is better" in better
    assert json.loads((folder / "models/champion/champion.json").read_text())["version"] == "1"
    assert champion() != "1"

    # Another machine has the commit and the remote, and need not train anything.
    run(folder, "git", "add", ".")
    run(folder, "git", "commit", "--quiet", "-m", "second")
    run(tmp_path, "git", "clone", "--quiet", str(folder), "elsewhere")
    shutil.copytree(folder / "store", tmp_path / "elsewhere/store", dirs_exist_ok=True)
    run(tmp_path / "elsewhere", "dvc", "remote", "add", "--local", "--default", "store", str(tmp_path / "remote"))
    again = retrain(tmp_path / "elsewhere", server)
    assert stages_run(again) == set()
    assert "is the champion already" in again
    assert (tmp_path / "elsewhere/models/grpo/model.safetensors").is_file()
