"""The recipes of CONTRIBUTING.md, followed to the letter on a copy of the code, with tiny data."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from rl4rec.settings import load_params
from tests.contributing.recipes import apply_hunk, read_recipes

ROOT = Path(__file__).parents[2]
RECIPES = {recipe.title: recipe for recipe in read_recipes((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))}
TINY: dict[str, Any] = {
    "data": {"source": "movielens", "path": "ratings.dat", "k_core": 1},
    "policy": {"n_embd": 8, "max_history": 8},
    "sft": {"num_epochs": 1, "batch_size": 16, "eval_every_epochs": 1},
    "rl": {
        "reward_type": "rbp",
        "crossfit": {"split_points": 0},
        "k": 3,
        "candidates": {"negatives": 8},
        "num_slates": 64,
        "eval_every": 2,
        "reinforce": {"batch_size": 8, "num_sample_generations": 4},
    },
    "evaluate": {"ks": [3, 5], "negatives": 10},
    "compare": {"bootstrap_samples": 100, "gate": {"metric": "test/full/ndcg@5", "guards": {}}},
    "tracking": {"enabled": False},
}


def run(folder: Path, code: Path, command: str) -> str:
    """Run one line of a recipe in `folder`, with the packages below `code`."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("RL4REC_", "MLFLOW_"))}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(code),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the code after all recipes."""
    folder = tmp_path_factory.mktemp("recipes") / "code"
    for name in ("rl4rec", "pipelines", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("params.yaml", "dvc.yaml", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    for recipe in RECIPES.values():
        recipe.apply(folder)
    return folder


@pytest.fixture(scope="module")
def shop(code: Path) -> Path:
    """A workspace with MovieLens-like ratings: 40 users who walk through 24 items."""
    folder = code.parent / "shop"
    folder.mkdir()
    lines = [f"{u}::{(3 * u + t) % 24}::5::{t}" for u in range(40) for t in range(6 + u % 3)]
    (folder / "ratings.dat").write_text("\n".join(lines) + "\n")
    (folder / "params.yaml").write_text(yaml.safe_dump(TINY))
    (folder / "pipelines").symlink_to(code / "pipelines")
    return folder


def commands(title: str, *programs: str) -> list[str]:
    found = [line for line in RECIPES[title].commands if line.split()[0] in programs]
    assert found, f"{title}: nothing with {programs}"
    return found


def test_every_recipe_and_every_command_is_followed() -> None:
    assert list(RECIPES) == ["a reward", "an algorithm", "a data source"]
    programs = {line.split()[0] for recipe in RECIPES.values() for line in recipe.commands}
    assert programs == {"rl4rec", "ruff", "pytest", "python", "dvc"}  # dvc: the whole pipeline, tests/pipelines


@pytest.mark.slow
def test_the_changed_code_passes_its_checks(code: Path) -> None:
    checks = {line for title in RECIPES for line in commands(title, "rl4rec")} | set(commands("an algorithm", "ruff"))
    assert len(checks) == 4
    for line in sorted(checks):
        run(code, code, line)


@pytest.mark.slow
def test_the_tests_of_the_recipes_pass(code: Path) -> None:
    lines = [line for title in RECIPES for line in commands(title, "pytest")]
    paths = [line.removeprefix("pytest -q ") for line in lines]
    assert len(paths) == 3
    run(code, code, f"pytest -q -p no:cacheprovider {' '.join(paths)}")


@pytest.mark.slow
def test_the_pipeline_runs_with_source_reward_and_algorithm(code: Path, shop: Path) -> None:
    for line in commands("a data source", "python"):
        run(shop, code, line)
    raw = json.loads((shop / "data/raw.json").read_text())
    assert (raw["source"], [file["name"] for file in raw["files"]]) == ("movielens", ["ratings.dat"])
    stats = json.loads((shop / "data/prepared/stats.json").read_text())
    assert (stats["users"], stats["items"], stats["interactions"]) == (40, 24, 279)  # 14 x 6 + 13 x 7 + 13 x 8

    run(shop, code, "python pipelines/sft.py")
    run(shop, code, "mkdir models/crossfit")  # crossfit.split_points: 0 makes an empty one
    for line in commands("an algorithm", "python"):
        run(shop, code, line)
    rows = [json.loads(line) for line in (shop / "logs/reinforce.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "train/reward" in row] == [1, 2]  # 64 slates, 8 x 4 a step
    assert rows[-1]["summary"] is True
    # Gains of a hit are 1, .8 or .64, so 32 times the mean is a sum of these; NDCG would have .6309 or .5 in it.
    total = 32 * rows[1]["train/reward"] * 25
    assert total > 0 and total == pytest.approx(round(total), abs=1e-3)
    report_with(shop, code)


def report_with(shop: Path, code: Path) -> None:
    """The comparison, where the other policies are copies of the new one."""
    for policy in ("popularity", "sft", "sft_continued", "ppo", "grpo"):
        shutil.copy(shop / "metrics/reinforce.json", shop / f"metrics/{policy}.json")
        shutil.copy(shop / "ranks/reinforce.parquet", shop / f"ranks/{policy}.parquet")
    run(shop, code, "python pipelines/compare.py")
    comparison = json.loads((shop / "metrics/comparison.json").read_text())
    assert comparison["reinforce_vs_grpo"]["test/full/ndcg@3"]["delta"] == 0.0
    assert "REINFORCE - GRPO" in (shop / "reports/comparison.md").read_text()
    assert len(pl.read_parquet(shop / "ranks/reinforce.parquet")) == 40


def test_settings_of_the_recipes_are_new() -> None:
    params = (ROOT / "params.yaml").read_text(encoding="utf-8")
    assert "rbp" not in params and "movielens" not in params and "reinforce" not in params
    assert load_params(ROOT / "params.yaml").rl.reward_type == "ndcg"


@pytest.mark.parametrize(
    ("hunk", "result"),
    [
        ("-b\n+x\n", "a\nx\nc = [1, 2]\na2\n"),
        (" a\n+x\n b\n", "a\nx\nb\nc = [1, 2]\na2\n"),
        ("-c = [...\n+c = [0, ...\n", "a\nb\nc = [0, 1, 2]\na2\n"),
        ("+x\n c = ...\n", "a\nb\nx\nc = [1, 2]\na2\n"),
    ],
)
def test_a_hunk_is_applied_by_its_words(hunk: str, result: str) -> None:
    assert apply_hunk("a\nb\nc = [1, 2]\na2\n", hunk, "here") == result


@pytest.mark.parametrize(("hunk", "says"), [(" q\n+x\n", "found 0 times"), (" a...\n+x\n", "found 2 times")])
def test_a_hunk_without_its_one_place_fails(hunk: str, says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        apply_hunk("a\nb\nc = [1, 2]\na2\n", hunk, "here")
