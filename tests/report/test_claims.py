"""The claims table: measurements worked by hand, and verdicts that follow their stated rules."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rl4rec.errors import UserError
from rl4rec.params import RLParams
from rl4rec.report.claims import Claim, claims, largest_fall, reward_spread
from rl4rec.report.logs import TrainingLog, load_log

KEY = "valid/full/ndcg@10"


def comparison(delta: float = 0.01, low: float = 0.001, gains: tuple[float, float] = (0.001, 0.001)) -> dict[str, Any]:
    """`gains`: lower ends of the intervals of PPO's and GRPO's gain over SFT on validation."""
    name, valid = "test/sampled100/ndcg@10", "valid/full/ndcg@10"
    return {
        "k": 10,
        "bootstrap": {"confidence": 0.95},
        "protocol": {"negatives": {"n": 100}},
        "policies": {
            "sft": {"valid/full/ndcg@10": {"mean": 0.05}},
            "ppo": {name: {"mean": 0.3}},
            "grpo": {name: {"mean": 0.31}},
        },
        "ppo_vs_sft": {valid: {"delta": 0.01, "ci95": [gains[0], 0.02]}},
        "grpo_vs_sft": {valid: {"delta": 0.01, "ci95": [gains[1], 0.02]}},
        "grpo_vs_ppo": {name: {"delta": delta, "ci95": [low, 0.02]}},
    }


def log(values: list[float], wobble: float, **summary: float) -> TrainingLog:
    rows = [{"step": 10 * i, "samples": 1000 * i, "seconds": 1.0 * i, KEY: value} for i, value in enumerate(values)]
    rows += [{"step": i, "samples": 100 * i, "train/reward": 0.5 + wobble * (-1) ** i} for i in range(20)]
    return TrainingLog(rows, {"train_seconds": 100.0, "steps": 50, "samples": 5000, "best_step": 20} | summary)


def table(ppo: TrainingLog | None, grpo: TrainingLog | None, **changes: Any) -> dict[str, Claim]:
    return {row.topic: row for row in claims(comparison(**changes), ppo, grpo, RLParams())}


def test_all_claims_of_the_table_are_there() -> None:
    rows = table(None, None)
    assert list(rows) == [
        "Sampling",
        "Reward normalisation",
        "Training stability",
        "Sample efficiency",
        "Cost per step",
        "Steps to converge",
        "Total training time",
        "Memory",
        "NDCG@10",
        "Recommended when",
    ]
    for topic in ("Training stability", "Sample efficiency", "Cost per step", "Total training time", "Memory"):
        assert rows[topic].verdict == "not measured here"


def test_sample_efficiency_counts_slates_to_the_common_goal() -> None:
    ppo, grpo = log([0.05, 0.051, 0.052, 0.053], 0.0), log([0.05, 0.053, 0.056, 0.055], 0.0)
    row = table(ppo, grpo)["Sample efficiency"]
    assert (row.ppo, row.grpo, row.verdict) == ("3,000 slates to 0.0530", "1,000 slates to 0.0530", "supported")
    assert table(grpo, ppo)["Sample efficiency"].verdict == "not supported"


@pytest.mark.parametrize(
    ("gains", "expected"),
    [((0.0, 0.001), "supported"), ((0.001, -0.001), "not supported"), ((-0.001, 0.0), "not measured here")],
)
def test_sample_efficiency_when_a_run_does_not_clearly_improve(gains: tuple[float, float], expected: str) -> None:
    rows = table(log([0.05, 0.06], 0.0), log([0.05, 0.07], 0.0), gains=gains)
    assert (rows["Sample efficiency"].verdict, rows["Sample efficiency"].grpo) == (expected, "best 0.0700")
    assert rows["Steps to converge"].verdict == "not measured here"


def test_stability_needs_both_measures() -> None:
    calm, wild = log([0.05, 0.06, 0.06], 0.01), log([0.05, 0.06, 0.03], 0.1)
    row = table(wild, calm)["Training stability"]
    assert row.verdict == "supported"
    assert "validation falls by up to 50.0 %" in row.ppo and "falls by up to 0.0 %" in row.grpo
    assert table(calm, wild)["Training stability"].verdict == "not supported"
    assert table(log([0.06, 0.05], 0.01), log([0.06, 0.055], 0.1))["Training stability"].verdict == "not supported"


def test_spread_ignores_the_trend() -> None:
    # Second half of 20 rows: reward 1 + .1 i exactly on a line -> no spread.
    line = TrainingLog([{"step": i, "train/reward": 1 + 0.1 * i} for i in range(20)], {})
    assert reward_spread(line) == pytest.approx(0, abs=1e-12)
    # Residuals +a -a -a +a around a constant 2: sqrt(4 a^2 / 2) / 2 = a / sqrt(2), with a = .2 -> .1414
    square = [2.2, 1.8, 1.8, 2.2]
    rows = [{"step": i, "train/reward": value} for i, value in enumerate([0.0] * 4 + square)]
    assert reward_spread(TrainingLog(rows, {})) == pytest.approx(0.141421, abs=1e-6)
    assert reward_spread(TrainingLog(rows[:3], {})) is None


def test_largest_fall() -> None:
    assert largest_fall(np.array([1.0, 2.0, 1.5, 3.0, 2.7])) == pytest.approx(0.25)
    assert largest_fall(np.array([1.0])) is None


@pytest.mark.parametrize(
    ("topic", "summary", "expected", "cell"),
    [
        ("Cost per step", {"train_seconds": 250.0}, "supported", "5 s (2.50x)"),
        ("Cost per step", {"train_seconds": 100.0}, "not supported", "2 s (1.00x)"),
        ("Total training time", {"train_seconds": 60.0}, "supported", "60 s (0.60x)"),
        ("Total training time", {"train_seconds": 160.0}, "not supported", "160 s (1.60x)"),
        ("Steps to converge", {"best_step": 8}, "supported", "8 steps (0.40x)"),
        ("Steps to converge", {"best_step": 20}, "not supported", "20 steps (1.00x)"),
        ("Memory", {"peak_memory_mb": 4000}, "supported", "4,000 MB (4.00x)"),
        ("Memory", {"peak_memory_mb": 3900}, "not supported", "3,900 MB (3.90x)"),
    ],
)
def test_ratios_follow_their_rules(topic: str, summary: dict[str, float], expected: str, cell: str) -> None:
    ppo, grpo = log([], 0.0, peak_memory_mb=1000), log([], 0.0, **({"peak_memory_mb": 1000} | summary))
    row = table(ppo, grpo)[topic]
    assert (row.verdict, row.grpo) == (expected, cell)


def test_ndcg_is_judged_by_the_interval_of_the_sampled_protocol() -> None:
    row = table(None, None)["NDCG@10"]
    assert (row.ppo_claim, row.grpo_claim, row.ppo, row.verdict) == ("0.32", "0.35", "0.3000", "supported")
    assert row.grpo == "0.3100 (+0.0100 [+0.0010, +0.0200])"
    assert table(None, None, low=-0.001)["NDCG@10"].verdict == "not supported"


def test_logs_are_read_with_gaps_and_without_a_summary(tmp_path: Path) -> None:
    path = tmp_path / "ppo.jsonl"
    assert load_log(path) is None
    lines = [
        {"step": 1, "samples": 8, "train/kl": 0.5},
        {"step": 2, "samples": 16, "train/kl": float("nan")},
        {"step": 3},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + "\n")
    found = load_log(path)
    assert found is not None and found.total("steps") is None
    assert [part.tolist() for part in found.series("train/kl", over="samples")] == [[8.0], [0.5]]
    path.write_text(json.dumps({"summary": True, "steps": 3}) + "\n")
    done = load_log(path)
    assert done is not None and done.total("steps") == 3.0 and done.rows == []


@pytest.mark.parametrize(
    ("text", "message"), [('{"step": 1}\n{"st\n', "line 2: not JSON"), ("[1]\n", "line 1: expected")]
)
def test_damaged_logs_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "grpo.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        load_log(path)
