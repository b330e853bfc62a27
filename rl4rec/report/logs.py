"""Training logs: `logs/<stage>.jsonl`, one JSON object per line, the last one a summary; written and read here."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeGuard

import numpy as np
import numpy.typing as npt

from rl4rec._io import parse_json
from rl4rec._process import is_main_process
from rl4rec.errors import UserError, shown

Progress = Literal["step", "samples", "seconds"]
Forward = Callable[[Mapping[str, float], int | None], None]
FloatArray = npt.NDArray[np.float64]
_LARGEST = 1e30  # nothing that is measured is beyond; squares of it are still numbers


@dataclass(frozen=True)
class TrainingLog:
    """Rows of one training run, in order, and its summary (empty where the run did not finish)."""

    rows: list[dict[str, Any]]
    summary: dict[str, Any]

    def series(self, key: str, *, over: Progress) -> tuple[FloatArray, FloatArray]:
        """Progress and value of every row that has a finite `key`, each (n,)."""
        found = [
            (float(row[over]), float(row[key])) for row in self.rows if _finite(row.get(over)) and _finite(row.get(key))
        ]
        table = np.array(found, dtype=np.float64).reshape(-1, 2)
        return table[:, 0], table[:, 1]

    def total(self, key: str) -> float | None:
        """A finite number of the summary, or None."""
        value = self.summary.get(key)
        return float(value) if _finite(value) else None


def _finite(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and abs(value) <= _LARGEST  # false for NaN


def load_log(path: Path) -> TrainingLog | None:
    """Read a training log; None where there is none.

    Raises:
        UserError: the file cannot be read, or a line is not a JSON object.
    """
    again = "Train that stage again."
    rows: list[dict[str, Any]] = []
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}). {again}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line.decode("utf-8"))
        except ValueError as error:  # UnicodeDecodeError too
            raise UserError(f"{path}, line {number}: not JSON ({str(error)[:200]}). {again}") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: expected a JSON object, got {shown(row)}. {again}")
        rows.append(row)
    summaries = [row for row in rows if row.get("summary") is True]
    return TrainingLog([row for row in rows if row.get("summary") is not True], summaries[-1] if summaries else {})


class LogWriter:
    """Context manager and callback: appends rows to a file that takes its final name only when training succeeds.

    Only the main process of a distributed run writes.

    Args:
        path: `logs/<stage>.jsonl`.
        forward: takes the metrics of each row and its step, None for the summary's.
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
