"""Places of artifacts in a database whose project was moved, copied or renamed; the user's own choices stay."""

from __future__ import annotations

import logging
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from rl4rec.ops.tracking import connect
from rl4rec.ops.tracking.places import mend_places
from rl4rec.params import TrackingParams

NAMES = ["plain", "with space", "a#b", "a?b", "a%b", "50%20off", "a;b", "büro 책"]
RUN = "0123456789abcdef0123456789abcdef"
ADD_RUN = (
    "INSERT INTO runs (run_uuid, experiment_id, artifact_uri, lifecycle_stage, name, source_type, user_id, status,"
    " start_time) VALUES (?, 1, ?, 'active', 'sft', 'LOCAL', 'u', 'RUNNING', 1)"
)


def write(file: Path, *statements: tuple[str, tuple[object, ...]]) -> None:
    with closing(sqlite3.connect(file)) as connection, connection:
        for statement, values in statements:
            connection.execute(statement, values)


def places(project: Path) -> dict[str, list[str]]:
    """What the database says, by table."""
    found = {}
    with closing(sqlite3.connect(project / "mlflow.db")) as connection:
        for table, column in (
            ("experiments", "artifact_location"),
            ("runs", "artifact_uri"),
            ("logged_models", "artifact_location"),
            ("model_versions", "storage_location"),
        ):
            rows = connection.execute(f"SELECT {column} FROM {table} ORDER BY rowid").fetchall()
            found[table] = [str(place) for (place,) in rows]
    return found


def make(project: Path, empty_database: Path, *, place: str | None = None, files: bool = True) -> Path:
    """A project with a run, a model and a version of it, as MLflow stores them; `place`: of experiment 1."""
    project.mkdir(parents=True)
    (project / "params.yaml").write_text("{}")
    file = project / "mlflow.db"
    shutil.copy(empty_database, file)
    place = place or f"{project}/mlruns/1"
    model = f"{place}/models/m-1/artifacts"
    write(
        file,
        ("UPDATE experiments SET artifact_location = ?", (f"{project}/mlruns/0",)),
        (
            "INSERT INTO experiments (experiment_id, name, artifact_location, lifecycle_stage, creation_time,"
            " workspace) VALUES (1, 'rl4rec', ?, 'active', 77, 'default')",
            (place,),
        ),
        (
            ADD_RUN,
            (RUN, f"{place}/{RUN}/artifacts"),
        ),
        (
            "INSERT INTO logged_models (model_id, experiment_id, name, artifact_location, creation_timestamp_ms,"
            " last_updated_timestamp_ms, status, lifecycle_stage) VALUES ('m-1', 1, 'policy', ?, 1, 1, 2, 'active')",
            (model,),
        ),
        ("INSERT INTO registered_models (name, workspace) VALUES ('shop', 'default')", ()),
        (
            "INSERT INTO model_versions (name, version, source, storage_location, workspace)"
            " VALUES ('shop', 1, 'models:/m-1', ?, 'default')",
            (model,),
        ),
    )
    if files and place.startswith("/"):
        (Path(place) / RUN / "artifacts").mkdir(parents=True)
        (Path(place) / RUN / "artifacts" / "report.md").write_text("#")
        Path(model).mkdir(parents=True)
    return project


def expected(project: Path) -> dict[str, list[str]]:
    def at(*parts: str) -> str:
        path = Path(project, "mlruns", *parts)
        return path.as_uri() if set(str(path)) & set("%?#;") else str(path)

    model = at("1", "models", "m-1", "artifacts")
    return {
        "experiments": [at("0"), at("1")],
        "runs": [at("1", RUN, "artifacts")],
        "logged_models": [model],
        "model_versions": [model],
    }


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("files", [True, False])
def test_a_project_that_was_moved_twice(
    tmp_path: Path, empty_database: Path, name: str, files: bool, caplog: pytest.LogCaptureFixture
) -> None:
    base = make(tmp_path / "base", empty_database, files=files)
    assert not mend_places(base / "mlflow.db", base)
    first, second = tmp_path / name, tmp_path / f"{name}2"
    base.rename(first)
    assert mend_places(first / "mlflow.db", first)
    assert places(first) == expected(first)
    assert f"this project was moved or copied from {base}: 4 places of artifacts mended" in caplog.text
    caplog.clear()
    assert not mend_places(first / "mlflow.db", first) and not caplog.text  # said once
    first.rename(second)
    (tmp_path / "between").mkdir()
    second.rename(tmp_path / "between" / name)
    mend_places(tmp_path / "between" / name / "mlflow.db", tmp_path / "between" / name)
    assert places(tmp_path / "between" / name) == expected(tmp_path / "between" / name)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("files", [True, False])
def test_a_copy_beside_its_original(tmp_path: Path, empty_database: Path, name: str, files: bool) -> None:
    base = make(tmp_path / "base", empty_database, files=files)
    copy, again = tmp_path / name, tmp_path / "again" / name
    shutil.copytree(base, copy)
    before = (base / "mlflow.db").read_bytes()
    mend_places(copy / "mlflow.db", copy)
    assert places(copy) == expected(copy)
    shutil.copytree(copy, again)
    mend_places(again / "mlflow.db", again)
    assert (places(again), places(copy), places(base)) == (expected(again), expected(copy), expected(base))
    assert not mend_places(base / "mlflow.db", base)
    assert (base / "mlflow.db").read_bytes() == before


def test_a_copy_without_the_files_says_where_they_are(
    tmp_path: Path, empty_database: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base, copy = make(tmp_path / "base", empty_database), tmp_path / "copy"
    copy.mkdir()
    shutil.copy(base / "mlflow.db", copy)
    mend_places(copy / "mlflow.db", copy)
    assert places(copy) == expected(copy)  # nothing more goes to the original
    assert f"have their files in {base}/mlruns only: copy that folder here" in caplog.text


def test_a_move_after_which_mlflow_wrote_into_the_old_folder(tmp_path: Path, empty_database: Path) -> None:
    base, moved = make(tmp_path / "base", empty_database), tmp_path / "moved"
    base.rename(moved)
    late = base / "mlruns" / "1" / "late" / "artifacts"
    late.mkdir(parents=True)
    values = ("late", str(late))
    write(
        moved / "mlflow.db",
        (
            ADD_RUN,
            values,
        ),
    )
    mend_places(moved / "mlflow.db", moved)
    wanted = expected(moved)
    wanted["runs"].append(str(late))  # where its files are
    assert places(moved) == wanted


@pytest.mark.parametrize(
    "place", ["s3://bucket/1", "mlflow-artifacts:/1", "{outside}/store", "{outside}/mlruns/1", "./mlruns/1"]
)
def test_places_that_the_user_chose_stay(tmp_path: Path, empty_database: Path, place: str) -> None:
    outside = tmp_path / "outside"
    (outside / "mlruns").mkdir(parents=True)
    (outside / "other").touch()
    place = place.format(outside=outside)
    base, moved = make(tmp_path / "base", empty_database, place=place), tmp_path / "moved"
    before = places(base)
    mend_places(base / "mlflow.db", base)
    assert places(base) == before
    base.rename(moved)
    mend_places(moved / "mlflow.db", moved)
    before["experiments"][0] = f"{moved}/mlruns/0"
    assert places(moved) == before


def test_a_place_of_ones_own_in_the_project_moves_with_it(tmp_path: Path, empty_database: Path) -> None:
    base, moved = make(tmp_path / "base", empty_database, place=f"{tmp_path}/base/store"), tmp_path / "moved"
    base.rename(moved)
    mend_places(moved / "mlflow.db", moved)
    assert places(moved)["runs"] == [f"{moved}/store/{RUN}/artifacts"]


def test_a_database_outside_of_the_project_is_shared(tmp_path: Path, empty_database: Path) -> None:
    base, other = make(tmp_path / "base", empty_database), tmp_path / "other"
    (base / "mlflow.db").rename(tmp_path / "mlflow.db")
    other.mkdir()
    shutil.rmtree(base)
    assert not mend_places(tmp_path / "mlflow.db", other)
    assert places(tmp_path) == expected(base)


def test_a_database_taken_elsewhere_without_its_project_reads_the_files_where_they_are(
    tmp_path: Path, empty_database: Path
) -> None:
    base, other = make(tmp_path / "base", empty_database), tmp_path / "other"
    other.mkdir()
    (base / "mlflow.db").rename(other / "mlflow.db")
    assert not mend_places(other / "mlflow.db", other)
    assert places(other) == expected(base)


def test_a_folder_name_that_was_misread(tmp_path: Path, empty_database: Path, caplog: pytest.LogCaptureFixture) -> None:
    project, misread = make(tmp_path / "50%20off", empty_database, files=False), tmp_path / "50 off"
    (misread / "mlruns" / "1" / RUN / "artifacts").mkdir(parents=True)
    assert mend_places(project / "mlflow.db", project)
    wanted = expected(project)
    wanted["runs"] = [f"{project}/mlruns/1/{RUN}/artifacts"]  # as MLflow reads it, its files are there
    assert places(project) == wanted
    assert f"the name of the folder {project} was misread" in caplog.text
    caplog.clear()
    assert not mend_places(project / "mlflow.db", project) and not caplog.text


def test_a_database_that_cannot_be_written_is_named(
    tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    base, moved = make(tmp_path / "base", empty_database), tmp_path / "moved"
    base.rename(moved)
    monkeypatch.setattr("rl4rec.ops.tracking.database._LOCK_SECONDS", 0.1)
    with closing(sqlite3.connect(moved / "mlflow.db")) as other:
        other.execute("BEGIN IMMEDIATE")
        assert not mend_places(moved / "mlflow.db", moved)
        other.rollback()
    assert "mlflow.db: whether its artifacts lie in this project cannot be checked: database is locked" in caplog.text
    assert places(moved) == expected(base)


def test_connecting_mends_and_a_run_is_found_again(
    tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    base, moved = make(tmp_path / "base", empty_database), tmp_path / "moved"
    base.rename(moved)
    monkeypatch.chdir(moved)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{moved}/mlflow.db")
    with caplog.at_level(logging.WARNING):
        client, experiment = connect(TrackingParams())
    assert "this project was moved" in caplog.text
    assert experiment == "1"
    assert [file.path for file in client.list_artifacts(RUN)] == ["report.md"]
    run = MlflowClient().create_run(experiment)
    client.log_text(run.info.run_id, "new", "new.txt")
    assert (moved / "mlruns" / "1" / run.info.run_id / "artifacts" / "new.txt").read_text() == "new"
    assert not base.exists()
    mlflow.set_tracking_uri(None)
