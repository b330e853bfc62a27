"""Has what users do, or what they are shown, moved away from the training data (`rl4rec monitor`)?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from rl4rec._io import read_json, read_parquet
from rl4rec.data.dataset import PreparedData
from rl4rec.errors import UserError, shown
from rl4rec.metrics import metric_key
from rl4rec.params import MonitorParams

FloatArray = npt.NDArray[np.float64]
_GROUPS = 10  # of items, by popularity, each with a like share of the training interactions
_DRAWS = 500  # of the shift that chance alone makes


@dataclass(frozen=True)
class Signal:
    """One thing that was measured, and what makes retraining due."""

    name: str
    value: float
    limit: float
    meaning: str

    @property
    def due(self) -> bool:
        """Whether the limit is passed."""
        return self.value > self.limit

    def __str__(self) -> str:
        return f"{self.name}: {self.value:.4f}, limit {self.limit:.4f}{' (passed)' if self.due else ''}: {self.meaning}"


@dataclass(frozen=True)
class Drift:
    """All signals; retraining is due if one of them has passed its limit."""

    signals: tuple[Signal, ...]

    @property
    def due(self) -> bool:
        """Whether retraining is due."""
        return any(signal.due for signal in self.signals)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"due": self.due, "signals": [asdict(signal) | {"due": signal.due} for signal in self.signals]}


def measure_drift(
    data: PreparedData,
    params: MonitorParams,
    *,
    incoming: pl.DataFrame | None = None,
    served: pl.DataFrame | None = None,
    evaluated: Mapping[str, Any] | None = None,
    k: int = 10,
) -> Drift:
    """Compare interactions since training, and lists that were served, with the data that were trained on.

    Args:
        data: what the policy was trained on.
        params: the limits.
        incoming: interactions since, `user` and `item`.
        served: lists that were shown, `items`.
        evaluated: `metrics/<policy>.json` of the policy that served.
        k: the cut-off of its metrics that the lists are compared with.
    """
    signals: list[Signal] = []
    if incoming is not None:
        signals += _incoming_signals(data, params, incoming)
    if served is not None:
        signals += _served_signals(data, params, served, evaluated, k)
    return Drift(tuple(signals))


def _incoming_signals(data: PreparedData, params: MonitorParams, incoming: pl.DataFrame) -> list[Signal]:
    index = {item: row for row, item in enumerate(data.item_ids)}
    items = np.array([index.get(item, -1) for item in incoming["item"]], dtype=np.int64)
    known = np.bincount(items[items >= 0], minlength=data.num_items).astype(np.int64)
    shift, by_chance = popularity_shift(data.item_counts, known, seed=params.seed)
    users = incoming["user"].unique()
    strangers = (~users.is_in(pl.Series(data.users).implode())).to_numpy()
    trained_on = len(data.sequences.values)
    return [
        Signal("new_interactions", len(incoming) / trained_on, params.new_interactions,
               "interactions since training, as a share of those trained on"),
        Signal("unseen_items", float((items < 0).mean()), params.unseen_items,
               "share of them with items that the policy does not know"),
        Signal("new_users", float(strangers.mean()), params.new_users,
               "share of their users who are not in the training data"),
        Signal("popularity_shift", shift, max(params.popularity_shift, by_chance),
               f"population stability index over popularity groups; chance alone makes up to {by_chance:.4f}"),
    ]  # fmt: skip


def _served_signals(
    data: PreparedData, params: MonitorParams, served: pl.DataFrame, evaluated: Mapping[str, Any] | None, k: int
) -> list[Signal]:
    lists = served["items"].list.head(k)
    shown = lists.explode().drop_nulls()
    index = {item: row for row, item in enumerate(data.item_ids)}
    items = np.array([index.get(item, -1) for item in shown], dtype=np.int64)
    known = items[items >= 0]
    signals = [
        Signal("unknown_served", float((items < 0).mean()) if len(items) else 0.0, 0.0,
               "share of the shown items that are not in the catalogue"),
        Signal("empty_lists", float((lists.list.len().fill_null(0) == 0).to_numpy().mean()), params.empty_lists,
               "share of requests that were shown nothing"),
    ]  # fmt: skip
    if evaluated is None or not len(known):
        return signals
    then = float(evaluated["metrics"][metric_key("test", "full", "popularity_percentile", k)])
    now = float(data.popularity_percentiles()[known].mean())
    signals.append(
        Signal("shown_popularity", abs(now - then), params.shown_popularity,
               f"mean popularity percentile of the shown items was {then:.4f}, is {now:.4f}")
    )  # fmt: skip
    if len(lists) >= evaluated["protocol"]["evaluated_users"]:  # fewer lists cover less
        was = float(evaluated["metrics"][metric_key("test", "full", "coverage", k)])
        covered = len(np.unique(known)) / data.num_items
        signals.append(
            Signal("coverage_drop", 1 - covered / was, params.coverage_drop,
                   f"share of the catalogue that is shown was {was:.4f}, is {covered:.4f}")
        )  # fmt: skip
    return signals


def read_evaluated(path: Path, *, k: int) -> dict[str, Any]:
    """The evaluation that served lists are compared with.

    Raises:
        UserError: missing or damaged, or one of the figures is not there.
    """
    then = f"Run `dvc repro evaluate@{path.stem}`."
    evaluated = read_json(path, then=then)
    try:
        shares = [
            evaluated["metrics"][metric_key("test", "full", name, k)] for name in ("popularity_percentile", "coverage")
        ]
        figures = [*shares, evaluated["protocol"]["evaluated_users"]]
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: not an evaluation at k = {k}: {error} is missing. {then}") from None
    # A policy that shows something covers something, so none of them can be 0.
    if not all(type(figure) in (int, float) and 0 < figure < math.inf for figure in figures):
        raise UserError(f"{path}: expected figures above 0, got {shown(figures)}. {then}")
    return evaluated


def read_served(path: Path) -> pl.DataFrame:
    """Lists as `rl4rec recommend` writes them.

    Raises:
        UserError: not a parquet file with a column `items` of lists of ids.
    """
    table = read_parquet(path)
    if table.schema.get("items") != pl.List(pl.String) or table.is_empty():
        raise UserError(f"{path}: expected a column 'items' with lists of item ids, as `rl4rec recommend` writes it.")
    return table


def popularity_shift(
    training: npt.NDArray[np.int64], since: npt.NDArray[np.int64], *, seed: int
) -> tuple[float, float]:
    """Population stability index over groups of items by popularity, and its 97.5 % quantile without any drift.

    PSI = sum over groups (q - p) ln(q / p), p and q the shares of the interactions then and now (Siddiqi 2006; by
    custom, above .1 is some and above .25 a large shift). A group holds items of like popularity with about a tenth
    of the training interactions. Few interactions make a shift by chance, so the limit must not lie below what as
    many draws from the training distribution make.

    Args:
        training: (I,) interactions of each item trained on.
        since: (I,) since then.
        seed: of the draws.
    """
    order = np.argsort(-training, kind="stable")
    mass = training[order].cumsum() / max(int(training.sum()), 1)
    group = np.empty(len(training), np.int64)
    group[order] = np.minimum((mass - 1e-12) * _GROUPS, _GROUPS - 1).astype(np.int64)
    then = np.bincount(group, weights=training, minlength=_GROUPS).astype(np.float64)
    now = np.bincount(group, weights=since, minlength=_GROUPS).astype(np.float64)
    count = int(now.sum())
    if count == 0:
        return 0.0, 0.0
    draws = np.random.default_rng(seed).multinomial(count, then / then.sum(), size=_DRAWS)
    chance = [_stability_index(then, draw.astype(np.float64)) for draw in draws]
    return _stability_index(then, now), float(np.quantile(chance, 0.975))


def _stability_index(then: FloatArray, now: FloatArray) -> float:
    p, q = ((counts + 0.5) / (counts + 0.5).sum() for counts in (then, now))  # no group is ever empty
    return float(((q - p) * np.log(q / p)).sum())
