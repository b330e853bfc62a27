"""Projects in which DVC runs the whole graph on a very small simulated shop."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock

from rl4rec.ops.workspace import make_workspace

ROOT = Path(__file__).parents[1]
POLICIES = ("popularity", "sft", "sft_continued", "ppo", "grpo")
STAGES = {
    "prepare",
    "champion",
    "sft",
    "crossfit",
    "sft_continued",
    "rl@ppo",
    "rl@grpo",
    *(f"evaluate@{policy}" for policy in POLICIES),
    "compare",
}
TINY: dict[str, Any] = {
    "data": {"source": "simulated", "simulated": {"users": 80, "items": 40, "tastes": 2}, "k_core": 1},
    "policy": {"n_embd": 8, "max_history": 8},
    "sft": {"num_epochs": 2, "batch_size": 16, "eval_every_epochs": 1, "logging_steps": 1},
    "rl": {
        "k": 5,
        "candidates": {"negatives": 10},
        "num_slates": 128,
        "eval_every": 2,
        "logging_steps": 1,
        "ppo": {"batch_size": 16, "mini_batch_size": 8},
        "grpo": {"batch_size": 8, "num_sample_generations": 4},
    },
    "evaluate": {"ks": [5, 10], "negatives": 20},
    "compare": {
        "bootstrap_samples": 100,
        "gate": {"guards": {"test/sampled100/ndcg@10": None, "test/sampled20/ndcg@10": 0.01}},
    },
}


def run(folder: Path, *command: str) -> str:
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("DVC_", "MLFLOW_", "RL4REC_"))
    }
    environment |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DVC_NO_ANALYTICS": "1",
        "GIT_AUTHOR_NAME": "test",
        "GIT_AUTHOR_EMAIL": "test@example.com",
        "GIT_COMMITTER_NAME": "test",
        "GIT_COMMITTER_EMAIL": "test@example.com",
        "GIT_CONFIG_GLOBAL": os.devnull,
    }
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{command}:\n{result.stdout[-3000:]}\n{result.stderr[-6000:]}"
    return result.stdout


def stages_run(output: str) -> set[str]:
    return set(re.findall(r"Running stage '([^']+)'", output)) - {"fingerprint"}


def make_project(folder: Path, settings: dict[str, Any]) -> Path:
    """A git and DVC project with a copy of the code."""
    overrides = folder.parent / "overrides.yaml"
    overrides.write_text(yaml.safe_dump(settings))
    make_workspace(ROOT, folder, overrides)
    for name in ("pipelines", "rl4rec"):
        (folder / name).unlink()
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", ".dvc/config", ".dvc/.gitignore", ".dvcignore", ".gitignore"):
        (folder / name).unlink(missing_ok=True)
        shutil.copy(ROOT / name, folder / name)
    run(folder, "git", "init", "--quiet")
    run(folder, "git", "add", ".")
    run(folder, "git", "commit", "--quiet", "-m", "start")
    return folder


def finished_graph(factory: pytest.TempPathFactory) -> Path:
    """A project after its first `dvc repro`, committed: made once for all of pytest's processes.

    Returns:
        A folder with `project`, the `output.txt` of that `dvc repro`, and `mlflow.db` as it was then.
    """
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "finished-graph"
    with FileLock(f"{folder}.lock"):
        if not (folder / "output.txt").exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a process that failed
            folder.mkdir()
            project = make_project(folder / "project", TINY)
            output = run(project, "dvc", "repro")
            run(project, "git", "add", ".")
            run(project, "git", "commit", "--quiet", "-m", "results")
            shutil.copy(project / "mlflow.db", folder / "mlflow.db")
            (folder / "output.txt").write_text(output)
    return folder
