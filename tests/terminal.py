"""A command under a pseudo-terminal, as a user sees it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import NamedTuple

COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class Seen(NamedTuple):
    """What a command wrote, and its exit status."""

    status: int
    out: str
    err: str


def run_in_terminal(
    code: str, *arguments: str, cwd: Path, environment: dict[str, str] | None = None, columns: int = 100
) -> Seen:
    """Run Python code whose stderr is a terminal, and stdout a pipe. 0 columns: a terminal that states no size."""
    rows = 40 if columns else 0
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    clean = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR", "RL4REC_LOG")}
    settings = clean | {"TERM": "xterm"} | (environment or {})
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd,
        env=settings,
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
    )
    os.close(theirs)
    written = b""
    while True:
        try:
            block = os.read(ours, 65536)
        except OSError:  # EIO: the other end is closed
            break
        if not block:
            break
        written += block
    os.close(ours)
    assert process.stdout is not None
    out = process.stdout.read()
    process.stdout.close()
    return Seen(process.wait(), out, written.decode())
