"""A stage in several processes: how many, what is said when one fails, and that none stays behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from rl4rec import _launch
from rl4rec.errors import UserError

SCRIPT = """
import json, os, signal, sys, time
from pathlib import Path
from rl4rec._stage import run_stage
from rl4rec.errors import UserError

def main(params):
    rank = os.environ.get("RANK", "alone")
    Path(f"started-{rank}").write_text(json.dumps([os.getpid(), os.environ.get("WORLD_SIZE"),
        os.environ.get("ACCELERATE_USE_CPU"), os.environ.get("OMP_NUM_THREADS"), sys.argv[1:]]))
    REST

if __name__ == "__main__":
    run_stage(main, distributed=True)
"""
MEETING = """
    import torch
    torch.distributed.init_process_group("gloo")
    torch.distributed.barrier()
"""


def start(folder: Path, rest: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Start a stage that ends with the lines `rest`, in two processes."""
    (folder / "params.yaml").write_text("{}")
    (folder / "script.py").write_text(SCRIPT.replace("REST", rest.strip()))
    ours = ("RL4REC_", "ACCELERATE_", "OMP_NUM_THREADS")
    clean = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    return subprocess.Popen(
        [sys.executable, "script.py", *arguments],
        cwd=folder,
        env=clean | {"RL4REC_PROCESSES": "2"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit status and stderr."""
    _, errors = process.communicate(timeout=120)
    return process.returncode, errors


def started(folder: Path, rank: int | str) -> list[object]:
    found: list[object] = json.loads((folder / f"started-{rank}").read_text())
    return found


@pytest.mark.parametrize(
    ("given", "gpus", "count"),
    [(None, 0, 1), ("", 4, 4), ("auto", 1, 1), ("auto", 3, 3), ("1", 4, 1), ("4", 4, 4), ("3", 0, 3)],
)
def test_as_many_processes_as_gpus_or_as_the_variable_says(
    given: str | None, gpus: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    for name in ("RL4REC_PROCESSES", "RANK", "WORLD_SIZE", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)
    if given is not None:
        monkeypatch.setenv("RL4REC_PROCESSES", given)
    assert _launch.count_processes() == count


@pytest.mark.parametrize("given", ["none", "0", "-1", "1.5", "²", "9" * 5000])
def test_what_is_no_number_of_processes_is_refused(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RL4REC_PROCESSES", given)
    with pytest.raises(UserError, match=r"RL4REC_PROCESSES: expected auto or a number .*\. Set one of them, or unset"):
        _launch.count_processes()


def test_more_processes_than_gpus_are_refused_unless_they_train_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.setenv("RL4REC_PROCESSES", "3")
    with pytest.raises(UserError, match=r"RL4REC_PROCESSES: 3 processes, but 2 visible GPUs.*Set it to 2 or less"):
        _launch.count_processes()
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    assert _launch.count_processes() == 3


def test_nothing_is_started_where_something_else_has_started_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RL4REC_PROCESSES", "2")
    for name in ("RANK", "WORLD_SIZE"):
        with monkeypatch.context() as patched:
            patched.setenv(name, "1")
            assert _launch.count_processes() == 1


def test_the_same_command_runs_in_every_process(tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text("{}")
    process = start(tmp_path, "print(params.sft.seed)", "--params", "other.yaml")
    output, errors = process.communicate(timeout=120)
    assert (process.returncode, output, errors) == (0, "0\n0\n", "")
    first, second = started(tmp_path, 0), started(tmp_path, 1)
    threads = str(max(1, len(os.sched_getaffinity(0)) // 2))
    assert first[1:] == second[1:] == ["2", "1", threads, ["--params", "other.yaml"]]
    assert len({process.pid, first[0], second[0]}) == 3


@pytest.mark.parametrize(("processes", "threads"), [("1", "3"), ("", "3")])
def test_one_process_is_the_one_that_was_started(tmp_path: Path, processes: str, threads: str) -> None:
    process = start(tmp_path, "", RL4REC_PROCESSES=processes, OMP_NUM_THREADS=threads, CUDA_VISIBLE_DEVICES="")
    assert end(process) == (0, "")
    assert started(tmp_path, "alone")[:4] == [process.pid, None, None, "3"]


def test_threads_that_are_given_are_kept(tmp_path: Path) -> None:
    assert end(start(tmp_path, "", OMP_NUM_THREADS="3")) == (0, "")
    assert started(tmp_path, 1)[3] == "3"


@pytest.mark.parametrize(
    ("rest", "status", "message"),
    [
        ("raise UserError('line 3: no number')", 2, "error: line 3: no number\n"),
        ("if rank == '1': raise UserError('line 3: no number')", 2, "error: rank 1: line 3: no number\n"),
        ("time.sleep(0.5 * (rank == '0')); raise UserError('no number')", 2, "error: no number\n"),
        ("open('nowhere')", 2, "error: nowhere: No such file or directory.\n"),
        ("raise KeyboardInterrupt", 130, "interrupted\n"),
        ("sys.exit(3)", 3, ""),
        (
            "if rank == '1': os.kill(os.getpid(), signal.SIGKILL)",
            137,
            "error: script: rank 1 of 2 processes was ended by SIGKILL\n",
        ),
    ],
)
def test_a_failure_is_said_once(tmp_path: Path, rest: str, status: int, message: str) -> None:
    if "rank == '1'" in rest:
        rest += "\n    time.sleep(60)"  # the others are ended
    assert end(start(tmp_path, rest)) == (status, message)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rest", "status", "message"),
    [
        ("raise UserError('no number')", 2, "error: no number\n"),
        ("if rank == '1': raise UserError('no number')", 2, "error: rank 1: no number\n"),
        (
            "if rank == '1': os.kill(os.getpid(), signal.SIGKILL)",
            137,
            "error: script: rank 1 of 2 processes was ended by SIGKILL\n",
        ),
    ],
)
def test_the_others_who_wait_for_the_one_that_fails_say_nothing(
    tmp_path: Path, rest: str, status: int, message: str
) -> None:
    lines = f"{MEETING}    {rest}\n    torch.distributed.barrier()"
    assert end(start(tmp_path, lines)) == (status, message)


@pytest.mark.slow
@pytest.mark.parametrize(("rest", "label"), [("1 / 0", ""), ("1 / (rank == '0')", "rank 1:\n")])
def test_a_fault_of_the_program_is_one_traceback(tmp_path: Path, rest: str, label: str) -> None:
    status, errors = end(start(tmp_path, f"{MEETING}    {rest}\n    torch.distributed.barrier()"))
    assert status == 1
    assert errors.startswith(f"{label}Traceback (most recent call last):\n")
    assert errors.endswith("ZeroDivisionError: division by zero\n")
    assert errors.count("Traceback") == 1 and "gloo" not in errors


def test_a_mistake_is_shown_with_its_traceback_if_asked_for(tmp_path: Path) -> None:
    status, errors = end(start(tmp_path, "raise UserError('no number')", "--debug"))
    assert status == 2 and errors.startswith("Traceback") and errors.endswith("error: no number\n")
    assert errors.count("Traceback") == 1


def test_wrong_settings_are_found_before_anything_is_started(tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text("sft: {sede: 1}")
    status, errors = end(start(tmp_path, "", "--params", "wrong.yaml"))
    assert status == 2 and errors.count("did you mean 'seed'?") == 1
    status, errors = end(start(tmp_path, "", RL4REC_PROCESSES="many"))
    assert status == 2 and errors.startswith("error: RL4REC_PROCESSES: ")
    assert not list(tmp_path.glob("started-*"))


def wait_for(folder: Path, *ranks: int) -> list[psutil.Process]:
    """The processes of a stage, once they work."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            return [psutil.Process(int(str(started(folder, rank)[0]))) for rank in ranks]
        except (FileNotFoundError, json.JSONDecodeError):
            time.sleep(0.1)
    raise AssertionError("the processes have not started")


@pytest.mark.parametrize(
    ("number", "status", "message"),
    [
        (signal.SIGINT, 130, "interrupted\n"),
        (signal.SIGTERM, 143, ""),
        (signal.SIGHUP, 129, ""),
        (signal.SIGKILL, -9, ""),
    ],
)
def test_a_signal_ends_all_processes(tmp_path: Path, number: signal.Signals, status: int, message: str) -> None:
    process = start(tmp_path, "time.sleep(60)")
    workers = wait_for(tmp_path, 0, 1)
    process.send_signal(number)
    assert end(process) == (status, message)
    until = time.monotonic() + 10
    while time.monotonic() < until and any(
        worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers
    ):
        time.sleep(0.1)
    assert not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers)


def test_a_hangup_that_is_ignored_ends_nothing(tmp_path: Path) -> None:
    """As under `nohup`."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = start(tmp_path, "time.sleep(3)")
    finally:
        signal.signal(signal.SIGHUP, before)
    wait_for(tmp_path, 0, 1)
    process.send_signal(signal.SIGHUP)
    assert end(process) == (0, "")


def test_the_stage_is_locked_once_for_all_its_processes(tmp_path: Path) -> None:
    first = start(tmp_path, "time.sleep(60)")
    wait_for(tmp_path, 0, 1)
    status, errors = end(start(tmp_path, "time.sleep(60)"))
    assert status == 2
    assert errors.startswith("error: script: already running") and f"(process {first.pid})" in errors
    first.terminate()
    assert end(first)[0] == 143


def test_only_process_0_logs(tmp_path: Path) -> None:
    rest = "import logging, warnings; logging.getLogger('rl4rec').warning('said'); warnings.warn('warned')"
    status, errors = end(start(tmp_path, rest))
    assert status == 0 and errors.count("WARNING rl4rec: said") == 1 and errors.count("UserWarning: warned") == 1
