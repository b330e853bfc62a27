"""Processes: which one of a distributed run this is, one stage at a time in a folder, memory or disk used up."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from rl4rec import algorithms
from rl4rec.errors import UserError


def is_main_process() -> bool:
    """Whether this process writes files and tracks; True in a run of one process."""
    return os.environ.get("RANK", "0") == "0"


FOLDER = Path(".rl4rec")  # what belongs to this checkout only

# What to lower in params.yaml when a stage that trains no policy runs out of memory, most effective first.
_LOWER = {
    "prepare": (),
    "crossfit": ("sft.batch_size", "policy.max_history", "sft.target_window"),
    "evaluate": ("evaluate.batch_size",),
    "compare": ("compare.bootstrap_samples",),
}
_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "cannot allocate memory")
_NO_SPACE = ("no space left on device", "disk full", "disk is full", "disk quota exceeded")


def settings_to_lower(stage: str) -> tuple[str, ...]:
    """What to lower in params.yaml when a stage runs out of memory, most effective first.

    Args:
        stage: its name, with the variant: `rl ppo`.
    """
    for policy in algorithms.POLICIES:
        if policy.stage == stage.replace(" ", "@"):
            return policy.lower
    return _LOWER.get(stage.split()[0], ())


def limit_reached(error: BaseException, stage: str) -> str | None:
    """A message that says what to do if the machine's memory or disk is used up; None for all other errors.

    Args:
        error: of a stage.
        stage: its name, with the variant: `rl ppo`.
    """
    chain = list(_chain(error))
    text = "\n".join(str(each).lower() for each in chain)
    if any(isinstance(each, MemoryError) or type(each).__name__ == "OutOfMemoryError" for each in chain) or any(
        sign in text for sign in _NO_MEMORY
    ):
        keys = settings_to_lower(stage)
        advice = f"Lower {', '.join(keys)} in params.yaml" if keys else "Use a machine with more memory"
        return f"{stage}: out of memory. {advice}. ({_first_line(error)})"
    if any(getattr(each, "errno", None) in (errno.ENOSPC, errno.EDQUOT) for each in chain) or any(
        sign in text for sign in _NO_SPACE
    ):
        return (
            f"{stage}: the disk is full ({_first_line(error)}). Make room and run the same command again: "
            "it goes on from the last whole checkpoint"
        )
    return None


@contextlib.contextmanager
def only_one(stage: str) -> Iterator[None]:
    """Let no second process run the same stage in this folder: both would write the same files.

    Raises:
        UserError: one is running.
    """
    FOLDER.mkdir(exist_ok=True)
    name = FOLDER / f"{stage.replace(' ', '-')}.lock"
    lock = FileLock(name, timeout=0)  # given back by the system when its holder dies
    owner = name.with_suffix(".pid")
    try:
        lock.acquire()
    except Timeout:
        with contextlib.suppress(OSError):
            raise UserError(
                f"{stage}: already running in {Path.cwd()} (process {owner.read_text(encoding='utf-8')}). Wait for it, "
                "or run in a folder of its own (`rl4rec workspace`)"
            ) from None
        raise UserError(f"{stage}: already running in {Path.cwd()}. Wait for it, or end it") from None
    try:
        owner.write_text(str(os.getpid()), encoding="utf-8")
        yield
    finally:
        lock.release()


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
