"""What an experiment of DVC in a folder of its own takes from where it was started."""

from __future__ import annotations

from pathlib import Path

import pytest

from rl4rec._experiment import seen_from_here
from rl4rec.params import Params


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The folder where an experiment was started, with a shop and a database, and that where it runs."""
    root, here = tmp_path / "root", tmp_path / "root/.dvc/tmp/exps/1"
    (root / "shop").mkdir(parents=True)
    (root / "shop/clicks.csv").touch()
    (root / "mlflow.db").touch()
    here.mkdir(parents=True)
    monkeypatch.setenv("DVC_ROOT", str(root))
    monkeypatch.setenv("DVC_EXP_NAME", "tidy-otter")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return root, here


def own(path: str = "shop/clicks.csv", **tracking: object) -> Params:
    return Params.model_validate({"data": {"source": "interactions", "path": path}, "tracking": tracking})


def test_data_that_git_ignores_are_those_of_where_it_was_started(folders: tuple[Path, Path]) -> None:
    root, here = folders
    assert seen_from_here(own(), here).data.path == str(root / "shop/clicks.csv")


def test_data_that_came_along_are_taken_and_those_that_are_nowhere_keep_their_name(folders: tuple[Path, Path]) -> None:
    _, here = folders
    (here / "shop").mkdir()
    (here / "shop/clicks.csv").touch()
    assert seen_from_here(own(), here).data.path == "shop/clicks.csv"
    assert seen_from_here(own("shop/klicks.csv"), here).data.path == "shop/klicks.csv"  # for the message


def test_runs_go_to_the_database_of_where_it_was_started(
    folders: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    root, here = folders
    assert seen_from_here(own(), here).tracking.uri == f"sqlite:///{root}/mlflow.db"
    assert seen_from_here(own(uri="http://127.0.0.1:5000"), here).tracking.uri == "http://127.0.0.1:5000"
    assert not caplog.records
    assert seen_from_here(own(uri="sqlite:///other.db"), here).tracking.uri == "sqlite:///other.db"
    assert f"{root}/other.db is not there yet" in caplog.text


@pytest.mark.parametrize("variable", ["DVC_ROOT", "DVC_EXP_NAME"])
def test_nothing_changes_outside_of_such_a_folder(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    root, here = folders
    assert seen_from_here(own(), root) == own()
    monkeypatch.delenv(variable)
    assert seen_from_here(own(), here) == own()
