"""The charts of a CI job's page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from rl4rec.errors import UserError
from rl4rec.report.charts import charts


def write(folder: Path, comparison: object) -> None:
    (folder / "metrics").mkdir(exist_ok=True)
    (folder / "metrics/comparison.json").write_text(json.dumps(comparison))


def figures(value: float) -> dict[str, dict[str, float]]:
    return {"test/full/ndcg@5": {"mean": value}, "test/sampled9/ndcg@5": {"mean": 3 * value}}


COMPARISON = {
    "k": 5,
    "protocol": {"negatives": {"n": 9}},
    "policies": {"ppo": figures(0.04), "sft": figures(0.03)},
}


def test_bars_for_both_protocols_and_a_curve_for_each_algorithm_that_has_a_log(tmp_path: Path) -> None:
    write(tmp_path, COMPARISON)
    (tmp_path / "logs").mkdir()
    rows = [
        {"step": n, "samples": 1000 * n, "seconds": 1.0 * n, "valid/full/ndcg@5": 0.02 + n / 1000} for n in range(40)
    ]
    (tmp_path / "logs/ppo.jsonl").write_text("\n".join(map(json.dumps, rows)))
    drawn = charts(tmp_path)
    assert drawn.count("```mermaid") == 3 and drawn.count("```\n") == 3
    assert 'title "Test NDCG@5, full"' in drawn and 'title "Test NDCG@5, 1+9"' in drawn
    assert "bar [0.0300, 0.0400]" in drawn and "bar [0.0900, 0.1200]" in drawn
    (curve,) = re.findall(r"line \[(.*)\]", drawn)
    values = [float(value) for value in curve.split(", ")]
    assert len(values) == 12 and (values[0], values[-1]) == (0.02, 0.059) and values == sorted(values)
    (low, high) = re.findall(r"y-axis ([\d.]+) --> ([\d.]+)", drawn)[-1]
    assert float(low) < 0.02 and float(high) > 0.059


def test_no_comparison_is_a_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"comparison.json: no such file. Run `dvc repro compare`"):
        charts(tmp_path)
    write(tmp_path, {"k": 5})
    with pytest.raises(UserError, match="not a comparison"):
        charts(tmp_path)
