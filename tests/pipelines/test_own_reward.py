"""`rl.reward_type: custom` through the script: the file is read, its mistakes are named, a change begins anew."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from rl4rec._io import read_yaml
from rl4rec.data.dataset import PreparedData
from rl4rec.metrics import slate_gains
from rl4rec.ops.sweep.space import read_stage
from rl4rec.ops.sweep.trial import train
from rl4rec.ops.tracking import StageRun
from rl4rec.ops.workspace import make_workspace, merge_settings
from rl4rec.settings import load_params
from tests.graph import ROOT, TINY
from tests.ops.sweep.test_stages import run_script

pytestmark = pytest.mark.slow

SETTINGS = {
    "tracking": {"enabled": False},
    "rl": {"reward_type": "custom", "crossfit": {"split_points": 0}, "trainable": "all", "num_slates": 64},
}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with its own copy of the scripts, ready for RL."""
    folder = tmp_path_factory.mktemp("reward") / "shop"
    overrides = folder.with_name("overrides.yaml")
    overrides.write_text(yaml.safe_dump(merge_settings(TINY, SETTINGS)))
    make_workspace(ROOT, folder, overrides)
    (folder / "pipelines").unlink()
    shutil.copytree(ROOT / "pipelines", folder / "pipelines", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("fingerprint", "prepare", "sft", "crossfit"):
        run_script(folder, name)
    return folder


def run_rl(shop: Path) -> subprocess.CompletedProcess[str]:
    """The command of dvc.yaml."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "pipelines/rl.py", "ppo"],
        cwd=shop,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_stage_trains_on_the_file_and_a_changed_file_starts_anew(shop: Path) -> None:
    reward, checkpoints = shop / "pipelines/reward.py", shop / "checkpoints/ppo"
    text = reward.read_text()
    # A run that breaks off after its first validation: the function fails when it is called for the third time.
    calls = "def gains(slates, targets, data, calls=[]):\n    calls.append(0)\n    assert len(calls) < 4, 'cut off'\n"
    reward.write_text(f"import torch\n\n\n{calls}    return torch.ones(slates.shape)\n")
    cut = run_rl(shop)
    assert cut.returncode == 2
    assert "pipelines/reward.py: gains, line 6: AssertionError: cut off" in cut.stderr
    assert [path.name for path in checkpoints.iterdir() if path.is_dir()] == ["checkpoint-2"]
    reward.write_text(text)
    whole = run_rl(shop)
    assert whole.returncode == 0, whole.stderr[-3000:]
    assert "resuming" not in whole.stderr
    rewards = [
        row["train/reward"]
        for row in map(json.loads, (shop / "logs/ppo.jsonl").read_text().splitlines())
        if "train/reward" in row
    ]
    assert len(rewards) == 4 and 5.0 not in rewards  # 5: a one for each of the slots
    shutil.rmtree(shop / "models/ppo")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def gains(slates, targets, data)\n", r"cannot be read as a module with `gains` \(SyntaxError: .*line 1\)"),
        ("import no_such_module\n", r"cannot be read as .* \(ModuleNotFoundError: No module named 'no_such_module'\)"),
        (
            "def gain(slates, targets, data): ...\n",
            r"cannot be .* \(AttributeError: .* has no attribute 'gains'",
        ),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    shop: Path, text: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reward = shop / "pipelines/reward.py"
    good = reward.read_text()
    monkeypatch.syspath_prepend(str(shop / "pipelines"))
    monkeypatch.delitem(sys.modules, "reward", raising=False)
    try:
        reward.write_text(text)
        with pytest.raises(Exception, match=rf"^pipelines/reward\.py: {message}"):
            run_script(shop, "rl", "grpo")
    finally:
        reward.write_text(good)
        sys.modules.pop("reward", None)


def test_a_trial_of_a_sweep_finds_the_file_too(shop: Path) -> None:
    before = list(sys.path)
    stage = read_stage(shop, "rl@grpo", read_yaml(shop / "params.yaml"))
    assert "pipelines/reward.py" in stage.code
    rows: list[dict[str, float]] = []
    logged: list[str] = []

    class Rows(StageRun):
        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:  # type: ignore[override]
            rows.append(metrics)

        def log_dataset(self, data: PreparedData, context: str) -> None: ...

        def log_policy(self, folder: Path, data: PreparedData) -> None: ...

        def log_artifact(self, path: Path, folder: str) -> None:
            assert folder == "reward"
            logged.append(path.read_text())

    try:
        train(stage, load_params(shop / "params.yaml"), Rows(), root=shop, scratch=shop / ".sweep/trial")
    finally:
        sys.modules.pop("reward", None)
    assert sum("train/reward" in row for row in rows) == 2
    assert logged == [(shop / "pipelines/reward.py").read_text()]
    assert sys.path == before


def test_the_example_weighs_hits_by_rarity() -> None:
    """Counts 1, 4, 4, 16 to the power -1/2: 1, 1/2, 1/2, 1/4, whose mean over the 25 interactions is 9/25."""
    sys.path.insert(0, str(ROOT / "pipelines"))
    try:
        import reward
    finally:
        sys.path.remove(str(ROOT / "pipelines"))
        sys.modules.pop("reward", None)
    data = PreparedData(Path(), [], list("abcd"), torch.tensor([1, 4, 4, 16]).numpy(), None, {})  # type: ignore[arg-type]
    slates, targets = torch.tensor([[0, 1], [1, 3], [3, 2], [2, 1]]), torch.tensor([0, 3, 3, 0])
    expected = torch.tensor([[25 / 9, 0], [0, 25 / 36 * 0.6309298], [25 / 36, 0], [0, 0]])
    assert torch.allclose(reward.gains(slates, targets, data).float(), expected)
    assert slate_gains(slates, targets)[1, 1] == pytest.approx(0.6309298)
    assert re.search(r"RARITY = 0\.5 ", (ROOT / "pipelines/reward.py").read_text())
