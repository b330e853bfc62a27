"""What is written to the terminal and the logs, how much of it, errors as messages, and never a secret.

Passwords in addresses and the values of the environment's tokens become `***`.
"""

from __future__ import annotations

import io
import logging
import os
import re
import sys
import traceback
from typing import Any, Literal, get_args

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
        _uncover(error)
        sys.stderr.write(redact("".join(traceback.format_exception(error))))
    sys.stderr.write(redact(f"error: {explain(error)}\n"))


def explain(error: BaseException) -> str:
    """A message: that of the error, or for one of the system the file and what is wrong with it."""
    if isinstance(error, OSError) and error.filename is not None:
        names = [str(name) for name in (error.filename, error.filename2) if name is not None]
        return f"{' -> '.join(names)}: {error.strerror or error}."
    return str(error)


def _uncover(error: BaseException) -> None:
    """Let the traceback show what `raise ... from None` hides."""
    seen: BaseException | None = error
    while seen is not None:
        seen.__suppress_context__ = False
        seen = seen.__cause__ or seen.__context__
