"""A workspace whose stage `rl` does not train but reports scripted validations, in no time."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from rl4rec.data.dataset import PreparedData
from rl4rec.ops.workspace import make_workspace

ROOT = Path(__file__).parents[3]
Sweep = Callable[..., list[dict[str, Any]]]

# The value of a learning rate r after step s is .5 - (log10 r + 3)^2 / 10 + s / 1000: 1e-3 is best. A file `kill`
# ends the process at once in the run of that number, `fail` lists learning rates that raise; `steps` counts.
SCRIPT = """
import json, math, os, signal
from pathlib import Path
from rl4rec.errors import UserError
from rl4rec._stage import run_variant_stage
from rl4rec.ops.tracking import stage_run

def main(params, algorithm):
    root = Path(__file__).parents[1]
    assert Path("data/prepared/stats.json").exists() and Path("models/sft/config.json").exists()
    grpo = params.rl.grpo
    with (root / "runs").open("a") as runs:
        runs.write(json.dumps([grpo.learning_rate, grpo.temperature, grpo.seed]) + "\\n")
    count = len((root / "runs").read_text().splitlines())
    with stage_run("rl", params, name=f"rl-{algorithm}") as run:
        for step in (0, 10, 20, 30):
            value = 0.5 - (math.log10(grpo.learning_rate) + 3) ** 2 / 10 + step / 1000 + grpo.seed / 100
            row = {"samples": 8 * step, "seconds": 0.1, "valid/full/ndcg@10": value, "valid/full/hit@10": 2 * value}
            run.log_metrics(row, step)
            run.log_metrics({"samples": 8 * step, "train/loss": 1.0}, step)
            with (root / "steps").open("a") as steps:
                steps.write(f"{step} ")
            if step == 10 and (root / "kill").exists() and (root / "kill").read_text() == str(count):
                os.kill(os.getpid(), signal.SIGKILL)
            if (root / "fail").exists() and grpo.learning_rate >= float((root / "fail").read_text()):
                raise UserError("a score is NaN")
        run.log_artifact(Path("nowhere"))

if __name__ == "__main__":
    run_variant_stage(main, ("ppo", "grpo"))
"""

SWEEP: dict[str, Any] = {
    "stage": "rl@grpo",
    "trials": 6,
    "pruner": None,
    "sampler": {"startup_trials": 2},
    "space": {
        "rl.grpo.learning_rate": {"low": 1.0e-5, "high": 1.0e-1, "log": True},
        "rl.grpo.temperature": {"choices": [0.3, 1]},
    },
}


@pytest.fixture
def scripted(tmp_path: Path, save_prepared: PreparedData) -> Path:
    """A workspace with data, a warm start, and the scripted stage."""
    folder, overrides = tmp_path / "shop", tmp_path / "overrides.yaml"
    overrides.write_text(yaml.safe_dump({"tracking": {"enabled": False}}))
    make_workspace(ROOT, folder, overrides)
    (folder / "pipelines").unlink()
    shutil.copytree(ROOT / "pipelines", folder / "pipelines", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "pipelines" / "rl.py").write_text(SCRIPT)
    (folder / "data").mkdir()
    shutil.move(save_prepared.folder, folder / "data" / "prepared")
    for name in ("sft", "crossfit"):
        (folder / "models" / name).mkdir(parents=True)
        (folder / "models" / name / "config.json").write_text("{}")
    return folder
