"""Compare evaluated policies over the same users: means, paired differences, bootstrap intervals."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from rl4rec import metrics
from rl4rec._console import track
from rl4rec.algorithms import pair_key, pairs
from rl4rec.data.dataset import FOLDS
from rl4rec.errors import UserError
from rl4rec.evaluation.bootstrap import FloatArray, bootstrap_mean, paired_bootstrap
from rl4rec.evaluation.protocols import DECIMALS, METRICS, Evaluation, Ranks
from rl4rec.params import CompareParams


def interval_key(confidence: float) -> str:
    """Name of the interval in the comparison, `ci95` for .95."""
    return f"ci{confidence * 100:g}"


def compare_policies(evaluations: Mapping[str, Evaluation], params: CompareParams, *, k: int) -> dict[str, Any]:
    """Build `metrics/comparison.json`.

    Args:
        evaluations: by policy; the pairs of the table of policies of which both are there are compared.
        params: of the bootstrap.
        k: the cut-off that is reported, one of the evaluated ones.

    Raises:
        UserError: the evaluations differ in data or protocol, or a policy's ranks do not belong to its metrics.
    """
    _require_one_protocol(evaluations, k)
    gains = {policy: per_user_gains(policy, evaluation, k) for policy, evaluation in evaluations.items()}
    key = interval_key(params.confidence)
    settings: dict[str, Any] = {
        "samples": params.bootstrap_samples,
        "confidence": params.confidence,
        "seed": params.seed,
    }
    result: dict[str, Any] = {
        "protocol": _shared_protocol(next(iter(evaluations.values()))),
        "versions": {policy: evaluation.protocol["versions"] for policy, evaluation in evaluations.items()},
        "k": k,
        "bootstrap": settings,
        "policies": {},
    }
    for policy, values in track(gains.items(), "bootstrap of each policy", unit="policy"):
        row: dict[str, Any] = {}
        for name, users in values.items():
            found = bootstrap_mean(users, **settings)
            row[name] = {"mean": _round(found.mean), key: [_round(found.lower), _round(found.upper)]}
        for fold in FOLDS:
            for name in ("coverage", "popularity", "popularity_percentile", "diversity"):
                figure = metrics.metric_key(fold, "full", name, k)
                if figure in evaluations[policy].metrics:  # diversity is measured at small cut-offs only
                    row[figure] = {"mean": evaluations[policy].metrics[figure]}
        result["policies"][policy] = row
    for pair in track(pairs(), "bootstrap of the differences", unit="pair"):
        first, second = (gains.get(policy.key) for policy in pair)
        if first is not None and second is not None:
            result[pair_key(pair)] = paired_differences(first, second, settings, key)
    return result


def paired_differences(
    first: Mapping[str, FloatArray], second: Mapping[str, FloatArray], settings: dict[str, Any], key: str
) -> dict[str, Any]:
    """Of each metric the mean paired difference, its share of `second`'s mean, and the bootstrap interval.

    Args:
        first: per-user values by metric, (u,) each.
        second: the same users and metrics.
        settings: `samples`, `confidence` and `seed` of the bootstrap.
        key: name of the interval.
    """
    rows: dict[str, Any] = {}
    for name in first:
        found = paired_bootstrap(first[name], second[name], **settings)
        base = float(second[name].mean())
        rows[name] = {
            "delta": _round(found.mean),
            "relative": _round(found.mean / base) if base > 0 else None,
            key: [_round(found.lower), _round(found.upper)],
        }
    return rows


def per_user_gains(policy: str, evaluation: Evaluation, k: int) -> dict[str, FloatArray]:
    """Per-user values of each reported metric, `test/full/ndcg@10` -> (u,), checked against the metrics file.

    Raises:
        UserError: ranks and metrics are of different runs.
    """
    sampled = f"sampled{evaluation.protocol['negatives']['n']}"
    values: dict[str, FloatArray] = {}
    for fold in FOLDS:
        for protocol in ("full", sampled):
            ranks = torch.from_numpy(_column(policy, evaluation, f"{fold}/{protocol}"))
            for name in METRICS:
                users = metrics.rank_gains(ranks, k=k, metric=name).numpy()
                key = metrics.metric_key(fold, protocol, name, k)
                stated = evaluation.metrics[key]
                if not np.isclose(users.mean(), stated, rtol=0, atol=10.0**-DECIMALS):
                    raise UserError(
                        f"ranks/{policy}.parquet: its {key} is {users.mean():.8f}, but "
                        f"metrics/{policy}.json says {stated}: the files are of different runs. "
                        f"Run `dvc repro evaluate@{policy}`."
                    )
                values[key] = users
    return values


def _column(policy: str, evaluation: Evaluation, column: str) -> Ranks:
    if column not in evaluation.ranks.columns:
        raise UserError(f"ranks/{policy}.parquet: no column '{column}'. Run `dvc repro evaluate@{policy}`.")
    return evaluation.ranks_of(column)


def _shared_protocol(evaluation: Evaluation) -> dict[str, Any]:
    return {key: value for key, value in evaluation.protocol.items() if key != "versions"}


def _require_one_protocol(evaluations: Mapping[str, Evaluation], k: int) -> None:
    (base_name, base), *others = evaluations.items()
    expected = _shared_protocol(base)
    if k not in expected["k"]:
        raise UserError(
            f"metrics/{base_name}.json: evaluated at k = {expected['k']}, but rl.k is {k}. Run `dvc repro`."
        )
    for name, evaluation in others:
        found = _shared_protocol(evaluation)
        different = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
        if different:
            key = "data_hash" if "data_hash" in different else different[0]
            raise UserError(
                f"metrics/{name}.json and metrics/{base_name}.json cannot be compared: {key} is "
                f"{json.dumps(found.get(key))} in the first and {json.dumps(expected.get(key))} in the second. "
                f"Run `dvc repro` so that every policy is evaluated on the same data under the same protocol."
            )
        if evaluation.ranks["user_row"].to_list() != base.ranks["user_row"].to_list():
            raise UserError(
                f"ranks/{name}.parquet and ranks/{base_name}.parquet hold different users. "
                f"Run `dvc repro evaluate@{name} evaluate@{base_name}`."
            )


def _round(value: float) -> float:
    return round(value, DECIMALS)
