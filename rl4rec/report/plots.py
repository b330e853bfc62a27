"""The report's plots, reproducible to the byte: no dates, no random ids, no global matplotlib state."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rl4rec.report.comparison import interval_key
from rl4rec.report.logs import FloatArray, Progress, TrainingLog
from rl4rec.report.table import NAMES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {
    "popularity": "#8a8f98",
    "sft": "#0f9d76",
    "sft_continued": "#5fbfa5",
    "ppo": "#d9730d",
    "grpo": "#3f7be0",
    "oracle": "#9b59d0",
}
MARKERS = {"ppo": "s", "grpo": "o", "sft": "^"}
_INK = "#52606d"  # text and axes; becomes the page's own text colour in HTML
_STYLE: Any = {
    "font.size": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "rl4rec",
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.limits": (-4, 6),
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}
_SMOOTH_FROM, _WINDOW = 30, 9  # rows from which a curve is also drawn as a moving average, and over how many
AXES: dict[Progress, str] = {"samples": "slates generated", "seconds": "seconds of training", "step": "step"}


@dataclass(frozen=True)
class Plot:
    """One figure: as an image for files and as SVG to be put inside HTML."""

    name: str
    title: str
    png: bytes
    svg: str


def draw_plots(comparison: dict[str, Any], logs: Mapping[str, TrainingLog]) -> tuple[list[Plot], list[str]]:
    """All plots that the results and logs allow, and a note for each that they do not.

    Args:
        comparison: as in `metrics/comparison.json`.
        logs: by stage name (`sft`, `ppo`, `grpo`); missing ones are left out.
    """
    k, n = comparison["k"], comparison["protocol"]["negatives"]["n"]
    valid, start = f"valid/full/ndcg@{k}", _mean(comparison, "sft", f"valid.full.ndcg@{k}")
    plots = [
        _intervals("ndcg_full", f"Test NDCG@{k}, full catalogue", comparison, f"test.full.ndcg@{k}"),
        _intervals("ndcg_sampled", f"Test NDCG@{k}, 1 target + {n} negatives", comparison, f"test.sampled{n}.ndcg@{k}"),
    ]
    runs = {name: logs[name] for name in ("ppo", "grpo") if name in logs}
    notes = [f"No training log of {NAMES[name]}." for name in ("sft", "ppo", "grpo") if name not in logs]
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
            {s: log for s, log in logs.items() if s == "sft"},
            None,
        ),
    ]
    for name, title, key, over, sources, line in wanted:
        curves = {run: log.series(key, over=over) for run, log in sources.items()}
        curves = {run: curve for run, curve in curves.items() if len(curve[0])}
        if curves:
            plots.append(_curves(name, title, curves, AXES[over], line))
        notes += [f"`{key}` is not in the training log of {NAMES[run]}." for run in sources if run not in curves]
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
            axes.plot([lower, upper], [place, place], color=COLOURS[policy], linewidth=2.4, solid_capstyle="butt")
            axes.plot([mean], [place], "o", color=COLOURS[policy], markersize=6)
            axes.annotate(f"{mean:.4f}", (mean, place), (0, 7), textcoords="offset points", ha="center", fontsize=8)
        axes.set_yticks(range(len(rows)), [NAMES.get(policy, policy) for policy in rows])
        axes.set_ylim(len(rows) - 0.5, -0.7)
        axes.margins(x=0.12)
        axes.grid(axis="x", alpha=0.25)

    return _render(name, title, draw)


def _far_below(rows: Mapping[str, Any], key: str) -> str | None:
    """`popularity`, where it lies so far below the trained policies that drawing it would squeeze them."""
    others = [bound for policy, row in rows.items() if policy != "popularity" for bound in row[key]]
    if "popularity" not in rows or not others:
        return None
    return "popularity" if rows["popularity"]["mean"] < min(others) - (max(others) - min(others)) else None


def _curves(
    name: str, title: str, curves: Mapping[str, tuple[FloatArray, FloatArray]], xlabel: str, line: float | None
) -> Plot:
    def draw(axes: Axes) -> None:
        if line is not None:
            axes.axhline(line, color=COLOURS["sft"], linestyle="--", linewidth=1.2, label="SFT (start)")
        for run, (progress, values) in curves.items():
            style: dict[str, Any] = {"color": COLOURS[run]}
            if len(values) >= _SMOOTH_FROM:
                axes.plot(progress, values, alpha=0.3, linewidth=0.9, **style)
                values = _moving_average(values)
            elif len(values) <= 20:
                style |= {"marker": MARKERS[run], "markersize": 3.5}
            axes.plot(progress, values, label=NAMES[run], **style)
        axes.set_xlabel(xlabel)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k" if value >= 10_000 else f"{value:g}")
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)

    return _render(name, title, draw)


def _moving_average(values: FloatArray) -> FloatArray:
    """Centred mean over `_WINDOW` values, over fewer at both ends."""
    ones = np.ones(_WINDOW)
    smooth: FloatArray = np.convolve(values, ones, "same") / np.convolve(np.ones_like(values), ones, "same")
    return smooth


def _render(name: str, title: str, draw: Any) -> Plot:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(4.6, 2.9), layout="constrained")
        draw(figure.subplots())
        return Plot(name, title, _png(figure, title), _svg(figure, name, title))


def _png(figure: Figure, title: str) -> bytes:
    heading = figure.suptitle(title, fontsize=10)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    heading.remove()
    return out.getvalue()


def _svg(figure: Figure, name: str, title: str) -> str:
    """An `<svg>` element for use inside a page: scales, takes the page's text colour, ids unique to the plot."""
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)
    text = text.replace("<svg", f'<svg role="img" aria-label="{title}"', 1).replace(_INK, "currentColor")
    referenced = set(re.findall(r"#([\w-]+)\)?\"", text)) | set(re.findall(r"url\(#([\w-]+)\)", text))

    def rename(match: re.Match[str]) -> str:
        return f' id="{name}-{match[1]}"' if match[1] in referenced else ""

    text = re.sub(r' id="([\w.-]+)"', rename, text)
    text = re.sub(r'href="#([\w-]+)"', rf'href="#{name}-\1"', text)
    return re.sub(r"url\(#([\w-]+)\)", rf"url(#{name}-\1)", text)
