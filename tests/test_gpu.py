"""`make gpu` on a CPU: all that needs no GPU runs, without the packages that a bare GPU machine lacks."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parents[1]
ABSENT = ("polars", "mlflow", "dvc", "datasets", "trl", "starlette", "uvicorn", "optuna")  # None: as if not installed
BARE = f"""
import runpy, sys
sys.modules |= dict.fromkeys({ABSENT})
sys.argv = ["benchmarks/gpu.py", *sys.argv[1:]]
sys.path.insert(0, "benchmarks")  # as for a script
runpy.run_path("benchmarks/gpu.py", run_name="__main__")
"""


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("gpu")


@pytest.mark.slow
def test_everything_but_cuda_runs_on_a_cpu_with_the_core_alone(tmp_path: Path) -> None:
    out = tmp_path / "cpu.json"
    command = [sys.executable, "-c", BARE, "--device", "cpu", "--small", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    found = json.loads(out.read_text())
    assert found["not_run"] == dict.fromkeys(["out of memory", "waits of the host"], "needs a CUDA device")
    assert len(found["parts"]) == 8 and all(part["ok"] for part in found["parts"].values())
    values = found["parts"]["CPU against device"]["values"]
    assert values["slates equal"] == 1.0 and values["ppo in bf16, gradient's relative difference"] == 0.0
    steps = found["parts"]["speed and memory"]["steps"]
    assert steps["Beauty, grpo"]["ms"] > 0 and steps["stock TRL, grpo"] == "not run: trl is not there"


def test_a_part_that_fails_is_named_and_the_others_run(
    gpu: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def breaks(setting: object) -> dict[str, object]:
        raise RuntimeError("no kernel image is available")

    parts = [
        gpu.Part(1, "breaks", breaks),
        gpu.Part(2, "differs", lambda setting: {"failed": ["ranks equal: 0.5, expected >= 0.99"]}),
        gpu.Part(3, "works", lambda setting: {"value": 1}),
        gpu.Part(4, "needs one", lambda setting: {}, cuda_only=True),
    ]
    setting = gpu.Setting(torch.device("cpu"), small=True)
    assert not gpu.run_parts(parts, setting, 60, tmp_path / "out.json")
    found = json.loads((tmp_path / "out.json").read_text())
    assert [part["ok"] for part in found["parts"].values()] == [False, False, True]
    assert found["parts"]["breaks"]["failed"] == ["RuntimeError: no kernel image is available"]
    assert "(2) differs: FAILED: ranks equal: 0.5" in capsys.readouterr().out
    assert gpu.run_parts(parts[2:3], setting, 60, tmp_path / "out.json")
    assert gpu.run_parts(parts[2:3], setting, -1, tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text())["not_run"] == {"works": "the -1 seconds were used up"}


def test_a_difference_between_devices_fails_its_check(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = importlib.import_module("gpu_checks")
    calls = iter(range(100))

    def noise(keys: torch.Tensor, count: int) -> torch.Tensor:
        return torch.ones(len(keys), count) + next(calls) * 1e-3

    monkeypatch.setattr(checks, "exponential", noise)
    monkeypatch.setattr(checks, "_gradient", lambda name, data, precision, device: torch.ones(3))
    failed = checks.agreement(gpu.Setting(torch.device("cpu"), small=True))["failed"]
    assert failed == [
        "keyed noise, equal share: 0, expected >= 0.5",
        "keyed noise, largest relative difference: 0.001, expected <= 1e-06",
    ]


def test_the_file_is_the_demos_shop(gpu: ModuleType) -> None:
    data = importlib.import_module("gpu_data")
    packed, fresh = data.load_shop(), data.prepare_shop()
    assert packed.data_hash == fresh.data_hash and packed.item_ids == fresh.item_ids
    assert (packed.sequences.values == fresh.sequences.values).all()
    assert (packed.item_counts == fresh.item_counts).all()
    assert data.SHOP.stat().st_size < 100_000
