"""Experiments of DVC where its cache is empty, and in folders of their own: nothing else may be needed than git has."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import pytest
import yaml

from tests.graph import ROOT, TINY, make_project, run, stages_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

CLICKS = "user,item,timestamp\n" + "".join(
    f"u{user},i{(user + time) % 9},{time}\n" for user in range(12) for time in range(6)
)


def test_a_stage_of_a_fresh_clone_is_kept(tmp_path: Path) -> None:
    """dvc.lock names outputs that are neither here nor in the cache, the report with its plots among them."""
    project = make_project(tmp_path / "project", TINY)
    (project / "dvc.lock").write_bytes((ROOT / "dvc.lock").read_bytes())
    run(project, "git", "add", "dvc.lock")
    run(project, "git", "commit", "--quiet", "-m", "results of somebody else")
    output = run(project, "dvc", "exp", "run", "--name", "first", "prepare")
    assert stages_run(output) == {"prepare"}
    assert "first" in run(project, "dvc", "exp", "list")
    output = run(project, "dvc", "exp", "run", "--name", "second", "-S", "sft.num_epochs=1", "sft")
    assert stages_run(output) == {"champion", "sft"}
    assert "second" in run(project, "dvc", "exp", "list")


@pytest.fixture(scope="module")
def own_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project on data that git ignores, with a database of MLflow."""
    project = make_project(tmp_path_factory.mktemp("own") / "project", {"data": {"source": "simulated"}})
    (project / "shop").mkdir()
    (project / "shop/clicks.csv").write_text(CLICKS)
    with (project / ".gitignore").open("a") as file:
        file.write("/shop/\n")
    settings = yaml.safe_load((project / "params.yaml").read_text())
    settings["data"] |= {"source": "interactions", "path": "shop/clicks.csv", "k_core": 2}
    (project / "params.yaml").write_text(yaml.safe_dump(settings))
    run(project, "git", "commit", "--quiet", "--all", "-m", "my shop")
    run(project, "dvc", "repro", "prepare")
    run(project, "git", "add", ".")
    run(project, "git", "commit", "--quiet", "--all", "-m", "prepared")
    return project


def test_a_temporary_experiment_finds_data_that_git_ignores(own_data: Path) -> None:
    output = run(own_data, "dvc", "exp", "run", "--temp", "--name", "aside", "-S", "data.k_core=1", "prepare")
    assert stages_run(output) == {"prepare"}
    assert "aside" in run(own_data, "dvc", "exp", "list")
    assert "aside" in names_of_runs(own_data)


def test_queued_experiments_find_data_that_git_ignores(own_data: Path) -> None:
    run(own_data, "dvc", "exp", "run", "--queue", "-S", "data.k_core=3,4", "prepare")
    run(own_data, "dvc", "queue", "start")
    until = time.monotonic() + 300
    while (status := run(own_data, "dvc", "queue", "status")) and ("Queued" in status or "Running" in status):
        assert time.monotonic() < until, status
        time.sleep(2)
    assert status.count("Success") == 2 and "Failed" not in status


def names_of_runs(project: Path) -> set[str]:
    with sqlite3.connect(project / "mlflow.db") as database:
        found = database.execute("select name, artifact_uri from runs").fetchall()
    assert all(f"{project}/mlruns" in place for _, place in found)
    return {name for name, _ in found}
