"""A database of another MLflow is named, left alone, and loses nothing: real ones, downgraded or altered."""

from __future__ import annotations

import logging
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import mlflow
import pytest
from alembic import command
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.db.utils import _get_alembic_config

from rl4rec.cli import main
from rl4rec.errors import UserError
from rl4rec.ops.champion import fetch_champion
from rl4rec.ops.tracking import connect, stage_run, sync
from rl4rec.ops.tracking.database import UnfitDatabase, database_file
from rl4rec.params import Params, TrackingParams

PARAMS = Params.model_validate({"tracking": {"system_metrics": False}})


@pytest.fixture
def workspace(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    (tmp_path / "params.yaml").write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RL4REC_PIPELINE_ID", "test")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return tmp_path


def schema(folder: Path) -> str:
    with closing(sqlite3.connect(folder / "mlflow.db")) as connection:
        return str(connection.execute("SELECT version_num FROM alembic_version").fetchone()[0])


def set_schema(folder: Path, version: str) -> None:
    with closing(sqlite3.connect(folder / "mlflow.db")) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (version,))


def downgrade(folder: Path) -> None:
    command.downgrade(_get_alembic_config(f"sqlite:///{folder}/mlflow.db"), "-1")


def test_an_older_database_is_named_and_after_its_upgrade_all_is_there(
    workspace: Path, caplog: pytest.LogCaptureFixture
) -> None:
    newest = schema(workspace)
    downgrade(workspace)
    older, content = schema(workspace), (workspace / "mlflow.db").read_bytes()
    assert older != newest
    with caplog.at_level(logging.WARNING), stage_run("sft", PARAMS) as run:
        run.log_metrics({"train/loss": 1.0}, step=1)
    assert "MLflow cannot use its database, training goes on: " in caplog.text
    assert (
        f"an older MLflow than {mlflow.__version__} has written this database. Copy the file, then run" in caplog.text
    )
    assert f"`mlflow db upgrade 'sqlite:///{workspace}/mlflow.db'`" in caplog.text
    assert "does not answer" not in caplog.text and "not tracked" not in caplog.text
    assert (workspace / "mlflow.db").read_bytes() == content  # and not upgraded behind anybody's back
    with pytest.raises(UserError, match=r"did not take everything, the rest stays: .* again when it is mended"):
        sync(PARAMS.tracking)

    command.upgrade(_get_alembic_config(f"sqlite:///{workspace}/mlflow.db"), "head")  # what `mlflow db upgrade` does
    assert sync(PARAMS.tracking) == 1
    client = MlflowClient()
    (found,) = client.search_runs(["1"], "attributes.run_name = 'sft'")
    assert (found.info.status, found.data.metrics) == ("FINISHED", {"train/loss": 1.0})


def test_a_newer_database_is_named(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_schema(workspace, "feedfeedfeed")
    message = rf"mlflow.db: another MLflow than {mlflow.__version__}, likely a newer one, .*feedfeedfeed"
    with pytest.raises(UnfitDatabase, match=message):
        connect(TrackingParams())
    with pytest.raises(UserError, match=message):
        fetch_champion(TrackingParams(), workspace / "champion", held_out=False)


@pytest.mark.parametrize("arguments", [("serve", "--port", "0"), ("rollback",), ("sync",)])
def test_commands_say_it(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    downgrade(workspace)
    monkeypatch.setattr("sys.argv", ["rl4rec", *arguments])
    with pytest.raises(SystemExit) as exit_:
        main()
    said = capsys.readouterr().err
    assert exit_.value.code == 2
    assert "an older MLflow" in said and "mlflow db upgrade" in said and "answers" not in said


def test_a_file_that_is_no_database_is_named_at_once(workspace: Path) -> None:
    (workspace / "mlflow.db").write_text("no database\n" * 1000)
    with pytest.raises(UnfitDatabase, match=r"mlflow.db: not a database of MLflow \(file is not a database\)"):
        connect(TrackingParams())


@pytest.mark.parametrize(
    ("address", "file"),
    [
        ("sqlite:///mlflow.db", "mlflow.db"),
        ("sqlite:////srv/a b/mlflow.db", "/srv/a b/mlflow.db"),
        ("sqlite://", None),
        ("sqlite:///:memory:", None),
        ("http://127.0.0.1:5000", None),
        ("postgresql://mlflow@127.0.0.1/mlflow", None),
    ],
)
def test_the_file_of_an_address(address: str, file: str | None) -> None:
    assert database_file(address) == (None if file is None else Path(file))


def test_a_database_of_a_server_is_named_without_its_password(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: str) -> None:
        raise MlflowException("Detected out-of-date database schema (found version 1, but expected 2). Take a backup")

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://mlflow:hush@127.0.0.1/mlflow")
    monkeypatch.setattr(mlflow, "set_experiment", refuse)
    with pytest.raises(UnfitDatabase, match=r"postgresql://\*\*\*@127.0.0.1/mlflow: another MLflow than .* db upgrade"):
        connect(TrackingParams())
    mlflow.set_tracking_uri(f"sqlite:///{workspace}/mlflow.db")
