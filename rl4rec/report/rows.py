"""The comparison as rows of the report's tables: numbers as they are printed."""

from __future__ import annotations

from typing import Any

from rl4rec.algorithms import get_policy, pair_key, pairs, rl_algorithms
from rl4rec.evaluation.compare import interval_key
from rl4rec.metrics import metric_key
from rl4rec.params import RLParams
from rl4rec.report.table import headline_metrics, verdict


def policy_meanings(comparison: dict[str, Any]) -> list[tuple[str, str]]:
    """Name and meaning of each policy that was compared."""
    return [(policy.label, policy.meaning) for policy in map(get_policy, comparison["policies"])]


def policy_rows(comparison: dict[str, Any]) -> list[dict[str, Any]]:
    """Means and intervals of each policy."""
    key = interval_key(comparison["bootstrap"]["confidence"])
    return [
        {
            "name": get_policy(policy).label,
            "cells": [
                {"value": f"{row[name]['mean']:.4f}", "interval": f"[{row[name][key][0]:.4f}, {row[name][key][1]:.4f}]"}
                for name, _ in headline_metrics(comparison)
            ],
        }
        for policy, row in comparison["policies"].items()
    ]


def pair_rows(comparison: dict[str, Any]) -> list[dict[str, Any]]:
    """Differences, intervals and verdicts of each pair."""
    key = interval_key(comparison["bootstrap"]["confidence"])
    rows = []
    for pair in pairs():
        differences = comparison.get(pair_key(pair))
        if differences is None:
            continue
        cells = []
        for name, _ in headline_metrics(comparison):
            change = differences[name]
            relative = "" if change["relative"] is None else f" ({change['relative'] * 100:+.1f} %)"
            lower, upper = change[key]
            cells.append(
                {
                    "value": f"{change['delta']:+.4f}{relative}",
                    "interval": f"[{lower:+.4f}, {upper:+.4f}]",
                    "verdict": verdict(change[key]),
                }
            )
        rows.append({"name": f"{pair[0].label} - {pair[1].label}", "cells": cells})
    return rows


def beyond_columns(k: int) -> list[str]:
    """Titles of what `beyond_rows` holds."""
    return [f"Coverage@{k}", f"Popularity@{k}", f"Popularity percentile@{k}", f"Diversity@{k}"]


def beyond_rows(comparison: dict[str, Any]) -> list[dict[str, Any]]:
    """Coverage, popularity and diversity of what each policy shows."""
    coverage, popularity, percentile, diversity = (
        metric_key("test", "full", name, comparison["k"])
        for name in ("coverage", "popularity", "popularity_percentile", "diversity")
    )
    return [
        {
            "name": get_policy(policy).label,
            "cells": [
                f"{row[coverage]['mean'] * 100:.1f} %",
                f"{row[popularity]['mean']:.1f}",
                f"{row[percentile]['mean'] * 100:.1f} %",
                f"{row[diversity]['mean']:.4f}" if diversity in row else "-",
            ],
        }
        for policy, row in comparison["policies"].items()
    ]


def protocol_rows(comparison: dict[str, Any], params: RLParams) -> list[tuple[str, str]]:
    """The protocol card: everything that two results must share to be comparable, and the versions behind them."""
    card, bootstrap = comparison["protocol"], comparison["bootstrap"]
    negatives, repeated, tied = card["negatives"], card["repeated_targets"], card["tied_neighbours"]
    return [
        ("Data", f"{card['source']}, hash {card['data_hash']}"),
        ("Users", f"{card['users']:,}, of which {card['evaluated_users']:,} evaluated"),
        ("Items", f"{card['items']:,}"),
        ("Split", card["split"]),
        ("Order", card["order"] or "as in the source"),
        ("Cut-offs", f"k = {', '.join(map(str, card['k']))}; reported at k = {comparison['k']}"),
        ("Ties", card["tie_rule"]),
        ("Masking", card["masking"]),
        ("Targets", _by_fold(card["targets"])),
        ("Targets seen before", _by_fold(repeated)),
        ("Targets without a training interaction", _by_fold(card["cold_targets"])),
        ("Targets at the time of another item", _by_fold(card["tied_targets"])),
        ("Neighbours at one time", "unknown" if tied is None else f"{tied * 100:.1f} %"),
        ("Without a training interaction", "{users:,} users, {items:,} items".format(**card["without_training"])),
        *(("Notable", sentence) for sentence in card["odd"]),
        (
            "Sampled negatives",
            f"{negatives['n']} per user, {negatives['sampler']}; seed {negatives['seed']}, digest "
            f"{negatives['digest']}, {negatives['users_with_fewer']} users with fewer",
        ),
        (
            "Intervals",
            f"{bootstrap['confidence'] * 100:g} %, percentile bootstrap over users, paired for differences, "
            f"{bootstrap['samples']:,} resamples, seed {bootstrap['seed']}; not corrected for their number, and silent "
            "about other training seeds",
        ),
        ("Training seeds", ", ".join(f"{each.label} {getattr(params, each.key).seed}" for each in rl_algorithms())),
        ("Versions", "; ".join(_versions(comparison))),
    ]


def _by_fold(counts: dict[str, int | None]) -> str:
    if None in counts.values():
        return "unknown: the source has no times"
    return f"{counts['valid']:,} on validation, {counts['test']:,} on test"


def version_notes(comparison: dict[str, Any]) -> list[str]:
    """A note where the policies were evaluated with different versions."""
    if len(_versions(comparison)) > 1:
        return ["The policies were evaluated with different versions of the libraries."]
    return []


def _versions(comparison: dict[str, Any]) -> list[str]:
    """Each different set of library versions behind an evaluation."""
    return sorted(
        {
            ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
            for versions in comparison["versions"].values()
        }
    )
