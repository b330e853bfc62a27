"""The evaluate and compare stages through their scripts, on hand-made data."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


def run_script(workspace: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "COLUMNS": "140"}
    command = [sys.executable, str(ROOT / "pipelines" / arguments[0]), *arguments[1:]]
    return subprocess.run(
        command, cwd=workspace, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    rows = [rng.permutation(40)[: rng.integers(3, 9)].tolist() for _ in range(60)]
    folder = tmp_path / "data" / "prepared"
    folder.mkdir(parents=True)
    counts = np.bincount([item for row in rows for item in row[:-2]], minlength=40)
    schema = {"user": pl.String, "items": pl.List(pl.Int32)}
    cuts = [
        (pl.col("items").list.len().cast(pl.Int32) - back).alias(name)
        for name, back in (("before_valid", 2), ("before_test", 1))
    ]
    table = pl.DataFrame({"user": [f"u{i}" for i in range(60)], "items": rows}, schema=schema)
    table.with_columns(cuts).write_parquet(folder / "sequences.parquet")
    pl.DataFrame({"item": [f"i{i}" for i in range(40)], "count": counts}).write_parquet(folder / "items.parquet")
    (folder / "stats.json").write_text(json.dumps({"data_hash": "abc", "source": "simulated"}))
    truth = rng.dirichlet(np.ones(40), 60).astype(np.float32).tolist()
    schema = {"valid": pl.List(pl.Float32), "test": pl.List(pl.Float32)}
    pl.DataFrame({"valid": truth, "test": truth}, schema=schema).write_parquet(folder / "oracle.parquet")
    settings = {
        "evaluate": {"ks": [5, 10], "negatives": 20},
        "compare": {"bootstrap_samples": 100, "gate": {"guards": {}}},
        "tracking": {"enabled": False},
    }
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path


def test_evaluate_then_compare(workspace: Path) -> None:
    done = run_script(workspace, "evaluate.py", "popularity")
    assert done.returncode == 0, done.stderr
    first = (workspace / "metrics" / "popularity.json").read_bytes()
    found = json.loads(first)
    measured = {key.rpartition("/")[0] for key in found["metrics"]}
    assert measured == {
        f"{fold}/{each}" for fold in ("valid", "test") for each in ("full", "full_unmasked", "sampled20")
    }
    assert set(pl.read_parquet(workspace / "ranks" / "popularity.parquet").columns) == {"user_row", *measured}

    early = run_script(workspace, "compare.py")
    assert early.returncode == 2 and "dvc repro evaluate@sft" in early.stderr
    assert "Traceback" not in early.stderr and not (workspace / "metrics" / "comparison.json").exists()

    for policy in ("sft", "sft_continued", "ppo", "grpo"):
        shutil.copy(workspace / "metrics" / "popularity.json", workspace / "metrics" / f"{policy}.json")
        for kind in ("ranks", "slates"):
            shutil.copy(workspace / kind / "popularity.parquet", workspace / kind / f"{policy}.parquet")
    done = run_script(workspace, "compare.py")
    assert done.returncode == 0, done.stderr
    assert "Is RL better than SFT? Full catalogue: GRPO and PPO are not clearly different from SFT." in done.stderr
    assert "comparison.html" in done.stderr
    comparison = json.loads((workspace / "metrics" / "comparison.json").read_text())
    assert comparison["grpo_vs_sft"]["test/full/ndcg@10"] == {"delta": 0.0, "relative": 0.0, "ci95": [0.0, 0.0]}
    assert "oracle" in comparison["policies"]
    markdown = (workspace / "reports" / "comparison.md").read_text()
    assert "Examples: slates before and after RL" in markdown and "Drawn at random" in markdown

    (workspace / "slates" / "grpo.parquet").unlink()
    before = (workspace / "metrics" / "comparison.json").read_bytes()
    done = run_script(workspace, "compare.py")
    assert done.returncode == 0, done.stderr
    markdown = (workspace / "reports" / "comparison.md").read_text()
    assert "No examples: no `slates/grpo.parquet`. Run `dvc repro evaluate@grpo`." in markdown
    assert "Examples: slates" not in markdown
    assert (workspace / "metrics" / "comparison.json").read_bytes() == before


def test_evaluate_refuses_a_missing_policy(workspace: Path) -> None:
    done = run_script(workspace, "evaluate.py", "ppo")
    assert done.returncode == 2
    assert "no policy there" in done.stderr and "Traceback" not in done.stderr
    assert not (workspace / "metrics").exists()
