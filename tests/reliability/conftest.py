"""A whole small workspace (data, policy, evaluations, logs), made once and copied for each test."""

from __future__ import annotations

import hashlib
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from tests.reliability.workspace import make_workspace

ROOT = Path(__file__).parents[2]


class Outcome(NamedTuple):
    """What a command did."""

    status: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workspace(tmp_path_factory.mktemp("template"))


@pytest.fixture
def workspace(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "workspace"
    shutil.copytree(template, folder)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("RL4REC_DATA_HOME", raising=False)
    monkeypatch.setenv("RL4REC_DEBUG", "")
    return folder


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command of the project in this process: `rl4rec ...`, or a stage by its name."""
    from rl4rec import cli

    def run(*command: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", list(command))
        capfd.readouterr()
        try:
            if command[0] == "rl4rec":
                cli.main()
            else:
                runpy.run_path(str(ROOT / "pipelines" / f"{command[0]}.py"), run_name="__main__")
            status = 0
        except SystemExit as exit_:
            status = int(exit_.code or 0)
        return Outcome(status, *capfd.readouterr())

    return run


def snapshot(folder: Path) -> dict[str, str]:
    """Every file, link and folder below `folder`, with a digest of what it holds."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.name == ".digests.json" or ".rl4rec" in path.parts:
            continue  # digests of unchanged files, for next time; locks
        if path.is_symlink() or not path.is_file():
            found[str(path.relative_to(folder))] = "link" if path.is_symlink() else "no file"
        else:
            found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


@pytest.fixture(autouse=True)
def _seeded() -> None:
    np.random.seed(0)
