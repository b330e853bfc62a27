"""Write the report: Markdown with plot files beside it, and one HTML page that contains everything."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rl4rec.evaluation.files import write_text
from rl4rec.params import RLParams
from rl4rec.report.claims import claims
from rl4rec.report.comparison import PAIRS, interval_key
from rl4rec.report.logs import TrainingLog
from rl4rec.report.plots import draw_plots
from rl4rec.report.table import NAMES, headline_metrics, verdict

SOURCES = {"amazon-beauty": "Amazon Beauty", "simulated": "the simulated shop"}


def write_report(
    comparison: dict[str, Any], logs: Mapping[str, TrainingLog], params: RLParams, folder: Path
) -> tuple[Path, Path]:
    """Write `comparison.md`, `comparison.html` and `plots/*.png`.

    Args:
        comparison: as in `metrics/comparison.json`.
        logs: training logs by stage name (`sft`, `ppo`, `grpo`); missing ones become notes.
        params: what the two algorithms were told to do.
        folder: where to write.

    Returns:
        The Markdown file and the HTML file.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    plots, notes = draw_plots(comparison, logs)
    for plot in plots:
        _write_bytes(folder / "plots" / f"{plot.name}.png", plot.png)
    environment = Environment(
        loader=PackageLoader("rl4rec"),
        autoescape=select_autoescape(enabled_extensions=("html.j2",)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = lambda text: str(text).replace("|", "\\|")
    context = {
        "source": SOURCES.get(comparison["protocol"]["source"], "your data"),
        "confidence": f"{comparison['bootstrap']['confidence'] * 100:g} %",
        "headlines": _headlines(comparison),
        "columns": [title for _, title in headline_metrics(comparison)],
        "policies": _policy_rows(comparison),
        "beyond_columns": [f"Coverage@{comparison['k']}", "Popularity", "Popularity percentile", "Diversity"],
        "beyond": _beyond_rows(comparison),
        "pairs": _pair_rows(comparison),
        "plots": plots,
        "claims": claims(comparison, logs.get("ppo"), logs.get("grpo"), params),
        "protocol": _protocol_rows(comparison),
        "notes": notes + _version_notes(comparison),
    }
    paths = folder / "comparison.md", folder / "comparison.html"
    for path in paths:
        write_text(path, environment.get_template(f"report{path.suffix}.j2").render(context))
    return paths


def _write_bytes(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(content)
    os.replace(part, path)


def _headlines(comparison: dict[str, Any]) -> list[str]:
    """One sentence a pair: the full-catalogue NDCG on test."""
    metric, title = headline_metrics(comparison)[0]
    key = interval_key(comparison["bootstrap"]["confidence"])
    lines = []
    for first, second in PAIRS:
        pair = comparison.get(f"{first}_vs_{second}")
        if pair is not None:
            means = [comparison["policies"][policy][metric]["mean"] for policy in (second, first)]
            change = pair[metric]
            lower, upper = change[key]
            lines.append(
                f"{NAMES[first]} against {NAMES[second]}: {verdict(change[key])}. {title} "
                f"{means[0]:.4f} → {means[1]:.4f}, difference {change['delta']:+.4f} [{lower:+.4f}, {upper:+.4f}]."
            )
    return lines


def _policy_rows(comparison: dict[str, Any]) -> list[dict[str, Any]]:
    key = interval_key(comparison["bootstrap"]["confidence"])
    return [
        {
            "name": NAMES.get(policy, policy),
            "cells": [
                {"value": f"{row[name]['mean']:.4f}", "interval": f"[{row[name][key][0]:.4f}, {row[name][key][1]:.4f}]"}
                for name, _ in headline_metrics(comparison)
            ],
        }
        for policy, row in comparison["policies"].items()
    ]


def _beyond_rows(comparison: dict[str, Any]) -> list[dict[str, Any]]:
    k = comparison["k"]
    return [
        {
            "name": NAMES.get(policy, policy),
            "cells": [
                f"{row[f'test.full.coverage@{k}']['mean'] * 100:.1f} %",
                f"{row[f'test.full.popularity@{k}']['mean']:.1f}",
                f"{row[f'test.full.popularity_percentile@{k}']['mean'] * 100:.1f} %",
                f"{diversity['mean']:.4f}" if (diversity := row.get(f"test.full.diversity@{k}")) else "",
            ],
        }
        for policy, row in comparison["policies"].items()
    ]


def _pair_rows(comparison: dict[str, Any]) -> list[dict[str, Any]]:
    key = interval_key(comparison["bootstrap"]["confidence"])
    rows = []
    for first, second in PAIRS:
        pair = comparison.get(f"{first}_vs_{second}")
        if pair is None:
            continue
        cells = []
        for name, _ in headline_metrics(comparison):
            change = pair[name]
            relative = "" if change["relative"] is None else f" ({change['relative'] * 100:+.1f} %)"
            lower, upper = change[key]
            cells.append(
                {
                    "value": f"{change['delta']:+.4f}{relative}",
                    "interval": f"[{lower:+.4f}, {upper:+.4f}]",
                    "verdict": verdict(change[key]),
                }
            )
        rows.append({"name": f"{NAMES[first]} - {NAMES[second]}", "cells": cells})
    return rows


def _protocol_rows(comparison: dict[str, Any]) -> list[tuple[str, str]]:
    card, bootstrap = comparison["protocol"], comparison["bootstrap"]
    negatives, repeated = card["negatives"], card["repeated_targets"]
    return [
        ("Data", f"{card['source']}, hash {card['data_hash']}"),
        ("Users", f"{card['users']:,}, of which {card['evaluated_users']:,} evaluated; {card['items']:,} items"),
        ("Split", "leave-one-out: the last item is the test target, the one before it the validation target"),
        ("Ties", card["tie_rule"]),
        ("Masking", card["masking"]),
        ("Targets seen before", f"{repeated['valid']} on validation, {repeated['test']} on test"),
        (
            "Sampled negatives",
            f"{negatives['n']} a user, {negatives['sampler']}; seed {negatives['seed']}, digest {negatives['digest']}, "
            f"{negatives['users_with_fewer']} users with fewer",
        ),
        (
            "Intervals",
            f"{bootstrap['confidence'] * 100:g} %, percentile bootstrap over users, paired for differences, "
            f"{bootstrap['samples']:,} resamples, seed {bootstrap['seed']}; not corrected for their number",
        ),
    ]


def _version_notes(comparison: dict[str, Any]) -> list[str]:
    found = {str(sorted(versions.items())) for versions in comparison["versions"].values()}
    return ["The policies were evaluated with different versions of the libraries."] if len(found) > 1 else []
