"""Promotion and serving in a project that was moved or copied, and with a champion whose files are gone."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import polars as pl
import pytest
from mlflow import MlflowClient

from rl4rec.cli import main as command
from rl4rec.errors import UserError
from rl4rec.ops.promote import promote, roll_back
from tests.ops.conftest import NAME, PARAMS, put

ROOT = Path(__file__).parents[2]
MODEL = f"models:/{NAME}@champion"


def go(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder, as a new process there would."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")


@pytest.fixture
def base(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project in a folder of its own, with a champion."""
    folder = tmp_path / "base"
    folder.mkdir()
    for path in tmp_path.iterdir():
        if path != folder:
            path.rename(folder / path.name)
    go(folder, monkeypatch)
    promote(Path(), PARAMS)
    return folder


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.stat().st_size if path.is_file() else 0)
        for path in folder.rglob("*")
    }


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str, name: str = "rl4rec"
) -> tuple[int, str]:
    monkeypatch.setattr("sys.argv", [name, *arguments])
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        command()
    captured = capsys.readouterr()
    return int(exit_.value.code or 0), captured.out + captured.err


def recommended(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    pl.DataFrame({"history": [["i3", "i4"]]}).write_parquet("users.parquet")
    files = ("--users", "users.parquet", "--out", "lists.parquet", "--k", "2")
    return run(monkeypatch, capsys, "recommend", *files, "--model", MODEL)


def version(number: str) -> Path:
    """Where the files of a version lie."""
    return Path(MlflowClient().get_model_version_download_uri(NAME, number))


def test_after_a_move_all_goes_to_the_new_folder(
    base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    moved = base.with_name("moved here")
    base.rename(moved)
    go(moved, monkeypatch)
    status, said = recommended(monkeypatch, capsys)  # reads only, and mends all the same
    assert status == 0 and said.startswith("lists.parquet: 1 lists")
    assert caplog.text.count("this project was moved or copied from") == 1
    assert "is the champion already" in promote(Path(), PARAMS).reason
    put(moved, "grpo", 150)
    assert promote(Path(), PARAMS).promoted
    assert version("2").is_relative_to(moved) and (version("2") / "MLmodel").is_file()
    assert roll_back(PARAMS) == ("2", "1")
    assert recommended(monkeypatch, capsys)[0] == 0
    assert not base.exists()


def test_a_copy_leaves_its_original_as_it_is(
    base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = base.with_name("copy")
    shutil.copytree(base, copy)
    before = listing(base)
    go(copy, monkeypatch)
    put(copy, "grpo", 150)
    assert promote(Path(), PARAMS).promoted
    assert recommended(monkeypatch, capsys)[0] == 0
    assert {version(number).is_relative_to(copy) for number in ("1", "2")} == {True}
    assert listing(base) == before
    go(base, monkeypatch)
    assert "is the champion already (version 1)" in promote(Path(), PARAMS).reason


@pytest.mark.slow
@pytest.mark.parametrize("name", ["50%20off", "a#b ?é"])
def test_a_folder_whose_name_means_something_in_an_address(base: Path, name: str) -> None:
    """The commands as they are called, with the address of the settings."""
    folder = base.with_name(name)
    base.rename(folder)
    (folder / "mlflow.db").unlink()
    shutil.rmtree(folder / "mlruns")
    before = {path.name for path in folder.parent.iterdir()}
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    pl.DataFrame({"history": [["i3", "i4"]]}).write_parquet(folder / "users.parquet")
    files = ("--users", f"{name}/users.parquet", "--out", f"{name}/lists.parquet", "--k", "2")
    for arguments in (("promote", "--root", name), ("recommend", "--root", name, *files, "--model", MODEL)):
        code = [sys.executable, "-c", "from rl4rec.cli import main; main()", *arguments]
        done = subprocess.run(
            code, cwd=folder.parent, env=environment, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, done.stderr
        assert "moved or copied" not in done.stderr
    assert list(folder.glob("mlruns/1/models/*/artifacts/MLmodel"))
    assert {path.name for path in folder.parent.iterdir()} == before  # nothing in `50 off`


@pytest.mark.parametrize("damage", ["all", "model", "weights", "other weights"])
def test_a_champion_whose_files_are_gone_is_registered_again(
    base: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    damage: str,
) -> None:
    place = version("1")
    (weights,) = place.rglob("*.safetensors")
    match damage:
        case "all":
            shutil.rmtree("mlruns")
        case "model":
            shutil.rmtree(place)
        case "weights":
            weights.unlink()
        case "other weights":
            shutil.copy(base / "trained" / "150" / weights.name, weights)
    if damage != "other weights":
        status, said = recommended(monkeypatch, capsys)
        assert status == 2 and f"{MODEL}: is known to MLflow, but its files cannot be read" in said
        assert str(place) in said and "rl4rec promote" in said and "rl4rec rollback" in said
    decision = promote(Path(), PARAMS)
    assert (decision.promoted, decision.reason) == (True, "grpo is the champion, but the files of version 1 are lost")
    assert f"the champion cannot be served: models:/{NAME}/1: " in caplog.text
    assert recommended(monkeypatch, capsys)[0] == 0
    assert "is the champion already (version 2)" in promote(Path(), PARAMS).reason
    with pytest.raises(UserError, match="version 2 is the first champion"):  # nobody goes back to what is lost
        roll_back(PARAMS)


def test_a_lost_champion_beside_another_candidate_is_said(base: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(base, "grpo", 150)
    promote(Path(), PARAMS)
    shutil.rmtree(version("1"))
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert roll_back(PARAMS) == ("2", "1")
    assert f"the champion cannot be served: models:/{NAME}/1: is known to MLflow, but its files" in caplog.text
    caplog.clear()
    assert promote(Path(), PARAMS).promoted  # measured by the evaluation that its run has
    assert f"the champion cannot be served: models:/{NAME}/1: " in caplog.text
