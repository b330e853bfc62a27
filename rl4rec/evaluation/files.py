"""`metrics/<policy>.json` and `ranks/<policy>.parquet`: written whole or not at all, read with checks."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import polars as pl

from rl4rec.errors import UserError
from rl4rec.evaluation.protocols import Evaluation


def write_text(path: Path, text: str) -> None:
    """Write a text file through a temporary sibling, so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON with sorted keys: equal content, equal bytes."""
    write_text(path, json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n")


def save_evaluation(evaluation: Evaluation, metrics_path: Path, ranks_path: Path) -> None:
    """Write the metrics as JSON and the per-user ranks as parquet."""
    ranks_path.parent.mkdir(parents=True, exist_ok=True)
    part = ranks_path.with_name(f"{ranks_path.name}.part")
    evaluation.ranks.write_parquet(part)
    os.replace(part, ranks_path)
    write_json(metrics_path, evaluation.metrics)


def load_evaluation(metrics_path: Path, ranks_path: Path) -> Evaluation:
    """Read what `save_evaluation` wrote.

    Raises:
        UserError: a file is missing or damaged.
    """
    again = f"Run `dvc repro evaluate@{metrics_path.stem}`."
    try:
        metrics = json.loads(metrics_path.read_text(encoding="utf-8"))
        ranks = pl.read_parquet(ranks_path)
    except FileNotFoundError as error:
        raise UserError(
            f"{error.filename or ranks_path}: no such file, so there is nothing to compare. {again}"
        ) from None
    except (ValueError, pl.exceptions.PolarsError) as error:
        raise UserError(f"{metrics_path} or {ranks_path}: damaged ({error}). {again}") from None
    if not isinstance(metrics, dict) or not {"policy", "protocol", "valid", "test"} <= metrics.keys():
        raise UserError(f"{metrics_path}: not an evaluation (expected policy, protocol, valid and test). {again}")
    return Evaluation(metrics, ranks)
