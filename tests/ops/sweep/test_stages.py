"""A trial is the stage: the scripts that DVC runs, on a very small shop, give the same figures in a sweep."""

from __future__ import annotations

import contextlib
import importlib.util
import json
from pathlib import Path

import pytest
import yaml

from rl4rec.ops.sweep.settings import SweepParams
from rl4rec.ops.sweep.study import run_sweep
from rl4rec.ops.workspace import make_workspace, merge_settings
from rl4rec.settings import load_params, load_settings
from tests.graph import ROOT, TINY

pytestmark = pytest.mark.slow


def run_script(root: Path, name: str, *variant: str) -> None:
    """What DVC does for a stage, in this process."""
    spec = importlib.util.spec_from_file_location(name, root / "pipelines" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    with contextlib.chdir(root):
        script.main(load_params("params.yaml"), *variant)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep") / "shop"
    overrides = folder.with_name("overrides.yaml")
    overrides.write_text(yaml.safe_dump(merge_settings(TINY, {"tracking": {"enabled": False}})))
    make_workspace(ROOT, folder, overrides)
    for name in ("fingerprint", "prepare", "sft", "crossfit"):
        run_script(folder, name)
    return folder


@pytest.mark.parametrize(
    ("stage", "script", "key"),
    [
        ("sft", ["sft"], "sft.learning_rate"),
        ("rl@ppo", ["rl", "ppo"], "rl.ppo.learning_rate"),
        ("rl@grpo", ["rl", "grpo"], "rl.grpo.learning_rate"),
        ("sft_continued", ["sft_continued"], "rl.sft_continued.learning_rate"),
    ],
)
def test_a_trial_is_the_stage(shop: Path, stage: str, script: list[str], key: str) -> None:
    k = 10 if stage == "sft" else 5
    metric, where = f"valid/full/ndcg@{k}", shop.parent / "sweep.yaml"
    sft = (shop / "models/sft/model.safetensors").read_bytes()
    space = {key: {"low": 1.0e-5, "high": 1.0, "log": True}}
    where.write_text(yaml.safe_dump({"stage": stage, "metric": metric, "trials": 2, "space": space, "pruner": None}))
    rows = run_sweep(shop, load_settings(where, SweepParams), where)
    assert [row["state"] for row in rows] == ["complete", "complete"]
    assert rows[0]["params.yaml"] and rows[0]["validations"] != rows[1]["validations"]
    # Nothing of the workspace itself is touched, and nothing is left over.
    assert (shop / "models/sft/model.safetensors").read_bytes() == sft
    assert not (shop / "models" / script[-1]).exists() or stage == "sft"
    assert {path.name for path in (shop / ".sweep").iterdir()} == {"journal.log", "lock", "trials.json", "best.yaml"}

    run_script(shop, *script)
    log = [json.loads(line) for line in (shop / "logs" / f"{script[-1]}.jsonl").read_text().splitlines()]
    validated = {str(row["samples"]): row[metric] for row in log if metric in row and row["step"]}
    assert rows[0]["validations"] == validated
    values = list(validated.values())
    assert rows[0]["value"] == (max(values) if stage == "sft" else values[-1])  # which policy the stage keeps
