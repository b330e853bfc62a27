"""Memory and disk used up, and two processes of one stage: said clearly, nothing broken."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from rl4rec._process import _LOWER, limit_reached, only_one, settings_to_lower
from rl4rec.algorithms import training_stages
from rl4rec.errors import UserError
from rl4rec.ops.tracking import flatten
from rl4rec.params import Params
from tests.graph import ROOT


def test_what_is_to_be_lowered_are_settings() -> None:
    settings = flatten(Params().model_dump())
    names = [*_LOWER, *(stage.replace("@", " ") for stage in training_stages())]
    assert {key for name in names for key in settings_to_lower(name)} <= settings.keys()
    assert settings_to_lower("rl ppo")[0] == "rl.ppo.mini_batch_size"
    assert settings_to_lower("evaluate ppo") == ("evaluate.batch_size",) and settings_to_lower("prepare") == ()
    scripts = {path.stem for path in (ROOT / "pipelines").glob("*.py")} - {"fingerprint", "champion", "reward"}
    assert {name.split()[0] for name in names} == scripts


def caused(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "Lower rl.grpo.batch_size, "),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory"),
        (MemoryError(), "out of memory. Lower rl.grpo.batch_size"),
        (caused(ValueError("wrapped"), MemoryError()), "out of memory"),
        (OSError(errno.ENOSPC, "No space left on device"), "rl grpo: the disk is full"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "the disk is full"),
        (caused(RuntimeError("write failed"), OSError(errno.EDQUOT, "Disk quota exceeded")), "the disk is full"),
    ],
)  # fmt: skip
def test_limits_of_the_machine_are_recognised(error: BaseException, expected: str) -> None:
    message = limit_reached(error, "rl grpo")
    assert message is not None and expected in message


def test_other_errors_are_not_taken_for_limits() -> None:
    for error in (ValueError("k"), OSError(errno.ENOENT, "No such file"), RuntimeError("CUDA error: misaligned")):
        assert limit_reached(error, "sft") is None


def test_a_stage_runs_once_at_a_time_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    hold = (
        "import sys, time; from rl4rec._process import only_one\n"
        "with only_one('rl ppo'): print('held', flush=True); time.sleep(60)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    holder = subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE, env=environment)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        with (
            pytest.raises(UserError, match=rf"rl ppo: already running in .* \(process {holder.pid}\)"),
            only_one("rl ppo"),
        ):
            pass
        with only_one("rl grpo"):
            pass
    finally:
        holder.kill()
        holder.wait()
        assert holder.stdout is not None
        holder.stdout.close()
    for _ in range(50):  # its lock died with it
        try:
            with only_one("rl ppo"):
                break
        except UserError:
            time.sleep(0.1)
    else:
        raise AssertionError("the lock outlived its holder")


STAGE = """
import sys
sys.argv[0] = "pipelines/sft.py"
from rl4rec._stage import run_stage
def main(params):
    {body}
run_stage(main)
"""


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise MemoryError", "error: sft: out of memory. Lower sft.batch_size, policy.max_history"),
        ("raise OSError(28, 'No space left on device')", "error: sft: the disk is full"),
    ],
)
def test_a_stage_that_hits_a_limit_exits_with_a_message(tmp_path: Path, body: str, message: str) -> None:
    (tmp_path / "params.yaml").write_text("{}")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", STAGE.format(body=body)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith(message) and "Traceback" not in done.stderr
