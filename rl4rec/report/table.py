"""The comparison as a table for the terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from rl4rec import algorithms
from rl4rec.algorithms import pair_key, pairs
from rl4rec.evaluation.compare import interval_key
from rl4rec.metrics import metric_key

WIDE = 110  # columns of a terminal that show every interval on one line


def verdict(interval: list[float]) -> str:
    """What an interval of a difference says."""
    lower, upper = interval
    if lower > 0:
        return "better"
    return "worse" if upper < 0 else "no clear difference"


def headline_metrics(comparison: dict[str, Any]) -> list[tuple[str, str]]:
    """Keys and titles of the four columns: full and sampled, NDCG and HR, on test."""
    k, n = comparison["k"], comparison["protocol"]["negatives"]["n"]
    return [
        (metric_key("test", protocol, metric, k), f"{title}@{k}, {among}")
        for protocol, among in (("full", "full"), (f"sampled{n}", f"1+{n}"))
        for metric, title in (("ndcg", "NDCG"), ("hit", "HR"))
    ]


def comparison_table(comparison: dict[str, Any], *, width: int = WIDE) -> Table:
    """The content of `metrics/comparison.json` as a table: a row a policy, then a row a difference.

    Args:
        comparison: as in `metrics/comparison.json`.
        width: of the terminal in columns; a narrow one gets NDCG only.
    """
    confidence = comparison["bootstrap"]["confidence"]
    key = interval_key(confidence)
    columns = headline_metrics(comparison)[:: 1 if width >= WIDE else 2]
    table = Table(
        title="Test set",
        caption=f"full: the whole catalogue without seen items; 1+{comparison['protocol']['negatives']['n']}: "
        f"against sampled negatives. Differences with {confidence * 100:g} % intervals, paired bootstrap over users."
        + ("" if width >= WIDE else f" With HR@{comparison['k']} from {WIDE} columns on."),
    )
    table.add_column("")
    for _, title in columns:
        table.add_column(title, justify="right")
    for policy in algorithms.POLICIES:  # JSON files are sorted by key
        row = comparison["policies"].get(policy.key)
        if row is not None:
            table.add_row(policy.label, *(f"{row[name]['mean']:.4f}" for name, _ in columns))
    table.add_section()
    for pair in pairs():
        row = comparison.get(pair_key(pair))
        if row is not None:
            cells = (
                f"{row[name]['delta']:+.4f}\n[{row[name][key][0]:+.4f}, {row[name][key][1]:+.4f}]"
                for name, _ in columns
            )
            table.add_row(f"{pair[0].label} - {pair[1].label}", *(cell.replace("[", "\\[") for cell in cells))
    return table
