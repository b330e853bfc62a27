"""A folder where a pipeline has run: policies of one training, more and less far, evaluated on a ring of items."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
import torch
from mlflow import MlflowClient

from rl4rec.data.dataset import PreparedData
from rl4rec.data.prepare import prepare
from rl4rec.evaluation.files import save_evaluation
from rl4rec.evaluation.protocols import evaluate
from rl4rec.model.create import create_policy
from rl4rec.model.policy import SlatePolicy
from rl4rec.params import Params
from rl4rec.train.cross_entropy import NextItemsLoss
from rl4rec.train.sft import sum_over_positions

ITEMS, NAME = 20, "shop"
SETTINGS = {
    "data": {"source": "sequences", "path": "shop.txt", "k_core": 1},
    "policy": {"n_layer": 1, "n_embd": 16, "n_head": 1, "dropout": 0.0, "max_history": 8},
    "rl": {"k": 3},
    "evaluate": {"ks": [3], "negatives": 8},
    "compare": {
        "bootstrap_samples": 500,
        "gate": {"metric": "test/full/ndcg@3", "guards": {"test/sampled8/ndcg@3": 0.05, "test/full/coverage@3": 0.9}},
    },
    "tracking": {"system_metrics": False, "registered_model": NAME},
}
PARAMS = Params.model_validate(SETTINGS)


def sequences(users: int, *, shift: int = 0, items: int = ITEMS) -> list[str]:
    """Users who walk around a ring of items, one step at a time."""
    return [
        " ".join([f"u{user + shift}", *(f"i{(7 * user + t) % items}" for t in range(6 + user % 3))])
        for user in range(users)
    ]


def prepared(folder: Path, lines: list[str]) -> PreparedData:
    source = folder / "shop.txt"
    source.write_text("\n".join(lines) + "\n")
    return prepare(PARAMS.data.model_copy(update={"path": str(source)}), folder / "data" / "prepared")


def policies(data: PreparedData, folder: Path) -> None:
    """Snapshots of one training: `0`, `6` and `150` steps in."""
    from transformers import AutoTokenizer

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(data.tokenizer_folder)
    policy, _ = create_policy(PARAMS.policy, data.item_ids, tokenizer)
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
    rows = [data.train_sequences()[row] for row in range(len(data.users))]
    width = max(map(len, rows))
    padded = torch.full((len(rows), width), -1)
    for row, items in enumerate(rows):
        padded[row, : len(items)] = torch.from_numpy(items)
    for step in range(151):
        if step in (0, 6, 150):
            policy.save_pretrained(folder / str(step))
        (sum_over_positions(policy, padded, NextItemsLoss()) / (padded[:, 1:] >= 0).sum()).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database, prepared data and trained policies, to copy from."""
    folder = tmp_path_factory.mktemp("registry")
    MlflowClient(f"sqlite:///{folder}/mlflow.db").search_experiments()
    policies(prepared(folder, sequences(60)), folder / "trained")
    return folder


@pytest.fixture
def project(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder where a pipeline has run: `ppo` is untrained, `grpo` knows a little."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")  # outlives a test
    (tmp_path / "params.yaml").write_text(json.dumps(SETTINGS))
    put(tmp_path, "ppo", 0)
    put(tmp_path, "grpo", 6)
    yield tmp_path
    while mlflow.active_run():
        mlflow.end_run()


def put(folder: Path, name: str, steps: int) -> None:
    """Make the snapshot of so many steps the policy `name`, evaluated."""
    from rl4rec.data.dataset import load_prepared

    shutil.rmtree(folder / "models" / name, ignore_errors=True)
    shutil.copytree(folder / "trained" / str(steps), folder / "models" / name)
    policy = SlatePolicy.from_pretrained(folder / "models" / name)
    data = load_prepared(folder / "data" / "prepared")
    if policy.num_items == data.num_items:
        result = evaluate(name, policy, data, PARAMS.evaluate)
        save_evaluation(result, folder / f"metrics/{name}.json", folder / f"ranks/{name}.parquet")
