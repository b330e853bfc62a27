"""Training logs: `logs/<stage>.jsonl`, one JSON object a line, the last one a summary."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from rl4rec.errors import UserError

Progress = Literal["step", "samples", "seconds"]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class TrainingLog:
    """Rows of one training run, in order, and its summary (empty where the run did not finish)."""

    rows: list[dict[str, Any]]
    summary: dict[str, Any]

    def series(self, key: str, *, over: Progress) -> tuple[FloatArray, FloatArray]:
        """Progress and value of every row that has a finite `key`, each (n,)."""
        found = [
            (float(row[over]), float(row[key]))
            for row in self.rows
            if isinstance(row.get(over), int | float)
            and isinstance(row.get(key), int | float)
            and math.isfinite(row[key])
        ]
        table = np.array(found, dtype=np.float64).reshape(-1, 2)
        return table[:, 0], table[:, 1]

    def total(self, key: str) -> float | None:
        """A finite number of the summary, or None."""
        value = self.summary.get(key)
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def load_log(path: Path) -> TrainingLog | None:
    """Read a training log; None where there is none.

    Raises:
        UserError: a line is not a JSON object.
    """
    if not path.exists():
        return None
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number}: not JSON ({error}). Train that stage again.") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: expected a JSON object, got {line[:60]!r}.")
        rows.append(row)
    summaries = [row for row in rows if row.get("summary") is True]
    return TrainingLog([row for row in rows if row.get("summary") is not True], summaries[-1] if summaries else {})
