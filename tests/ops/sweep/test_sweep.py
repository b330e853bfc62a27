"""The search around a scripted stage: proposals, pruning, failures, and going on."""

from __future__ import annotations

import fcntl
import json
import math
import signal
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from rl4rec.errors import UserError
from rl4rec.ops.sweep.settings import SweepParams
from rl4rec.ops.sweep.study import run_sweep
from rl4rec.ops.workspace import make_workspace
from rl4rec.settings import load_params, load_settings
from tests.ops.sweep.conftest import ROOT, SWEEP

Rows = list[dict[str, Any]]


def sweep(root: Path, **changes: Any) -> Rows:
    where = root.parent / "sweep.yaml"
    where.write_text(yaml.safe_dump(SWEEP | changes))
    return run_sweep(root, load_settings(where, SweepParams), where)


def command(root: Path, **changes: Any) -> subprocess.CompletedProcess[str]:
    """The same as a process of its own."""
    (root.parent / "sweep.yaml").write_text(yaml.safe_dump(SWEEP | changes))
    line = [sys.executable, "-c", "from rl4rec.cli import main; main()", "sweep", "--settings", "../sweep.yaml"]
    return subprocess.run(line, cwd=root, capture_output=True, text=True, check=False)


def end_value(rate: float) -> float:
    """What the scripted stage's last validation is, without pruning and with seed 0."""
    return 0.5 - (math.log10(rate) + 3) ** 2 / 10 + 0.03


def rates(rows: Rows) -> list[float]:
    return [row["settings"]["rl.grpo.learning_rate"] for row in rows]


def test_the_best_trial_is_found_written_and_can_be_run(scripted: Path) -> None:
    rows = sweep(scripted, trials=15)
    assert len(rows) == 15
    assert rows[0]["params.yaml"] and rates(rows)[0] == load_params(ROOT / "params.yaml").rl.grpo.learning_rate
    assert not any(row["params.yaml"] for row in rows[1:])
    assert [row["value"] for row in rows] == pytest.approx([end_value(rate) for rate in rates(rows)])
    # step 0 is the start of RL, not a result of the trial's settings
    assert list(rows[0]["validations"]) == ["80", "160", "240"]
    assert rows[0]["start"] == pytest.approx(end_value(rates(rows)[0]) - 0.03)
    best = max(rows, key=lambda row: row["value"])
    assert abs(math.log10(best["settings"]["rl.grpo.learning_rate"]) + 3) < 0.5
    make_workspace(scripted, scripted.parent / "best", scripted / ".sweep" / "best.yaml")
    chosen = load_params(scripted.parent / "best" / "params.yaml")
    assert chosen.rl.grpo.learning_rate == best["settings"]["rl.grpo.learning_rate"]
    assert chosen.rl.grpo.temperature == best["settings"]["rl.grpo.temperature"]
    written = json.loads((scripted / ".sweep" / "trials.json").read_text())
    assert written["metric"] == "valid/full/ndcg@10" and written["trials"] == rows
    assert not (scripted / ".sweep" / "trial").exists()


def test_the_command_prints_the_trials_and_how_to_run_the_best(scripted: Path) -> None:
    done = command(scripted, trials=2)
    assert done.returncode == 0, done.stderr
    assert "trial 2 of 2" in done.stderr
    first = next(line for line in done.stdout.splitlines() if "│" in line)
    assert [cell.strip() for cell in first.split("│")[1:6]] == [
        "0",
        "0.0001",
        "0.3",
        f"{end_value(1e-4):.5f}",
        "complete",
    ]
    assert "trial 0 has the settings of params.yaml" in done.stdout
    best = yaml.safe_load((scripted / ".sweep" / "best.yaml").read_text())
    assert f"dvc exp run -S 'rl.grpo.learning_rate={best['rl']['grpo']['learning_rate']}'" in done.stdout
    assert "rl4rec workspace .best --overrides .sweep/best.yaml" in done.stdout
    assert "The test fold was not read" in done.stdout


def test_a_trial_below_the_median_is_stopped(scripted: Path) -> None:
    rows = sweep(scripted, trials=8, pruner={"startup_trials": 2, "warmup_steps": 10}, sampler={"name": "random"})
    for place, row in enumerate(rows):
        earlier = [other for other in rows[:place] if other["state"] == "complete"]
        if len(earlier) < 2:
            assert row["state"] == "complete"
            continue
        # step 10 is within the warm-up, so that 20 (160 samples) is where it may end
        median = statistics.median(other["validations"]["160"] for other in earlier)
        assert row["state"] == ("pruned" if row["validations"]["160"] < median else "complete")
        assert list(row["validations"]) == (["80", "160"] if row["state"] == "pruned" else ["80", "160", "240"])
    pruned = sum(row["state"] == "pruned" for row in rows)
    assert 0 < pruned < 6
    assert (scripted / "steps").read_text().split().count("30") == 8 - pruned  # the others did not train on


def test_seeds_are_averaged(scripted: Path) -> None:
    rows = sweep(scripted, trials=2, seeds=3)
    runs = [json.loads(line) for line in (scripted / "runs").read_text().splitlines()]
    assert [seed for *_, seed in runs] == [0, 1, 2, 0, 1, 2]
    for row, rate in zip(rows, rates(rows), strict=True):
        assert row["seed_values"] == pytest.approx([end_value(rate), end_value(rate) + 0.01, end_value(rate) + 0.02])
        assert row["value"] == pytest.approx(end_value(rate) + 0.01)


def test_killed_and_run_again_it_is_the_sweep_that_was_not_killed(scripted: Path, tmp_path: Path) -> None:
    whole = sweep(scripted)
    (scripted / ".sweep").rename(tmp_path / "earlier")
    (scripted / "runs").unlink()
    (scripted / "kill").write_text("4")
    killed = command(scripted)
    assert killed.returncode == -signal.SIGKILL
    with (scripted / ".sweep" / "journal.log").open("a") as journal:
        journal.write('{"op_code": 5, "work')  # killed while writing
    (scripted / ".sweep" / "journal.log.lock").symlink_to("journal.log")
    rows = sweep(scripted)
    assert [row["number"] for row in rows] == [0, 1, 2, 4, 5, 6]  # 3 was cut off, and its settings are tried again
    for key in ("settings", "value", "validations"):
        assert [row[key] for row in rows] == [row[key] for row in whole]
    assert len((scripted / "runs").read_text().splitlines()) == 7
    # Nothing is left to do; more trials go on from there.
    assert sweep(scripted) == rows
    assert sweep(scripted, trials=7)[:6] == rows
    assert len((scripted / "runs").read_text().splitlines()) == 8


def test_other_settings_code_or_start_are_another_study(scripted: Path) -> None:
    sweep(scripted, trials=2)

    def runs() -> int:
        return len((scripted / "runs").read_text().splitlines())

    sweep(scripted, trials=2, timeout_s=60.0)
    assert runs() == 2
    sweep(scripted, trials=2, seeds=1, sampler={"seed": 1})
    assert runs() == 4
    (scripted / "models" / "sft" / "config.json").write_text('{"n_embd": 8}')
    sweep(scripted, trials=2)
    assert runs() == 6
    (scripted / "pipelines" / "rl.py").write_text((scripted / "pipelines" / "rl.py").read_text() + "\n# changed\n")
    sweep(scripted, trials=2)
    assert runs() == 8


def test_a_trial_that_fails_is_noted_and_the_search_goes_on(scripted: Path) -> None:
    (scripted / "fail").write_text("1e-3")
    rows = sweep(scripted, trials=8)
    assert {row["state"] for row in rows} == {"complete", "failed"}
    for row, rate in zip(rows, rates(rows), strict=True):
        assert row["state"] == ("failed" if rate >= 1e-3 else "complete")
        assert row["error"] == ("UserError: a score is NaN" if rate >= 1e-3 else None)
    assert sweep(scripted, trials=8) == rows  # they count


def test_values_that_do_not_go_together_are_a_failed_trial(scripted: Path) -> None:
    space = {"rl.candidates.negatives": {"low": 5, "high": 20, "step": 5}, "rl.grpo.max_steps": {"choices": [None]}}
    rows = sweep(scripted, trials=8, space=space)
    sizes = [row["settings"]["rl.candidates.negatives"] for row in rows]
    assert set(sizes) <= {5, 10, 15, 20} and 5 in sizes
    for row, size in zip(rows, sizes, strict=True):
        assert row["state"] == ("failed" if size == 5 else "complete")
        assert (row["error"] or "").count("k (10) must be no larger than the candidate set") == (size == 5)


def test_when_no_trial_succeeds(scripted: Path) -> None:
    (scripted / "fail").write_text("0")
    with pytest.raises(
        UserError, match=r"no trial was completed; see .*trials.json. The first: UserError: a score is NaN"
    ):
        sweep(scripted, trials=2)
    assert not (scripted / ".sweep" / "best.yaml").exists()


def test_no_further_trial_after_the_time(scripted: Path) -> None:
    assert len(sweep(scripted, timeout_s=1e-9)) == 1
    assert len(sweep(scripted, timeout_s=1e-9)) == 2


def test_one_sweep_at_a_time(scripted: Path) -> None:
    (scripted / ".sweep").mkdir()
    with (scripted / ".sweep" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        with pytest.raises(UserError, match="another sweep is under way"):
            sweep(scripted)
    assert len(sweep(scripted, trials=1)) == 1


RATE = {"rl.grpo.learning_rate": {"low": 1.0e-5, "high": 1.0e-3}}


RATE, BATCH = "rl.grpo.learning_rate", "rl.grpo.batch_size"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trails": 3}, "trails: unknown key; did you mean 'trials'?"),
        ({"stage": "rl"}, "stage: expected one of sft, sft_continued, rl@ppo, rl@grpo (got 'rl')"),
        ({"trials": 0}, "trials: Input should be greater than or equal to 1 (got 0)"),
        ({"metric": "test/full/ndcg@10"}, "metric: String should match pattern"),
        ({"metric": "valid/full/ndcg@5"}, "metric: stage rl@grpo validates at k = 10, got valid/full/ndcg@5"),
        ({"pruner": {"patience": 3}}, "pruner.patience: unknown key; Known here: startup_trials, warmup_steps"),
        ({"space": {}}, "space: Dictionary should have at least 1 item"),
    ],
)
def test_bad_settings(scripted: Path, changes: dict[str, Any], message: str) -> None:
    refused(scripted, message, **changes)


@pytest.mark.parametrize(
    ("key", "dimension", "message"),
    [
        (RATE, {"low": 1, "high": 0.1}, "low (1) must be below high (0.1)"),
        (RATE, {"low": 0, "high": 0.1, "log": True}, "log needs low above 0, got 0"),
        (RATE, {"low": 0.1, "high": 0.5, "log": True, "step": 0.1}, "give either log or step"),
        (RATE, {"low": 0.1}, "give low and high (with log or step), or choices"),
        (RATE, {"choices": []}, "choices: Tuple should have at least 1 item"),
        (RATE, {"choices": [0.1], "low": 0.1}, "give either choices, or low and high"),
        (RATE, {"choices": [[1]]}, "choices.0: expected a number"),
        (RATE, {"lo": 0.1}, f"space.{RATE}.lo: unknown key; did you mean 'low'?"),
        (RATE, {"low": 0.1, "high": 3}, "less than or equal to 1 (got 3.0)"),
        ("rl.grpo.kl_coef", {"low": 0, "high": 1, "step": 0.3}, "must be a multiple of step (0.3)"),
        (BATCH, {"low": 1.5, "high": 3}, f"space.{BATCH}: Input should be a valid integer"),
        (BATCH, {"low": 1, "high": 4, "step": 1.5}, "step must be a whole number (got 1.5)"),
        ("rl.grpo.loss_type", {"choices": ["grpo", "gpro"]}, "(got 'gpro')"),
        ("rl.grpo.learningrate", {"choices": [0.1]}, f"unknown setting; did you mean {RATE}?"),
        ("rl.grpo", {"choices": [0.1]}, f"space.rl.grpo: names a section; its settings are {RATE}"),
        ("rl.ppo.gamma", {"choices": [0.1]}, "space.rl.ppo.gamma: stage rl@grpo does not read it"),
        ("policy.n_embd", {"choices": [8]}, "space.policy.n_embd: stage sft reads it too"),
        ("rl.crossfit.split_points", {"choices": [0, 2]}, "stage crossfit reads it too"),
        ("rl.grpo.seed", {"choices": [1, 2]}, "space.rl.grpo.seed: a seed is not tuned"),
        ("rl.k", {"choices": [5, 10]}, "the metric would not be the same in all trials"),
    ],
)
def test_a_bad_space(scripted: Path, key: str, dimension: dict[str, Any], message: str) -> None:
    refused(scripted, message, space={key: dimension})


def refused(scripted: Path, message: str, **changes: Any) -> None:
    with pytest.raises(UserError) as found:
        sweep(scripted, **changes)
    assert "sweep.yaml" in str(found.value)
    assert message in str(found.value)
    assert not (scripted / ".sweep").exists() and not (scripted / "runs").exists()


def test_what_the_stage_needs_must_be_there(scripted: Path) -> None:
    for path in (scripted / "models" / "sft").iterdir():
        path.unlink()
    done = command(scripted)
    assert done.returncode == 2
    assert "models/sft: not there yet. Run `dvc repro sft` in " in done.stderr and "Traceback" not in done.stderr
    assert not (scripted / ".sweep").exists()


def test_the_validation_targets_must_not_be_trained_on(scripted: Path) -> None:
    params = yaml.safe_load((scripted / "params.yaml").read_text())
    params["sft"]["feedback"] = "latest"
    (scripted / "params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(UserError, match=r"sft.feedback: trains on the validation targets"):
        sweep(scripted)


def test_the_committed_settings_fit_the_project(scripted: Path) -> None:
    where = ROOT / "sweep.yaml"
    settings = load_settings(where, SweepParams).model_copy(update={"trials": 1})
    assert [row["state"] for row in run_sweep(scripted, settings, where)] == ["complete"]
