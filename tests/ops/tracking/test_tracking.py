"""Tracking against a real MLflow database (made once, copied for each test), and without one."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import mlflow
import numpy as np
import polars as pl
import psutil
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from rl4rec.data.dataset import PreparedData, Ragged
from rl4rec.ops.tracking import PIPELINE_TAG, delivery, flatten, pipeline_id, stage_run, stage_settings
from rl4rec.params import Params

PARAMS = Params.model_validate({"tracking": {"system_metrics": False}})


@pytest.fixture
def workspace(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RL4REC_PIPELINE_ID", "test")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")  # MLflow keeps stores by their address
    monkeypatch.delenv("DVC_EXP_NAME", raising=False)
    yield tmp_path
    while mlflow.active_run():
        mlflow.end_run()


def prepared(folder: Path) -> PreparedData:
    """Two users, three items."""
    folder.mkdir()
    pl.DataFrame({"item": ["A", "B", "C"], "count": [2, 1, 1]}).write_parquet(folder / "items.parquet")
    return PreparedData(
        folder=folder,
        users=["u", "v"],
        item_ids=["A", "B", "C"],
        item_counts=np.array([2, 1, 1]),
        sequences=Ragged.from_rows([[0, 1, 2], [2, 0, 1]]),
        stats={"data_hash": "0123456789abcdef", "source": "simulated", "users": 2, "items": 3, "nested": {}},
    )


def client() -> MlflowClient:
    return MlflowClient(f"sqlite:///{Path.cwd()}/mlflow.db")


def runs() -> tuple[list[Run], list[Run]]:
    """Pipelines' runs and stages' runs, oldest first."""
    experiments = [experiment.experiment_id for experiment in client().search_experiments()]
    found = sorted(client().search_runs(experiments), key=lambda run: run.info.start_time)
    parents = [run for run in found if PIPELINE_TAG in run.data.tags]
    return parents, [run for run in found if run not in parents]


def test_a_stage_is_a_child_of_its_pipeline(workspace: Path) -> None:
    with stage_run("rl", PARAMS, name="rl-ppo") as run:
        run.log_params({"extra": {"depth": 2}})
        run.log_metrics({"valid/full/ndcg@10": 0.25}, step=3)
        run.log_metrics({"valid/full/ndcg@10": 0.5}, step=6)
        (workspace / "report.html").write_text("<p>")
        run.log_artifact(workspace / "report.html", "report")
    with stage_run("rl", PARAMS, name="rl-grpo"):
        pass

    (pipeline,), (ppo, grpo) = runs()
    assert [run.info.run_name for run in (ppo, grpo)] == ["rl-ppo", "rl-grpo"]
    assert {run.info.status for run in (pipeline, ppo, grpo)} == {"FINISHED"}
    assert {run.data.tags["mlflow.parentRunId"] for run in (ppo, grpo)} == {pipeline.info.run_id}
    assert ppo.data.params["extra.depth"] == "2"
    history = client().get_metric_history(ppo.info.run_id, "valid/full/ndcg_at_10")
    assert [(metric.step, metric.value) for metric in history] == [(3, 0.25), (6, 0.5)]
    assert [file.path for file in client().list_artifacts(ppo.info.run_id, "report")] == ["report/report.html"]
    # Both algorithms' settings have the same names, so that they line up in the compare page.
    assert (ppo.data.params["rl.algorithm"], grpo.data.params["rl.algorithm"]) == ("ppo", "grpo")
    assert (ppo.data.params["rl.batch_size"], grpo.data.params["rl.batch_size"]) == ("1024", "128")
    assert pipeline.data.params["rl.grpo.num_sample_generations"] == "8"


def test_a_series_has_one_value_a_step(workspace: Path) -> None:
    with stage_run("sft", PARAMS) as run:
        for step in (1, 2):
            run.log_metrics({"samples": 10.0 * step, "seconds": 1.0, "train/loss": 0.5}, step=step)
            time.sleep(0.01)
            run.log_metrics({"samples": 10.0 * step, "seconds": 1.1, "valid/full/ndcg@10": 0.1}, step=step)
    _, (stage,) = runs()
    for name in ("samples", "seconds", "train/loss", "valid/full/ndcg_at_10"):
        assert [entry.step for entry in client().get_metric_history(stage.info.run_id, name)] == [1, 2]


def test_another_pipeline_has_another_run(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        monkeypatch.setenv("RL4REC_PIPELINE_ID", name)
        with stage_run("sft", PARAMS):
            pass
    parents, children = runs()
    assert [run.data.tags[PIPELINE_TAG] for run in parents] == ["one", "two"]
    assert [run.data.tags["mlflow.parentRunId"] for run in children] == [run.info.run_id for run in parents]


@pytest.mark.parametrize(("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_a_stage_that_fails(workspace: Path, error: type[BaseException], status: str) -> None:
    with pytest.raises(error), stage_run("sft", PARAMS) as run:
        run.log_metrics({"train/loss": 1.0}, step=1)
        raise error
    (pipeline,), (stage,) = runs()
    assert (pipeline.info.status, stage.info.status) == (status, status)
    assert stage.data.metrics == {"train/loss": 1.0}


def saved(folder: Path, weights: bytes) -> Path:
    """A folder that has what the digest of a policy is taken of."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def test_a_result_goes_to_the_run_that_trained_the_policy(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "log_policy_model", lambda *_: None)
    data = prepared(workspace / "prepared")
    ppo, grpo = saved(workspace / "ppo", b"1"), saved(workspace / "grpo", b"2")
    for pipeline, name, folder in (("one", "rl-ppo", ppo), ("two", "rl-ppo", ppo), ("one", "rl-grpo", grpo)):
        monkeypatch.setenv("RL4REC_PIPELINE_ID", pipeline)
        with stage_run("rl", PARAMS, name=name) as run:
            run.log_metrics({"valid/full/ndcg@10": 0.125}, step=3)
            run.log_policy(folder, data)
    for pipeline, value in (("one", 0.25), ("three", 0.75)):  # the third trains nothing: DVC had the policy
        monkeypatch.setenv("RL4REC_PIPELINE_ID", pipeline)
        with stage_run("evaluate", PARAMS, name="evaluate-ppo") as run:
            run.log_result({"test/full/ndcg@10": value}, ppo)
            run.log_result({"test/full/ndcg@10": 1.0}, saved(workspace / f"unknown-{pipeline}", b"3"))
            run.log_result({"test/full/ndcg@10": 1.0}, workspace / "no weights")
    _, (first, second, other, *evaluations) = runs()
    assert first.data.metrics == {"valid/full/ndcg_at_10": 0.125, "test/full/ndcg_at_10": 0.25}
    assert second.data.metrics == {"valid/full/ndcg_at_10": 0.125, "test/full/ndcg_at_10": 0.75}  # the latest
    assert other.data.metrics == {"valid/full/ndcg_at_10": 0.125}
    assert [run.data.metrics for run in evaluations] == [{}, {}]
    assert {run.info.status for run in (first, second, other)} == {"FINISHED"}
    assert first.data.tags["mlflow.note.content"].startswith("Reinforcement learning")


def test_the_dataset_with_digest_and_source(workspace: Path) -> None:
    with stage_run("sft", PARAMS) as run:
        run.log_dataset(prepared(workspace / "prepared"), context="training")
    _, (stage,) = runs()
    (entry,) = stage.inputs.dataset_inputs
    assert (entry.dataset.name, entry.dataset.digest) == ("simulated", "0123456789abcdef")
    assert json.loads(entry.dataset.source) == {"uri": str(workspace / "prepared")}
    tags = {tag.key: tag.value for tag in entry.tags}
    assert (tags["mlflow.data.context"], tags["users"]) == ("training", "2")


def test_settings_too_long_for_mlflow_are_cut(workspace: Path) -> None:
    with stage_run("sft", PARAMS) as run:
        run.log_params({"long": "x" * 7000} | {f"many.{i}": i for i in range(250)})
    _, (stage,) = runs()
    assert stage.data.params["long"] == "x" * 5997 + "..."
    assert stage.data.params["many.249"] == "249"


def test_tracking_off_touches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    off = Params.model_validate({"tracking": {"enabled": False}})
    with stage_run("sft", off) as run:
        run.log_params({"a": 1})
        run.log_metrics({"b": 1.0}, step=0)
        run.log_dataset(prepared(tmp_path / "prepared"), "training")
        run.log_policy(tmp_path / "none", prepared(tmp_path / "again"))
        run.log_artifact(tmp_path / "none")
    assert not (tmp_path / "mlflow.db").exists()


def test_flatten() -> None:
    assert flatten({"a": {"b": {"c": 1}, "d": [1, 2]}, "e": None}) == {"a.b.c": 1, "a.d": [1, 2], "e": None}


def test_settings_of_each_stage() -> None:
    assert set(stage_settings(PARAMS, "prepare")) == {"data"}
    assert set(stage_settings(PARAMS, "sft")) == {"policy", "sft"}
    assert stage_settings(PARAMS, "evaluate", "sft")["evaluated"] == "sft"
    assert set(stage_settings(PARAMS, "compare")) == {"compare"}
    rl = flatten(stage_settings(PARAMS, "rl", "ppo"))
    assert rl["rl.ppo_epochs"] == 2
    assert "rl.loss_type" not in rl
    assert flatten(stage_settings(PARAMS, "sft_continued"))["rl.learning_rate"] == 1e-5
    assert set(flatten(stage_settings(PARAMS, "crossfit"))) >= {"sft.learning_rate", "rl.crossfit.split_points"}


def process(*command: str) -> SimpleNamespace:
    return SimpleNamespace(cmdline=lambda: list(command), pid=12, create_time=lambda: 34.0)


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["/venv/bin/python", "/venv/bin/dvc", "repro"], "dvc-12-34.00"),
        (["python3", "-m", "dvc", "exp", "run"], "dvc-12-34.00"),
        (["bash", "-c", "dvc repro"], None),
        (["vim", "dvc.yaml"], None),
    ],
)
def test_the_dvc_process_above_joins_stages(
    monkeypatch: pytest.MonkeyPatch, command: list[str], expected: str | None
) -> None:
    monkeypatch.delenv("RL4REC_PIPELINE_ID", raising=False)
    monkeypatch.delenv("DVC_EXP_NAME", raising=False)
    above = SimpleNamespace(parents=lambda: [process("sh", "-c", "python pipelines/sft.py"), process(*command)])
    monkeypatch.setattr(psutil, "Process", lambda: above)
    assert pipeline_id() == expected
    if expected:
        monkeypatch.setenv("DVC_EXP_NAME", "tidy-otter")
        assert pipeline_id() == f"{expected}-tidy-otter"


def test_importing_tracking_does_not_import_mlflow() -> None:
    code = "import sys, rl4rec.ops.tracking; sys.exit('mlflow' in sys.modules)"
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", code]) == 0
