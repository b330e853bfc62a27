"""The terminal and the log: how much is told, errors as messages, progress of long work, and never a secret.

Passwords in addresses and the values of the environment's tokens become `***`. On a terminal long work shows a bar with
rate and time left, which is wiped out when the work is done. Elsewhere (a log file, CI) it logs a line now and then.
`--quiet` and processes other than the main one show neither.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import sys
import time
import traceback
import weakref
from collections.abc import Generator, Iterable, Iterator
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, get_args

from tqdm import tqdm

from rl4rec._process import is_main_process
from rl4rec.errors import UserError, shown

Verbosity = Literal["quiet", "normal", "verbose"]
LOG_VARIABLE = "RL4REC_LOG"  # `dvc repro` runs the scripts: their flags cannot be given there

# What stands before the host of an address: `token@` or `user:password@`, where a careless password may hold `@` and
# `/` too (but `host:5000/path@name` has a port).
_CREDENTIALS = re.compile(r"(?P<scheme>[a-zA-Z][a-zA-Z0-9+.-]*://)(?:[^\s'\"@/:]*:(?!\d+/)[^\s'\"]*|[^\s'\"@/]*)@")
_QUERY = re.compile(
    r"(?i)(?P<key>[?&](?:[a-z-]*(?:password|token|secret|signature|credential)|passwd|pwd|api_key|sig)=)[^&\s'\"]+"
)
_SECRET_NAMES = re.compile(r"TOKEN|PASSWORD|PASSWD|SECRET|API_KEY|ACCESS_KEY")
_SHORTEST = 6  # characters of a secret: shorter values of such variables are words like `true`


def redact(text: str) -> str:
    """The text with every secret replaced."""
    text = _QUERY.sub(r"\g<key>***", _CREDENTIALS.sub(r"\g<scheme>***@", text))
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and _SECRET_NAMES.search(name):
            text = text.replace(value, "***")
    return text


class RedactingFormatter(logging.Formatter):
    """A formatter whose lines, tracebacks included, hold no secrets."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        return redact(super().format(record))


def verbosity() -> Verbosity:
    """How much is told, by `RL4REC_LOG`, which the flags `--quiet` and `--verbose` set.

    Raises:
        UserError: the variable holds something else.
    """
    given = os.environ.get(LOG_VARIABLE) or "normal"
    for known in get_args(Verbosity):
        if given == known:
            return known  # type: ignore[no-any-return]
    raise UserError(
        f"{LOG_VARIABLE}: expected one of {', '.join(get_args(Verbosity))}, got {shown(given)}. Set one of them, or "
        "unset it."
    )


def choose_verbosity(*, quiet: bool, verbose: bool) -> None:
    """What the flags say wins over `RL4REC_LOG`, for this process and those that it starts.

    Raises:
        UserError: both flags are given, or the variable holds no verbosity.
    """
    if quiet and verbose:
        raise UserError("--quiet and --verbose exclude each other: give one of them")
    if quiet or verbose:
        os.environ[LOG_VARIABLE] = "quiet" if quiet else "verbose"
    verbosity()


def outlive_readers() -> None:
    """Drop what is written to a pipe that nobody reads any more, as after `| head -1`.

    The work goes on and its exit status stays what it was: a decision is not lost with its message.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or stream is not getattr(sys, f"__{name}__"):
            continue  # someone captures it
        raw = io.BufferedWriter(_Pipe(stream.fileno(), "wb", closefd=False))
        lines = stream.line_buffering or name == "stderr"
        fresh = io.TextIOWrapper(raw, stream.encoding, stream.errors, line_buffering=lines)
        stream.flush()
        setattr(sys, name, fresh)


class _Pipe(io.FileIO):
    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            return len(data)


def debugging() -> bool:
    """Whether `RL4REC_DEBUG` asks for the traceback of a user's mistake."""
    return os.environ.get("RL4REC_DEBUG", "") not in ("", "0")


def report(error: BaseException, *, debug: bool) -> None:
    """Write a user's mistake to stderr: its message, after the whole traceback if `debug`."""
    if debug:
        sys.stderr.write(redact(traced(error)))
    sys.stderr.write(redact(f"error: {explain(error)}\n"))


def explain(error: BaseException) -> str:
    """A message: that of the error, or for one of the system the file and what is wrong with it."""
    if isinstance(error, OSError) and error.filename is not None:
        names = [str(name) for name in (error.filename, error.filename2) if name is not None]
        return f"{' -> '.join(names)}: {error.strerror or error}."
    return str(error)


def traced(error: BaseException) -> str:
    """The traceback of an error, with what `raise ... from None` hides."""
    seen: BaseException | None = error
    while seen is not None:
        seen.__suppress_context__ = False
        seen = seen.__cause__ or seen.__context__
    return "".join(traceback.format_exception(error))


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
