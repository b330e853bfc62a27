"""The report's plots: levels and differences with their intervals, and the curves of training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from rl4rec.algorithms import BASELINE, START, get_policy, pair_key, pairs, rl_algorithms
from rl4rec.evaluation.compare import interval_key
from rl4rec.metrics import metric_key
from rl4rec.report.figure import INK, Plot, render
from rl4rec.report.logs import FloatArray, Progress, TrainingLog

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SMOOTH_FROM, _WINDOW = 30, 9  # rows from which a curve is also drawn as a moving average, and over how many
AXES: dict[Progress, str] = {"samples": "slates generated", "seconds": "seconds of training", "step": "step"}


def draw_plots(comparison: dict[str, Any], logs: Mapping[str, TrainingLog]) -> tuple[list[Plot], list[str]]:
    """All plots that the results and logs allow, and a note for each that they do not.

    Args:
        comparison: as in `metrics/comparison.json`.
        logs: of SFT and the RL algorithms, by policy; missing ones are left out.
    """
    k, n = comparison["k"], comparison["protocol"]["negatives"]["n"]
    valid = metric_key("valid", "full", "ndcg", k)
    full, sampled = (metric_key("test", protocol, "ndcg", k) for protocol in ("full", f"sampled{n}"))
    start = _mean(comparison, START, valid)
    plots = [
        *_differences("difference_full", f"Difference in NDCG@{k}, full catalogue", comparison, full),
        *_differences("difference_sampled", f"Difference in NDCG@{k}, 1 target + {n} negatives", comparison, sampled),
        _intervals("ndcg_full", f"Test NDCG@{k}, full catalogue", comparison, full),
        _intervals("ndcg_sampled", f"Test NDCG@{k}, 1 target + {n} negatives", comparison, sampled),
    ]
    algorithms = rl_algorithms()
    runs = {policy.key: logs[policy.key] for policy in algorithms if policy.key in logs}
    wanted_logs = (get_policy(START), *algorithms)
    notes = [f"No training log of {policy.label}." for policy in wanted_logs if policy.key not in logs]
    wanted: list[tuple[str, str, str, Progress, Mapping[str, TrainingLog], float | None]] = [
        ("learning_by_samples", f"Validation NDCG@{k} by slates", valid, "samples", runs, start),
        ("learning_by_time", f"Validation NDCG@{k} by time", valid, "seconds", runs, start),
        ("reward", "Training reward", "train/reward", "samples", runs, None),
        ("kl", "KL divergence from the SFT policy", "train/kl", "samples", runs, None),
        ("entropy", "Entropy of the policy", "train/entropy", "samples", runs, None),
        (
            "sft",
            "SFT: validation NDCG@10",
            "valid/full/ndcg@10",
            "step",
            {name: log for name, log in logs.items() if name == START},
            None,
        ),
    ]
    for name, title, key, over, sources, line in wanted:
        curves = {run: log.series(key, over=over) for run, log in sources.items()}
        curves = {run: curve for run, curve in curves.items() if len(curve[0])}
        if curves:
            plots.append(_curves(name, title, curves, AXES[over], line))
        missing = [get_policy(run).label for run in sources if run not in curves]
        notes += [f"`{key}` is not in the training log of {label}." for label in missing]
    return plots, list(dict.fromkeys(notes))


def _mean(comparison: dict[str, Any], policy: str, name: str) -> float | None:
    row = comparison["policies"].get(policy)
    return None if row is None else float(row[name]["mean"])


def _intervals(name: str, title: str, comparison: dict[str, Any], metric: str) -> Plot:
    rows = {policy: row[metric] for policy, row in comparison["policies"].items()}
    key = interval_key(comparison["bootstrap"]["confidence"])
    far_below = _far_below(rows, key)

    def draw(axes: Axes) -> None:
        for place, (policy, row) in enumerate(rows.items()):
            mean, (lower, upper) = row["mean"], row[key]
            if policy == far_below:
                label = f"◂ {mean:.4f}"
                axes.annotate(
                    label,
                    (0, place),
                    (3, 0),
                    xycoords=("axes fraction", "data"),
                    textcoords="offset points",
                    va="center",
                )
                continue
            colour = get_policy(policy).colour
            axes.plot([lower, upper], [place, place], color=colour, linewidth=2.4, solid_capstyle="butt")
            axes.plot([mean], [place], "o", color=colour, markersize=6)
            axes.annotate(f"{mean:.4f}", (mean, place), (0, 7), textcoords="offset points", ha="center", fontsize=8)
        axes.set_yticks(range(len(rows)), [get_policy(policy).label for policy in rows])
        axes.set_ylim(len(rows) - 0.5, -0.7)
        axes.margins(x=0.12)
        axes.grid(axis="x", alpha=0.25)

    return render(name, title, draw)


def _differences(name: str, title: str, comparison: dict[str, Any], metric: str) -> list[Plot]:
    """Paired differences with their intervals around 0, a row a pair; hollow where the interval holds 0.

    The pairs without the baseline, which lies far off; no plot where there is none.
    """
    key = interval_key(comparison["bootstrap"]["confidence"])
    there = [pair for pair in pairs() if pair[1].key != BASELINE and pair_key(pair) in comparison]

    def draw(axes: Axes) -> None:
        axes.axvline(0, color=INK, linewidth=1)
        for place, pair in enumerate(there):
            row, colour = comparison[pair_key(pair)][metric], pair[0].colour
            lower, upper = row[key]
            clear = lower > 0 or upper < 0
            style: dict[str, Any] = {"color": colour, "markersize": 6, "markeredgewidth": 1.6}
            axes.plot([lower, upper], [place, place], color=colour, linewidth=2.4, solid_capstyle="butt")
            axes.plot([row["delta"]], [place], "o", markerfacecolor=colour if clear else "white", **style)
            label = f"{row['delta']:+.4f}"
            axes.annotate(label, (1.02, place), xycoords=("axes fraction", "data"), va="center", annotation_clip=False)
        axes.set_yticks(range(len(there)), [f"{first.label} - {second.label}" for first, second in there])
        axes.set_ylim(len(there) - 0.5, -0.5)
        axes.margins(x=0.08)
        axes.locator_params(axis="x", nbins=5)
        axes.grid(axis="x", alpha=0.25)

    return [render(name, title, draw)] if there else []


def _far_below(rows: Mapping[str, Any], key: str) -> str | None:
    """The baseline, where it lies so far below the trained policies that drawing it would squeeze them."""
    others = [bound for policy, row in rows.items() if policy != BASELINE for bound in row[key]]
    if BASELINE not in rows or not others:
        return None
    return BASELINE if rows[BASELINE]["mean"] < min(others) - (max(others) - min(others)) else None


def _curves(
    name: str, title: str, curves: Mapping[str, tuple[FloatArray, FloatArray]], xlabel: str, line: float | None
) -> Plot:
    def draw(axes: Axes) -> None:
        start = get_policy(START)
        if line is not None:
            axes.axhline(line, color=start.colour, linestyle="--", linewidth=1.2, label=f"{start.label} (start)")
        for policy, (progress, values) in ((get_policy(run), curve) for run, curve in curves.items()):
            style: dict[str, Any] = {"color": policy.colour}
            if len(values) >= _SMOOTH_FROM:
                axes.plot(progress, values, alpha=0.3, linewidth=0.9, **style)
                values = _moving_average(values)
            elif len(values) <= 20:
                style |= {"marker": policy.marker, "markersize": 3.5}
            axes.plot(progress, values, label=policy.label, **style)
        axes.set_xlabel(xlabel)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k" if value >= 10_000 else f"{value:g}")
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)

    return render(name, title, draw)


def _moving_average(values: FloatArray) -> FloatArray:
    """Centred mean over `_WINDOW` values, over fewer at both ends."""
    ones = np.ones(_WINDOW)
    smooth: FloatArray = np.convolve(values, ones, "same") / np.convolve(np.ones_like(values), ones, "same")
    return smooth
