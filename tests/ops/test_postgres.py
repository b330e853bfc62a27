"""Tracking and promotion against an MLflow server with PostgreSQL behind it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from rl4rec.errors import UserError
from rl4rec.ops.promote import promote, roll_back
from rl4rec.ops.registry import CHAMPION, Registry
from rl4rec.ops.tracking import PIPELINE_TAG, stage_run
from tests.ops.conftest import NAME, PARAMS, put
from tests.servers import mlflow_server, postgres_programs, postgres_server

PROGRAMS = postgres_programs()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAMS is None, reason="PostgreSQL is not installed (Debian: apt install postgresql)"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    assert PROGRAMS is not None
    folder = tmp_path_factory.mktemp("server")
    with (
        postgres_server(tmp_path_factory.mktemp("postgres"), PROGRAMS) as database,
        mlflow_server(folder, database) as address,
    ):
        yield address


@pytest.fixture
def client(project: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    """The folder of `project` with the server instead of a file."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    mlflow.set_tracking_uri(server)
    return MlflowClient(server)


def test_a_stage_is_tracked(client: MlflowClient, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RL4REC_PIPELINE_ID", "postgres")
    with stage_run("rl", PARAMS, name="rl-grpo") as run:
        run.log_metrics({"valid/full/ndcg@3": 0.25}, step=1)
        run.log_metrics({"valid/full/ndcg@3": 0.5}, step=2)
        (project / "report.html").write_text("<p>")
        run.log_artifact(project / "report.html", "report")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    (found,) = client.search_runs(experiments, "attributes.run_name = 'rl-grpo'")
    assert found.info.status == "FINISHED"
    history = client.get_metric_history(found.info.run_id, "valid/full/ndcg_at_3")
    assert [(metric.step, metric.value) for metric in history] == [(1, 0.25), (2, 0.5)]
    assert found.data.params["rl.algorithm"] == "grpo"
    assert [file.path for file in client.list_artifacts(found.info.run_id, "report")] == ["report/report.html"]
    parent = client.get_run(found.data.tags["mlflow.parentRunId"])
    assert parent.data.tags[PIPELINE_TAG] == "postgres"


def test_promotion_refusal_and_rollback(client: MlflowClient, project: Path) -> None:
    def champion() -> str:
        return str(client.get_model_version_by_alias(NAME, CHAMPION).version)

    assert promote(project, PARAMS).promoted
    assert not promote(project, PARAMS, policy="ppo").promoted
    put(project, "grpo", 150)
    assert promote(project, PARAMS).promoted
    assert champion() == "3"
    assert roll_back(PARAMS) == ("3", "1")
    assert champion() == "1"


def test_of_many_at_once_one_holds_the_lock(client: MlflowClient) -> None:
    held: list[int] = []
    together: list[int] = []
    refused: list[int] = []
    start = threading.Barrier(6)

    def compete() -> None:
        start.wait()
        try:
            with Registry(client, "race").lock():
                held.append(1)
                together.append(len(held))
                done.wait(1)
                held.pop()
        except UserError:
            refused.append(1)

    done = threading.Event()
    threads = [threading.Thread(target=compete) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together and set(together) == {1}
    assert len(together) + len(refused) == 6 and refused
