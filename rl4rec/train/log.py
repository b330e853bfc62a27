"""The training log: one JSON object a line, handed on to the tracker as it grows."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from rl4rec._process import is_main_process

Forward = Callable[[Mapping[str, float], int | None], None]


class TrainingLog:
    """Context manager and `Report`: appends rows to a file that takes its final name only when training succeeds.

    Only the main process of a distributed run writes.
    """

    def __init__(self, path: Path, forward: Forward) -> None:
        self._path = path
        self._partial = path.with_name(path.name + ".partial")
        self._forward = forward

    def __enter__(self) -> Self:
        if not is_main_process():
            return self
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._partial.open("w", encoding="utf-8")
        return self

    def __call__(self, row: Mapping[str, float]) -> None:
        """Write one row and forward its metrics; a summary's entries are forwarded as `summary/<name>`."""
        if not is_main_process():
            return
        self._file.write(json.dumps(dict(row)) + "\n")
        self._file.flush()
        if row.get("summary"):
            entries = {name: value for name, value in row.items() if name not in ("summary", "step", "seconds")}
            self._forward({f"summary/{name}": value for name, value in entries.items()}, None)
        else:
            self._forward({name: value for name, value in row.items() if name != "step"}, int(row["step"]))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not is_main_process():
            return
        self._file.close()
        if kind is None:
            self._partial.replace(self._path)
