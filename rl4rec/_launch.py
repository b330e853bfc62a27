"""Several processes of one training stage on this machine: the stage starts them itself, one for each GPU.

The process that a user or DVC starts holds the stage's lock, runs the same command again in every process, waits, and
says what went wrong, once. Under `accelerate launch` and `torchrun` nothing is started.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

from rl4rec._console import redact
from rl4rec._process import is_main_process, settings_to_lower
from rl4rec._threads import given_threads, usable_processors
from rl4rec.errors import UserError, shown

VARIABLE = "RL4REC_PROCESSES"
_LAUNCHED = "RL4REC_LAUNCHED"  # set for the processes: the id of the one that started them, and a folder of its own
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
_GRACE_SECONDS = 2.0  # in which process 0 may say what another process could have said too
_WATCH_SECONDS = 0.5


@dataclass(frozen=True)
class Failure:
    """How a process has failed, in its own words.

    Args:
        rank: of the process.
        status: its exit status; 1 is a fault of the program.
        message: for the user; empty for a fault.
        trace: the traceback, if it is to be shown.
        time: in seconds, by the clock of this machine.
    """

    rank: int
    status: int
    message: str
    trace: str
    time: float


def count_processes() -> int:
    """How many processes to start, by `RL4REC_PROCESSES`; 1: none, the work is done in this one.

    Raises:
        UserError: the variable holds neither `auto` nor a number from 1 on, or more than there are GPUs.
    """
    if "RANK" in os.environ or "WORLD_SIZE" in os.environ:
        return 1  # this is one of several already
    gpus = _visible_gpus()
    given = os.environ.get(VARIABLE) or "auto"
    if given == "auto":
        return max(1, gpus)
    count = int(given) if given.isascii() and given.isdigit() and len(given) <= 4 else 0
    if count < 1:
        raise UserError(
            f"{VARIABLE}: expected auto or a number of processes (1 or more), got {shown(given)}. Set one of them, or "
            "unset it"
        )
    if 0 < gpus < count:
        raise UserError(
            f"{VARIABLE}: {count} processes, but {gpus} visible GPU{'s' if gpus > 1 else ''}, and each process needs "
            f"one. Set it to {gpus} or less, or unset it; to train on the CPU, set ACCELERATE_USE_CPU=1"
        )
    return count


def _visible_gpus() -> int:
    import torch
    from accelerate.utils import parse_flag_from_env

    return 0 if parse_flag_from_env("ACCELERATE_USE_CPU") else torch.cuda.device_count()


# --- the process that starts the others ------------------------------------------------------------


def launch(stage: str, processes: int) -> int:
    """Run this process's command again in so many processes at once, and return the exit status.

    Args:
        stage: its name, with the variant: `rl ppo`.
        processes: how many.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in ("torch.distributed.elastic", "torch.distributed.launcher"):
        logging.getLogger(name).addHandler(logging.NullHandler())
        logging.getLogger(name).propagate = False  # what is to be said of a failure, `_say` says
    with tempfile.TemporaryDirectory(prefix="rl4rec-") as folder:
        os.environ |= _environment(processes, Path(folder))
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",  # any port that is free
            local_addr="127.0.0.1",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
            # not those that `nohup` and the like have switched off
            signals_to_handle=",".join(each.name for each in _SIGNALS if signal.getsignal(each) != signal.SIG_IGN),
        )
        try:
            elastic_launch(config, sys.executable)(*sys.argv)
        except SignalException as stopped:  # the processes have ended
            if stopped.sigval == signal.SIGINT:
                raise KeyboardInterrupt from None
            return 128 + stopped.sigval
        except ChildFailedError as failed:
            codes = {rank: failure.exitcode for rank, failure in failed.failures.items()}
            return _say(stage, processes, codes, _read_failures(Path(folder)))
    return 0


def _environment(processes: int, folder: Path) -> dict[str, str]:
    """What is set for the processes, beside what torch sets for each."""
    from accelerate.utils import check_cuda_p2p_ib_support

    variables = {
        _LAUNCHED: f"{os.getpid()} {folder}",
        "OMP_NUM_THREADS": given_threads() or str(max(1, usable_processors() // processes)),
    }
    if _visible_gpus() == 0:
        variables["ACCELERATE_USE_CPU"] = "1"  # without it every process would take itself for the only one
    elif not check_cuda_p2p_ib_support():  # cards that cannot reach each other directly; as `accelerate launch` does
        variables |= {name: os.environ.get(name) or "1" for name in ("NCCL_P2P_DISABLE", "NCCL_IB_DISABLE")}
    return variables


def _read_failures(folder: Path) -> list[Failure]:
    """What the processes have handed over, the earliest first."""
    failures = [Failure(**json.loads(path.read_text(encoding="utf-8"))) for path in folder.glob("*.json")]
    return sorted(failures, key=lambda failure: failure.time)


def _say(stage: str, processes: int, codes: dict[int, int], failures: list[Failure]) -> int:
    """Write to stderr why the stage has failed, and return its exit status.

    What has failed in one process makes others fail, whose connection is lost or who are ended. So it is the first that
    counts; and where all say the same, process 0 says it.

    Args:
        stage: its name.
        processes: how many there were.
        codes: exit codes of those that have failed, the first one first; negative: the number of a signal.
        failures: what they have handed over, the earliest first.
    """
    rank, code = next(iter(codes.items()))
    mistakes = [failure for failure in failures if failure.status != 1]
    if not mistakes and code < 0:
        lower = settings_to_lower(stage)
        memory = f", often because memory is used up: lower {', '.join(lower)} in params.yaml" if lower else ""
        cause = f"ended by {_signal_name(-code)}{memory if -code == signal.SIGKILL else ''}"
        sys.stderr.write(f"error: {stage}: rank {rank} of {processes} processes was {cause}\n")
        return 128 - code
    if not failures:
        return code  # Python has said why
    told = mistakes or failures
    soon = told[0].time + _GRACE_SECONDS / 2  # a fault of process 0 that comes later follows from the first
    said = next((each for each in told if each.rank == 0 and (each in mistakes or each.time < soon)), told[0])
    place = "" if said.rank == 0 else f"rank {said.rank}: "
    if said.trace:
        sys.stderr.write(f"{place.strip()}\n{said.trace}" if place else said.trace)
    if said.message:
        sys.stderr.write("interrupted\n" if said.status == 130 else f"error: {place}{said.message}\n")
    return said.status


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


# --- the processes that are started ----------------------------------------------------------------


def launched() -> bool:
    """Whether this process was started by `launch`, which holds the stage's lock and says what goes wrong."""
    return _LAUNCHED in os.environ and "RANK" in os.environ


def follow_launcher() -> None:
    """End this process when the one that started it is gone, killed for instance: nobody could stop it any more."""
    launcher = int(os.environ[_LAUNCHED].partition(" ")[0])

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(_WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, name="follow-launcher", daemon=True).start()


def hand_over(status: int, message: str = "", trace: str = "") -> None:
    """Leave it to the process that started this one to say how this one fails, and give process 0 the time to fail too.

    Args:
        status: with which this process is about to exit.
        message: for the user.
        trace: the traceback, if it is to be shown.
    """
    folder, rank = Path(os.environ[_LAUNCHED].partition(" ")[2]), int(os.environ["RANK"])
    failure = Failure(rank, status, redact(message), redact(trace), time.time())
    try:
        draft = folder / f"{rank}.partial"
        draft.write_text(json.dumps(asdict(failure)), encoding="utf-8")
        draft.replace(folder / f"{rank}.json")
    except OSError:  # the disk is full, or the folder is gone with its owner
        sys.stderr.write(f"{failure.trace}error: rank {rank}: {failure.message}\n")
        return
    if is_main_process() or status == 130:
        return
    until = time.monotonic() + _GRACE_SECONDS
    while time.monotonic() < until and not (folder / "0.json").exists():
        time.sleep(0.05)


def leave_group() -> None:
    """End the communication between processes in an orderly way, if there is any: NCCL warns otherwise."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        with contextlib.suppress(RuntimeError):
            distributed.destroy_process_group()
