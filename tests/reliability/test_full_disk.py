"""A disk that fills up while SFT trains: a message, and the same result once there is room."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.train.helpers import same_weights

ROOT = Path(__file__).parents[2]
SETTINGS = {
    "data": {"source": "simulated", "simulated": {"users": 200, "items": 40, "tastes": 2}, "k_core": 1},
    "policy": {"n_embd": 16, "max_history": 8},
    "sft": {"num_epochs": 30, "batch_size": 8, "eval_every_epochs": 1, "early_stopping_patience": None},
    "tracking": {"enabled": False},
}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if not mounted or mounted.returncode != 0:
        pytest.skip("only root may mount a small disk")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=False)


def start(folder: Path, script: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "pipelines" / script)]
    return subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    _, errors = process.communicate(timeout=240)
    return errors


@pytest.mark.slow
def test_a_full_disk_ends_training_with_a_message_and_leaves_the_last_checkpoint(
    small_disk: Path, tmp_path: Path
) -> None:
    (small_disk / "params.yaml").write_text(yaml.safe_dump(SETTINGS))
    assert "error" not in finish(start(small_disk, "prepare.py"))
    shutil.copytree(small_disk, tmp_path / "roomy")
    training = start(small_disk, "sft.py")
    while not list(small_disk.glob("checkpoints/sft/*/manifest.json")):
        assert training.poll() is None, finish(training)
        time.sleep(0.01)
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass
    errors = finish(training)
    assert training.returncode == 2, errors
    assert "error: sft: the disk is full" in errors and "goes on from the last whole checkpoint" in errors
    assert "Traceback" not in errors
    assert not (small_disk / "logs/sft.jsonl").exists()

    filler.unlink()
    resumed = start(small_disk, "sft.py")
    assert "resuming from checkpoints/sft/checkpoint-" in finish(resumed)
    assert resumed.returncode == 0
    whole = start(tmp_path / "roomy", "sft.py")
    finish(whole)
    assert same_weights(small_disk / "models/sft", tmp_path / "roomy/models/sft")
