"""Charts for a CI job's page: Mermaid inside Markdown, which GitHub and GitLab draw without files to upload."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rl4rec import algorithms
from rl4rec._io import read_json
from rl4rec.algorithms import rl_algorithms
from rl4rec.errors import UserError
from rl4rec.metrics import metric_key
from rl4rec.report.logs import FloatArray, load_log

_POINTS = 12  # of a curve; Mermaid's axis has no room for more


def charts(root: Path) -> str:
    """Test figures of each policy, and validation while RL trained, as Markdown.

    Args:
        root: where `dvc repro` ran.

    Raises:
        UserError: there is no comparison, or it is damaged.
    """
    path = root / "metrics" / "comparison.json"
    comparison = read_json(path, then="Run `dvc repro compare`.")
    try:
        k, sampled = int(comparison["k"]), f"sampled{comparison['protocol']['negatives']['n']}"
        values = {
            protocol: {
                policy.label: float(comparison["policies"][policy.key][metric_key("test", protocol, "ndcg", k)]["mean"])
                for policy in algorithms.POLICIES
                if policy.key in comparison["policies"]
            }
            for protocol in ("full", sampled)
        }
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a comparison ({error!r}). Run `dvc repro compare`.") from None
    names = {"full": "full", sampled: f"1+{sampled.removeprefix('sampled')}"}
    parts = [_bars(f"Test NDCG@{k}, {names[protocol]}", found) for protocol, found in values.items()]
    for policy in rl_algorithms():
        log = load_log(root / "logs" / f"{policy.key}.jsonl")
        if log is not None:
            slates, curve = log.series(metric_key("valid", "full", "ndcg", k), over="samples")
            if len(curve) > 1:
                parts.append(_curve(f"{policy.label}: validation NDCG@{k}, full", slates, curve))
    return "\n".join(parts)


def _bars(title: str, values: dict[str, float]) -> str:
    labels = [f'"{label}"' for label in values]
    return _chart(title, f"x-axis [{', '.join(labels)}]", "bar", list(values.values()), floor=0.0)


def _curve(title: str, slates: FloatArray, values: FloatArray) -> str:
    shown = np.unique(np.linspace(0, len(slates) - 1, _POINTS).round().astype(int))
    labels = ", ".join(f'"{slates[point] / 1000:.0f}k"' for point in shown)
    return _chart(title, f'x-axis "slates" [{labels}]', "line", [float(values[point]) for point in shown])


def _chart(title: str, axis: str, kind: str, values: Sequence[float], floor: float | None = None) -> str:
    low, high = min(values) if floor is None else floor, max(values)
    margin = 0.1 * (high - low) or 0.01
    bottom = low if floor is not None else low - margin
    points = ", ".join(f"{value:.4f}" for value in values)
    lines = [f'title "{title}"', axis, f"y-axis {bottom:.4f} --> {high + margin:.4f}", f"{kind} [{points}]"]
    return "\n".join(["```mermaid", "xychart-beta", *(f"    {line}" for line in lines), "```", ""])
