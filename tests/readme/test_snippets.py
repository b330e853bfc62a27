"""Every snippet of the README is executed, as it stands there, in a small shop of one's own."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import polars as pl
import pytest
import yaml

from rl4rec.ops.workspace import make_workspace

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MOST_LINES = 10  # of a snippet that shows how to use one's own data, model or reward
# What keeps the run short; the snippets come on top.
SMALL: dict[str, Any] = {
    "data": {"k_core": 1},
    "policy": {"max_history": 8},
    "sft": {"max_steps": 4, "batch_size": 16, "eval_every_epochs": 1, "target_window": 1},
    "rl": {
        "k": 5,
        "crossfit": {"split_points": 1, "num_epochs": 1},
        "candidates": {"negatives": 10},
        "num_slates": 64,
        "ppo": {"batch_size": 16, "mini_batch_size": 8},
        "grpo": {"batch_size": 8, "num_sample_generations": 4},
    },
    "evaluate": {"ks": [5, 10], "negatives": 20},
    "compare": {"gate": {"guards": {"test/sampled100/ndcg@10": None, "test/sampled20/ndcg@10": 0.01}}},
    "tracking": {"enabled": False},
}


def snippets(heading: str, language: str) -> list[str]:
    """The fenced blocks of a section."""
    section = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", README, flags=re.M | re.S)
    assert section is not None, f"README: no section '{heading}'"
    return re.findall(rf"^```{language}\n(.*?)^```", section[1], flags=re.M | re.S)


def only(heading: str, language: str) -> str:
    (found,) = snippets(heading, language)
    return found


def run(folder: Path, *command: str) -> str:
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(folder),  # the workspace's own link or copy of the package
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}:\n{done.stdout[-3000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with the README's settings for one's own data, model and reward, prepared."""
    folder = tmp_path_factory.mktemp("readme") / "shop"
    overrides = folder.parent / "overrides.yaml"
    overrides.write_text(yaml.safe_dump(SMALL))
    make_workspace(ROOT, folder, overrides)
    settings = yaml.safe_load((folder / "params.yaml").read_text())
    for heading in ("Your own data", "Your own model", "Your own reward"):
        for name, values in yaml.safe_load(only(heading, "yaml")).items():
            settings[name] |= values
    (folder / "params.yaml").write_text(yaml.safe_dump(settings))
    (folder / "pipelines").unlink()
    shutil.copytree(ROOT / "pipelines", folder / "pipelines", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "pipelines" / "reward.py").write_text(only("Your own reward", "python"))

    rows = [(f"c{user}", f"sku{(user + 3 * step) % 40}", step) for user in range(60) for step in range(6)]
    (folder / "shop").mkdir()
    lines = ["customer,sku,time", *(f"{user},{item},{time}" for user, item, time in rows)]
    (folder / "shop" / "clicks.csv").write_text("\n".join(lines) + "\n")
    tiny = load(ROOT / "tests" / "tiny_checkpoints.py")
    tiny.write_checkpoint("gpt2", folder / "gpt2")  # a local folder of that name stands in for the hub's model
    run(folder, sys.executable, "pipelines/prepare.py")
    return folder


@pytest.mark.slow
def test_own_data_model_and_reward_train(shop: Path) -> None:
    stats = json.loads((shop / "data" / "prepared" / "stats.json").read_text())
    assert (stats["users"], stats["items"], stats["interactions"]) == (60, 40, 360)
    for script in (("sft.py",), ("crossfit.py",), ("rl.py", "grpo"), ("rl.py", "ppo"), ("evaluate.py", "grpo")):
        run(shop, sys.executable, f"pipelines/{script[0]}", *script[1:])
    config = json.loads((shop / "models" / "grpo" / "config.json").read_text())
    text = json.loads((shop / "gpt2" / "config.json").read_text())
    assert config["item_offset"] >= text["vocab_size"]  # the items stand behind the pretrained model's tokens
    rows = [json.loads(line) for line in (shop / "logs" / "grpo.jsonl").read_text().splitlines()]
    # A hit earns NDCG over the root of the item's count, so no mean reward is above that of the rarest item.
    rarest = min(pl.read_parquet(shop / "data" / "prepared" / "items.parquet")["count"])
    rewards = [row["train/reward"] for row in rows if "train/reward" in row]
    assert rarest > 1 and rewards and all(0 <= reward <= rarest**-0.5 for reward in rewards)
    assert (shop / "metrics" / "grpo.json").exists()


@pytest.mark.slow
def test_the_library_snippet_prints_what_the_policy_reaches(shop: Path, tmp_path: Path) -> None:
    settings = yaml.safe_load((shop / "params.yaml").read_text())
    settings["policy"] |= {"init": "scratch", "n_embd": 8}
    settings["rl"]["reward_type"] = "ndcg"
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(settings))
    (tmp_path / "rl4rec").symlink_to(ROOT / "rl4rec")
    (tmp_path / "data").symlink_to(shop / "data")
    (tmp_path / "library.py").write_text(only("As a library", "python"))
    (figure,) = run(tmp_path, sys.executable, "library.py").split()
    assert 0 <= float(figure) <= 1


@pytest.mark.parametrize("heading", ["Your own data", "Your own model", "Your own reward"])
def test_one_s_own_takes_few_lines(heading: str) -> None:
    lines = [line for kind in ("yaml", "python") for text in snippets(heading, kind) for line in text.splitlines()]
    code = [line for line in lines if line.strip() and not line.startswith(("import ", "from "))]
    assert 0 < len(code) < MOST_LINES, heading
