"""Write the report: Markdown with plot files beside it, and one HTML page that contains everything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rl4rec import algorithms
from rl4rec._io import write_bytes, write_text
from rl4rec.algorithms import rl_algorithms
from rl4rec.params import RLParams
from rl4rec.report.answers import questions
from rl4rec.report.claims import claims
from rl4rec.report.examples import Example, selection_rule
from rl4rec.report.logs import TrainingLog
from rl4rec.report.plots import draw_plots
from rl4rec.report.rows import (
    beyond_columns,
    beyond_rows,
    pair_rows,
    policy_meanings,
    policy_rows,
    protocol_rows,
    version_notes,
)
from rl4rec.report.table import headline_metrics

SOURCES = {"amazon-beauty": "Amazon Beauty", "simulated": "the simulated shop"}
_LEVELS = ("difference_", "ndcg_")  # plots of results; the others are curves of training


def write_report(
    comparison: dict[str, Any],
    logs: Mapping[str, TrainingLog],
    params: RLParams,
    folder: Path,
    *,
    examples: Sequence[Example] = (),
    notes: Sequence[str] = (),
) -> tuple[Path, Path]:
    """Write `comparison.md`, `comparison.html` and `plots/*.png`.

    Args:
        comparison: as in `metrics/comparison.json`.
        logs: training logs of SFT and the RL algorithms, by policy; missing ones become notes.
        params: what the algorithms were told to do.
        folder: where to write.
        examples: slates of some users, see `find_examples`.
        notes: what else the reader should know.

    Returns:
        The Markdown file and the HTML file.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    plots, plot_notes = draw_plots(comparison, logs)
    for plot in plots:
        write_bytes(folder / "plots" / f"{plot.name}.png", plot.png)
    environment = Environment(
        loader=PackageLoader("rl4rec.report"),
        autoescape=select_autoescape(enabled_extensions=("html.j2",)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = _cell
    k, card = comparison["k"], comparison["protocol"]
    context = {
        "algorithms": ", ".join(policy.label for policy in rl_algorithms()),
        "source": SOURCES.get(card["source"], "your data"),
        "users": f"{card['evaluated_users']:,}",
        "items": f"{card['items']:,}",
        "negatives": card["negatives"]["n"],
        "k": k,
        "confidence": f"{comparison['bootstrap']['confidence'] * 100:g} %",
        "questions": questions(comparison),
        "meanings": policy_meanings(comparison),
        "columns": [title for _, title in headline_metrics(comparison)],
        "policies": policy_rows(comparison),
        "pairs": pair_rows(comparison),
        "beyond_columns": beyond_columns(k),
        "beyond": beyond_rows(comparison),
        "plots": {
            "difference": [plot for plot in plots if plot.name.startswith("difference_")],
            "level": [plot for plot in plots if plot.name.startswith("ndcg_")],
            "training": [plot for plot in plots if not plot.name.startswith(_LEVELS)],
        },
        "claims": claims(comparison, logs.get("ppo"), logs.get("grpo"), params),
        "examples": examples,
        "rule": selection_rule(k, comparison["bootstrap"]["seed"]),
        "names": {policy.key: policy.label for policy in algorithms.POLICIES},
        "protocol": protocol_rows(comparison, params),
        "notes": [*plot_notes, *notes, *version_notes(comparison)],
    }
    paths = folder / "comparison.md", folder / "comparison.html"
    for path in paths:
        write_text(path, environment.get_template(f"report{path.suffix}.j2").render(context))
    return paths


def _cell(text: object) -> str:
    """Any text as the content of a cell of a Markdown table."""
    return " ".join(str(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").split())
