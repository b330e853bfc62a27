"""A whole small workspace (data, policy, evaluations, logs), made once and copied for each test."""

from __future__ import annotations

import hashlib
import json
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pytest
import torch
import yaml

from rl4rec.data.prepare import prepare
from rl4rec.data.prepared import load_prepared
from rl4rec.data.vocabulary import build_tokenizer
from rl4rec.evaluation.files import save_evaluation
from rl4rec.evaluation.protocols import evaluate
from rl4rec.evaluation.scorers import popularity_scorer
from rl4rec.params import Params, PolicyParams
from rl4rec.policy_init import create_policy
from rl4rec.trainers.monitor import save_policy

ROOT = Path(__file__).parents[2]
NUM_ITEMS = 24
SETTINGS = {
    "data": {"source": "interactions", "path": "store", "k_core": 1},
    "policy": {"n_layer": 1, "n_embd": 16, "n_head": 1, "dropout": 0.0, "max_history": 8},
    "rl": {"k": 3, "candidates": {"negatives": 8}},
    "evaluate": {"ks": [3, 5], "negatives": 10},
    "compare": {"bootstrap_samples": 100},
    "tracking": {"enabled": False},
}
POLICIES = ("popularity", "sft", "sft_continued", "ppo", "grpo")


class Outcome(NamedTuple):
    """What a command did."""

    status: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("template")
    (folder / "params.yaml").write_text(yaml.safe_dump(SETTINGS))
    rows = [
        (f"u{user}", f"i{(3 * user + step) % NUM_ITEMS}", step) for user in range(40) for step in range(6 + user % 3)
    ]
    table = pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row")
    (folder / "store").mkdir()
    table.write_parquet(folder / "store" / "part-00000-start.parquet")
    table.head(3).with_columns(timestamp=pl.lit(99)).write_csv(folder / "new.csv")
    params = Params.model_validate(SETTINGS)
    store = params.data.model_copy(update={"path": str(folder / "store")})
    (folder / "data").mkdir()
    data = prepare(store, folder / "data" / "prepared")
    (folder / "data" / "raw.json").write_text('{"source": "interactions", "files": []}\n')
    torch.manual_seed(0)
    policy, tokenizer = create_policy(PolicyParams(**SETTINGS["policy"]), data.item_ids, build_tokenizer(data.item_ids))  # type: ignore[arg-type]
    save_policy(policy, folder / "models" / "sft")
    tokenizer.save_pretrained(folder / "models" / "sft")
    (folder / "logs").mkdir()
    found = evaluate("popularity", popularity_scorer(load_prepared(data.folder)), data, params.evaluate)
    for name in POLICIES:
        found.metrics["policy"] = name
        save_evaluation(found, folder / "metrics" / f"{name}.json", folder / "ranks" / f"{name}.parquet")
        log = [{"step": step, "samples": 8 * step, "seconds": step, "train/reward": 0.1} for step in range(6)]
        (folder / "logs" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
    (folder / "users.jsonl").write_text('{"user": 7, "history": ["i1", "i2"]}\n')
    pl.DataFrame({"items": [["i1", "i2", "i3"]]}).write_parquet(folder / "served.parquet")
    return folder


@pytest.fixture
def workspace(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "workspace"
    shutil.copytree(template, folder)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("RL4REC_DATA_HOME", raising=False)
    monkeypatch.setenv("RL4REC_DEBUG", "")
    return folder


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command of the project in this process: `rl4rec ...`, or a stage by its name."""
    from rl4rec import cli

    def run(*command: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", list(command))
        capfd.readouterr()
        try:
            if command[0] == "rl4rec":
                cli.main()
            else:
                runpy.run_path(str(ROOT / "pipelines" / f"{command[0]}.py"), run_name="__main__")
            status = 0
        except SystemExit as exit_:
            status = int(exit_.code or 0)
        return Outcome(status, *capfd.readouterr())

    return run


def snapshot(folder: Path) -> dict[str, str]:
    """Every file, link and folder below `folder`, with a digest of what it holds."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.name == ".digests.json":
            continue  # what was computed about unchanged files, for next time
        if path.is_symlink() or not path.is_file():
            found[str(path.relative_to(folder))] = "link" if path.is_symlink() else "no file"
        else:
            found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


@pytest.fixture(autouse=True)
def _seeded() -> None:
    np.random.seed(0)
