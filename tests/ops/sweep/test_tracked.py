"""The sweep in MLflow, against a real database: a run a sweep, a child a trial."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import mlflow
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run

from tests.ops.sweep.test_sweep import command, sweep


@pytest.fixture
def tracked(scripted: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The scripted workspace, with the tracking of params.yaml: a database beside it."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    params = yaml.safe_load((scripted / "params.yaml").read_text())
    params["tracking"]["enabled"] = True
    (scripted / "params.yaml").write_text(yaml.safe_dump(params))
    shutil.copy(empty_database, scripted / "mlflow.db")
    return scripted


def client(root: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{root}/mlflow.db")


def runs(root: Path) -> tuple[list[Run], list[Run]]:
    """Sweeps and trials, oldest first."""
    experiments = [experiment.experiment_id for experiment in client(root).search_experiments()]
    found = sorted(client(root).search_runs(experiments), key=lambda run: run.info.start_time)
    return (
        [run for run in found if "rl4rec.sweep" in run.data.tags],
        [run for run in found if "rl4rec.trial" in run.data.tags],
    )


def test_a_trial_is_a_child_of_its_sweep(tracked: Path) -> None:
    (tracked / "fail").write_text("1e-3")
    rows = sweep(tracked, trials=8, pruner={"startup_trials": 1}, sampler={"name": "random"})
    (parent,), children = runs(tracked)
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert [run.info.run_name for run in children] == [f"trial-{number}" for number in range(8)]
    states = [row["state"] for row in rows]
    assert set(states) == {"complete", "pruned", "failed"}
    assert [run.data.tags["rl4rec.trial_state"] for run in children] == states
    statuses = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}
    assert [run.info.status for run in children] == [statuses[state] for state in states]
    for run, row in zip(children, rows, strict=True):
        assert run.data.params == {key: json.dumps(value) for key, value in row["settings"].items()}
        history = client(tracked).get_metric_history(run.info.run_id, "valid/full/ndcg_at_10")
        trained = [metric for metric in history if metric.step > 0]
        assert [metric.value for metric in trained] == list(row["validations"].values())
        assert [8 * metric.step for metric in trained] == [int(samples) for samples in row["validations"]]
        assert run.data.metrics.get("sweep/value") == row["value"]
        assert run.data.metrics.keys() <= {"valid/full/ndcg_at_10", "valid/full/hit_at_10", "sweep/value"}

    assert parent.info.run_name == "sweep-rl@grpo" and parent.info.status == "FINISHED"
    best = max((row for row in rows if row["value"] is not None), key=lambda row: row["value"])
    assert parent.data.metrics["sweep/best_value"] == best["value"]
    rate = best["settings"]["rl.grpo.learning_rate"]
    assert parent.data.tags["rl4rec.best.rl.grpo.learning_rate"] == str(rate)
    assert {state: parent.data.metrics[f"sweep/{state}"] for state in set(states)} == {
        state: states.count(state) for state in set(states)
    }
    assert parent.data.params["sweep.sampler.name"] == "random"
    assert parent.inputs.dataset_inputs[0].dataset.digest == "tiny"
    files = {file.path for file in client(tracked).list_artifacts(parent.info.run_id, "sweep")}
    assert files == {"sweep/trials.json", "sweep/best.yaml"}
    assert mlflow.active_run() is None


def test_going_on_finds_the_run_and_closes_what_was_cut_off(tracked: Path) -> None:
    (tracked / "kill").write_text("3")
    assert command(tracked, trials=4).returncode == -signal.SIGKILL
    (parent,), children = runs(tracked)
    assert [run.info.status for run in (parent, *children)] == ["RUNNING", "FINISHED", "FINISHED", "RUNNING"]
    assert len(sweep(tracked, trials=4)) == 4
    (again,), children = runs(tracked)
    assert again.info.run_id == parent.info.run_id and again.info.status == "FINISHED"
    states = [run.data.tags["rl4rec.trial_state"] for run in children]
    assert states == ["complete", "complete", "interrupted", "complete", "complete"]
    assert children[2].info.status == "KILLED"
    assert children[2].data.params == children[3].data.params


@pytest.mark.parametrize("when", ["start", "later"])
def test_without_an_answer_the_sweep_goes_on(tracked: Path, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    def dead(*_: object, **__: object) -> None:
        raise ConnectionError("gone")

    for name in ("search_runs",) if when == "start" else ("log_batch", "set_tag", "set_terminated", "log_artifact"):
        monkeypatch.setattr(MlflowClient, name, dead)
    assert [row["state"] for row in sweep(tracked, trials=2)] == ["complete", "complete"]
