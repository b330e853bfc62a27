"""Progress of long work on stderr: the one place that decides whether a bar is shown.

On a terminal it is a bar with rate and time left, which is wiped out when the work is done. Elsewhere (a log file, CI)
long work logs a line now and then. `--quiet` and processes other than the main one show neither.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
import weakref
from collections.abc import Generator, Iterable, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar

from tqdm import tqdm

from rl4rec.distributed import is_main_process
from rl4rec.messages import RedactingFormatter, verbosity

T = TypeVar("T")

logger = logging.getLogger(__name__)

_DELAY_SECONDS = 0.5  # shorter work shows nothing
_LINE_SECONDS = 30.0  # between two lines in a log


def bars_shown() -> bool:
    """Whether work shows bars: stderr is a terminal that can redraw a line, and this process may write to it."""
    return _may_tell() and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def _may_tell() -> bool:
    return verbosity() != "quiet" and is_main_process()


class _Bar(tqdm):  # type: ignore[misc]
    monitor_interval = 0  # no thread that redraws: every update does

    @property
    def is_drawn(self) -> bool:
        """Whether it is on the screen: not in its first moments, and not when it is closed."""
        return not self.disable and self.last_print_t >= self.start_t + self.delay


_live: weakref.WeakSet[_Bar] = weakref.WeakSet()


class Progress:
    """How far a piece of work is. Use it in a `with` block: whatever ends the work wipes out the bar.

    Args:
        description: of the work, such as `sft`.
        total: units in all; None: not known.
        unit: what is counted, such as `step`; `B` is shown in binary multiples.
        initial: units that an earlier process has done.
    """

    def __init__(self, description: str, *, total: int | None, unit: str, initial: int = 0) -> None:
        self._description, self._total, self._unit = description, total, unit
        self._initial = self._count = initial
        self._since = self._told_at = time.monotonic()
        self._lines = _may_tell() and not bars_shown()
        self._bar: _Bar | None = None
        if bars_shown():
            size = unit == "B"
            self._bar = _Bar(
                total=total,
                initial=initial,
                desc=description,
                unit=unit if size else f" {unit}",
                unit_scale=size,
                unit_divisor=1024 if size else 1000,
                delay=_DELAY_SECONDS,
                leave=False,
                **_width(),
                miniters=1,
                file=sys.stderr,
            )
            _live.add(self._bar)

    def update(self, count: int = 1) -> None:
        """So many more units are done."""
        self._count += count
        if self._bar is not None:
            self._bar.update(count)
        elif self._lines and time.monotonic() - self._told_at >= _LINE_SECONDS:
            self._told_at = time.monotonic()
            logger.info("%s", self._line())

    def close(self) -> None:
        """Wipe out the bar."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _line(self) -> str:
        rate = (self._count - self._initial) / max(time.monotonic() - self._since, 1e-9)
        done = f"{self._count}{'' if self._total is None else f' of {self._total}'}"
        done = f"{done} {self._unit}" if self._unit == "B" else f"{self._unit} {done}"
        line = f"{self._description}: {done}, {rate:.3g} a second"
        if self._total is not None and rate > 0:
            line += f", {tqdm.format_interval(max(self._total - self._count, 0) / rate)} left"
        return line


def _width() -> dict[str, Any]:
    """The width of a bar: that of the terminal as it changes, or 80 columns where it states none."""
    try:
        columns = os.get_terminal_size(sys.stderr.fileno()).columns
    except OSError:
        columns = 0
    return {"dynamic_ncols": True} if columns else {"ncols": 80, "nrows": 24}


def track(iterable: Iterable[T], description: str, *, total: int | None = None, unit: str) -> Iterator[T]:
    """The elements of an iterable, with the progress through them.

    Args:
        iterable: what to go through.
        description: of the work.
        total: how many elements; None: its length if it has one.
        unit: what an element is.
    """
    if total is None:
        with contextlib.suppress(TypeError):
            total = len(iterable)  # type: ignore[arg-type]
    with Progress(description, total=total, unit=unit) as progress:
        for element in iterable:
            yield element
            progress.update()


@contextlib.contextmanager
def wiped_out() -> Generator[None]:
    """Wipe out the bars that the block has begun and left, by an error say: what is written next has its own line."""
    before = set(_live)
    try:
        yield
    finally:
        for bar in set(_live) - before:
            bar.close()


class LogHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Log lines on stderr, without secrets; a bar gives way to each and is drawn again below it."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(RedactingFormatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s", datefmt="%H:%M:%S"))

    def emit(self, record: logging.LogRecord) -> None:
        """Write the line of a record."""
        drawn = [bar for bar in _live if bar.is_drawn]
        for bar in drawn:
            bar.clear()
        super().emit(record)
        for bar in drawn:
            bar.refresh()
