"""`metrics/<policy>.json`, `ranks/` and `slates/<policy>.parquet`: written whole or not at all, read with checks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import polars as pl
from pydantic import BaseModel, Field, ValidationError

from rl4rec._io import read_json, read_parquet, write_json, write_parquet
from rl4rec.data.dataset import FOLDS
from rl4rec.errors import UserError, shown
from rl4rec.evaluation.protocols import METRICS, SLATE_LENGTH, Evaluation
from rl4rec.metrics import metric_key
from rl4rec.params import Figure

_BEYOND = ("coverage", "popularity", "popularity_percentile")

Count = Annotated[int, Field(ge=0, strict=True)]
Positive = Annotated[Count, Field(ge=1)]
Value = Annotated[float, Field(allow_inf_nan=False, strict=True)]


class _Negatives(BaseModel):
    n: Positive
    sampler: str
    seed: Count
    digest: str
    users_with_fewer: Count


class _Folds(BaseModel):
    valid: Count
    test: Count


class _Protocol(BaseModel):
    data_hash: str
    source: str | None
    users: Count
    evaluated_users: Count
    items: Count
    k: Annotated[list[Positive], Field(min_length=1)]
    tie_rule: str
    masking: str
    repeated_targets: _Folds
    cold_targets: _Folds
    targets: _Folds
    split: str
    odd: list[str]
    negatives: _Negatives
    versions: dict[str, str]


class _Metrics(BaseModel):
    """The keys that the comparison, the report and the gate rely on."""

    policy: str
    protocol: _Protocol
    metrics: dict[Figure, Value]


def save_evaluation(
    evaluation: Evaluation, metrics_path: Path, ranks_path: Path, slates_path: Path | None = None
) -> None:
    """Write the metrics as JSON, the per-user ranks as parquet, and, with a path for them, the slates too."""
    if slates_path is not None and evaluation.slates is not None:
        write_parquet(slates_path, evaluation.slates)
    write_parquet(ranks_path, evaluation.ranks)
    content = {"policy": evaluation.policy, "protocol": evaluation.protocol, "metrics": evaluation.metrics}
    write_json(metrics_path, content)


def load_evaluation(metrics_path: Path, ranks_path: Path) -> Evaluation:
    """Read what `save_evaluation` wrote.

    Raises:
        UserError: a file is missing or damaged, or lacks what it should hold.
    """
    again = f"Run `dvc repro evaluate@{metrics_path.stem}`."
    found = load_metrics(metrics_path, then=again)
    ranks = read_parquet(ranks_path, then=again)
    for column in ("user_row", *dict.fromkeys(key.rpartition("/")[0] for key in found["metrics"])):
        if column not in ranks.columns:
            raise UserError(f"{ranks_path}: no column '{column}'. {again}")
        values = ranks[column]
        there = len(ranks) if column == "user_row" else found["protocol"]["targets"][column.partition("/")[0]]
        if values.dtype != pl.Int32 or len(values) - values.null_count() != there or (values < 0).any():
            raise UserError(f"{ranks_path}: column '{column}' must hold {there} 32-bit numbers from 0. {again}")
    if ranks.is_empty():
        raise UserError(f"{ranks_path}: no users. {again}")
    return Evaluation(found["policy"], found["protocol"], found["metrics"], ranks)


def load_slates(path: Path, *, users: pl.Series, num_items: int) -> pl.DataFrame:
    """Read the slates that `save_evaluation` wrote: `user_row` (int32), `items` (list<int32>, best first).

    Args:
        path: `slates/<policy>.parquet`.
        users: `user_row` of the policy's ranks; the slates must be of the same users in the same order.
        num_items: size of the catalogue.

    Raises:
        UserError: the file is missing or damaged, is of other users, or a slate holds what is no item, or one twice.
    """
    again = f"Run `dvc repro evaluate@{path.stem}`."
    table = read_parquet(path, ["user_row", "items"], then=again)
    kinds = {"user_row": pl.Int32, "items": pl.List(pl.Int32)}
    if dict(table.schema) != kinds or table["items"].has_nulls():
        raise UserError(f"{path}: expected 32-bit numbers and lists of them, without gaps, got {table.schema}. {again}")
    if table["user_row"].to_list() != users.to_list():
        raise UserError(f"{path}: of other users than ranks/{path.name}. {again}")
    flat = table["items"].explode(empty_as_null=False)
    if flat.has_nulls() or not flat.is_between(0, num_items - 1).all():
        raise UserError(f"{path}: an item's number is not from 0 to {num_items - 1}. {again}")
    if (table["items"].list.len() > SLATE_LENGTH).any():
        raise UserError(f"{path}: a slate has more than {SLATE_LENGTH} items. {again}")
    if (table["items"].list.n_unique() < table["items"].list.len()).any():
        raise UserError(f"{path}: an item is in a slate twice. {again}")
    return table


def load_metrics(path: Path, *, then: str) -> dict[str, Any]:
    """Read and check `metrics/<policy>.json`.

    Args:
        path: the file.
        then: what to do where it is damaged, for the message.

    Raises:
        UserError: the file is missing or damaged, or a key is missing or of the wrong type; the message names it.
    """
    found = read_json(path, then=then)
    try:
        card = _Metrics.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        got = "" if first["type"] == "missing" else f", got {shown(first['input'])}"
        raise UserError(f"{path}: not an evaluation: {key}: {first['msg']}{got}. {then}") from None
    for fold in FOLDS:
        for protocol in ("full", f"sampled{card.protocol.negatives.n}"):
            names = (*METRICS, *_BEYOND) if protocol == "full" else METRICS
            for key in (metric_key(fold, protocol, name, k) for name in names for k in card.protocol.k):
                if key not in card.metrics:
                    raise UserError(f"{path}: not an evaluation: {key} is missing. {then}")
    return found
