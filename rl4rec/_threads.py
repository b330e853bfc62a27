"""How many threads a process computes with, and how they wait for each other: as many as it has processors to itself.

Libraries count the cores of the machine. In a container with a CPU quota, or on a runner that others use too, threads
then wait for one that is not running, and by default they wait by spinning, which takes the time that it needs: a
training can be many times slower with two threads than with one. So a quota lowers their number, and they sleep.

OpenMP and polars read their variables once, when they are loaded: `choose_threads` comes before them
(`rl4rec._script`).
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

_OPENMP, _POLARS, _WAITING = "OMP_NUM_THREADS", "POLARS_MAX_THREADS", "OMP_WAIT_POLICY"
_ours: set[str] = set()  # variables that `choose_threads` has set


def choose_threads(root: Path = Path("/")) -> None:
    """Set what OpenMP and polars read when they are loaded, unless it is set: passive waiting, threads by the quota."""
    values = {_WAITING: "passive"}
    if cpu_quota(root) is not None:
        values |= dict.fromkeys((_OPENMP, _POLARS), str(usable_processors(root)))
    for name, value in values.items():
        if not os.environ.get(name):
            os.environ[name] = value
            _ours.add(name)


def given_threads() -> str | None:
    """`OMP_NUM_THREADS` as the user has set it, or None."""
    return None if _OPENMP in _ours else os.environ.get(_OPENMP) or None


def describe_threads(threads: int) -> str:
    """So many threads for the log, with what limits them: `2 threads (CPU quota 2.5)`."""
    quota = cpu_quota()
    why = f" ({_OPENMP})" if given_threads() else "" if quota is None else f" (CPU quota {quota:g})"
    return f"{threads} thread{'s' if threads != 1 else ''}{why}"


def usable_processors(root: Path = Path("/")) -> int:
    """Whole processors that this process has to itself: by its affinity and by its CPU quota, 1 at least."""
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        allowed = os.cpu_count() or 1
    quota = cpu_quota(root)
    return allowed if quota is None else max(1, min(allowed, math.floor(quota)))


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Processors' worth of time that this process's control groups may use, the least of all levels; None: no limit.

    Args:
        root: of the file system, where `proc/self/cgroup` and `sys/fs/cgroup` are.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:  # not on Linux
        return None
    quotas: list[float] = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, place = rest.partition(":")
        if not controllers:  # version 2, alone or beside version 1
            for mount in ("", "unified"):
                quotas += _quotas(root / "sys/fs/cgroup" / mount, place, _quota_v2)
        elif "cpu" in controllers.split(","):
            for mount in ("cpu", controllers):
                quotas += _quotas(root / "sys/fs/cgroup" / mount, place, _quota_v1)
    return min(quotas, default=None)


def _quotas(mount: Path, place: str, read: Callable[[Path], float]) -> Iterator[float]:
    """Limits of a group and of all above it. In a container its own group is the root of what is mounted."""
    group = mount / place.strip("/")
    for folder in (group, *group.parents):
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):  # no such file, or no limit
            yield read(folder)
        if folder == mount:
            return


def _quota_v2(group: Path) -> float:
    quota, period = (group / "cpu.max").read_text(encoding="utf-8").split()
    return int(quota) / int(period)  # `max 100000`: no limit


def _quota_v1(group: Path) -> float:
    quota, period = (int((group / f"cpu.cfs_{name}_us").read_text(encoding="utf-8")) for name in ("quota", "period"))
    if quota <= 0:
        raise ValueError("no limit")
    return quota / period
