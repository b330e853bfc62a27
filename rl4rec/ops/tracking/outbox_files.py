"""The files of an outbox.

`<name>.jsonl`   the operations of one run, one JSON object per line, as they came; paths start at the project
`<name>.sent`    how many of them the server has taken, and the id of the run there
`<name>.lock`    held by the process whose run it is; the system gives it back when that process dies
`silent-since`   its time of change is when a server did not answer last
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from filelock import FileLock, Timeout

from rl4rec.ops.tracking.delivery import Operation

logger = logging.getLogger("rl4rec.tracking")

_PATHS = {"artifact": ("path",), "policy": ("folder", "data"), "dataset": ("folder",)}  # of each operation's files
_SILENT_SECONDS = 300.0  # after which a server that did not answer is waited for again


class OutboxFiles:
    """The files of one outbox; a disk that cannot be written costs the copy of what is logged, not the training."""

    def __init__(self, folder: Path, name: str) -> None:
        folder = folder.resolve()  # the working directory may change
        self.folder, self.name = folder, name
        self._project = folder.parents[1]  # may be moved while an outbox waits
        self._lines, self._sent = folder / f"{name}.jsonl", folder / f"{name}.sent"
        self._silent = folder / "silent-since"
        self._lock = FileLock(folder / f"{name}.lock", timeout=0, thread_local=False)  # the sending thread releases it
        self._count = 0
        self._file: TextIO | None = None

    def open(self) -> None:
        """Begin a new outbox."""
        with _tolerated():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
            self._file = self._lines.open("a", encoding="utf-8")

    def append(self, operation: Operation) -> None:
        """Add a line."""
        if self._file is not None:
            with _tolerated():
                self._file.write(json.dumps(_each_path(operation, self._from_project), default=str) + "\n")
                self._file.flush()

    def read(self) -> tuple[list[Operation], str | None]:
        """Operations that are left, and the run's id; a line that was cut off by a crash is none."""
        operations: list[Operation] = []
        with contextlib.suppress(OSError), self._lines.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                with contextlib.suppress(ValueError, TypeError, LookupError):
                    operations.append(_each_path(json.loads(line), lambda path: str(self._project / path)))
        run_id = None
        with contextlib.suppress(OSError, ValueError, TypeError, LookupError):  # damaged: all is sent once more
            state = json.loads(self._sent.read_text(encoding="utf-8"))
            self._count, run_id = int(state["sent"]), state["run_id"]
        return operations[self._count :], run_id

    def _from_project(self, path: str) -> str:
        """A path of an operation, from the project's folder on where it is inside."""
        return str(Path(path).relative_to(self._project)) if Path(path).is_relative_to(self._project) else path

    def sent(self, count: int, run_id: str | None) -> None:
        """Note that the server has taken so many more."""
        self._count += count
        with _tolerated():
            draft = self._sent.with_suffix(".new")
            draft.write_text(json.dumps({"sent": self._count, "run_id": run_id}), encoding="utf-8")
            draft.replace(self._sent)
            self._silent.unlink(missing_ok=True)

    def remove(self) -> None:
        """All is sent."""
        for path in (self._lines, self._sent):
            with _tolerated():
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let others work on it."""
        with _tolerated():
            if self._file is not None:
                self._file.close()
                self._file = None
            self._lock.release()
            if not self._lines.exists():
                Path(self._lock.lock_file).unlink(missing_ok=True)

    def left_behind(self) -> list[Path]:
        """Outboxes of earlier runs, oldest first."""
        found = [path for path in self.folder.glob("*.jsonl") if path != self._lines]
        return sorted(found, key=lambda path: path.stat().st_mtime)

    def server_was_silent(self) -> bool:
        """Whether a server has not answered in the last minutes."""
        with contextlib.suppress(OSError):
            return time.time() - self._silent.stat().st_mtime < _SILENT_SECONDS
        return False

    def note_silence(self) -> None:
        """A server did not answer."""
        with _tolerated():
            self._silent.touch()

    @contextlib.contextmanager
    def claimed(self) -> Iterator[bool]:
        """Whether nobody else works on this outbox, for the time of the block."""
        try:
            self._lock.acquire()
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            self.close()


def _each_path(operation: Operation, changed: Callable[[str], str]) -> Operation:
    """An operation with its paths of files changed."""
    keys = _PATHS.get(operation["do"], ())
    return operation | {key: changed(operation[key]) for key in keys}


@contextlib.contextmanager
def _tolerated() -> Iterator[None]:
    """A full or read-only disk costs the copy of what is logged, not the training."""
    try:
        yield
    except (OSError, Timeout) as error:
        logger.warning("the outbox of MLflow cannot be written: %s", error)
