"""A tag is a release only if version, citation and changelog say so; the wheel has the package and nothing else."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

import rl4rec

ROOT = Path(__file__).parents[2]
GOOD = "# C\n\n## [Unreleased]\n\n## [1.2.0] - 2026-03-01\n\n### Added\n\n- A.\n\n## [1.1.0] - 2026-01-05\n\n- B.\n"


def release() -> Any:
    loader = importlib.machinery.SourceFileLoader("release", str(ROOT / ".ci" / "release"))
    spec = importlib.util.spec_from_loader("release", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "rl4rec").mkdir()
    (tmp_path / "rl4rec/__init__.py").write_text('"""P."""\n\n__version__ = "1.2.0"\n')
    (tmp_path / "CITATION.cff").write_text("cff-version: 1.2.0\nversion: 1.2.0\n")
    (tmp_path / "CHANGELOG.md").write_text(GOOD)
    return tmp_path


def test_notes_of_a_good_release(checkout: Path) -> None:
    assert release().check("v1.2.0", checkout) == ("### Added\n\n- A.", [])


@pytest.mark.parametrize(
    ("tag", "name", "old", "new", "says"),
    [
        ("1.2.0", "CHANGELOG.md", "", "", "tag: expected vX.Y.Z"),
        ("v1.2", "CHANGELOG.md", "", "", "tag: expected vX.Y.Z"),
        ("v1.2.1", "CHANGELOG.md", "", "", "rl4rec/__init__.py: the version is 1.2.0, the tag says 1.2.1"),
        ("v1.2.0", "rl4rec/__init__.py", "1.2.0", "1.3.0", "rl4rec/__init__.py: the version is 1.3.0"),
        ("v1.2.0", "CITATION.cff", "\nversion: 1.2.0", "\nversion: 1.1.0", "CITATION.cff: the version is 1.1.0"),
        ("v1.2.0", "CHANGELOG.md", " - 2026-03-01", "", "[1.2.0] has no date"),
        ("v1.2.0", "CHANGELOG.md", "2026-03-01", "2026-02-30", "[1.2.0] has no date"),
        ("v1.2.0", "CHANGELOG.md", "### Added\n\n- A.\n", "", "[1.2.0] is empty"),
        ("v1.2.0", "CHANGELOG.md", "[Unreleased]\n", "[Unreleased]\n\n- C.\n", "left under [Unreleased]"),
        ("v1.2.0", "CHANGELOG.md", "[1.2.0]", "[1.1.9]", "the newest section is [1.1.9]"),
    ],
)
def test_what_is_no_release(checkout: Path, tag: str, name: str, old: str, new: str, says: str) -> None:
    text = (checkout / name).read_text()
    assert old in text
    (checkout / name).write_text(text.replace(old, new) if old else text)
    _, problems = release().check(tag, checkout)
    assert any(says in problem for problem in problems), problems


def test_the_citation_is_complete_and_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["cff-version"], citation["type"], citation["version"]) == ("1.2.0", "software", rl4rec.__version__)
    assert citation["message"] and citation["title"] and citation["abstract"]
    assert citation["authors"] == [{"name": "The rl4rec authors"}]
    for reference in citation["references"]:
        assert reference["authors"] and reference["title"] and 1900 < reference["year"] < 2027, reference


def test_every_file_says_the_same_licence() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (project["license"], project["license-files"]) == ("Apache-2.0", ["LICENSE"])
    lines = [line.strip() for line in (ROOT / "LICENSE").read_text(encoding="utf-8").splitlines() if line.strip()]
    assert lines[:2] == ["Apache License", "Version 2.0, January 2004"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["license"] == "Apache-2.0"
    assert "Apache License 2.0" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_wheel_is_the_package_and_imports(tmp_path: Path) -> None:
    source, wheels, target = tmp_path / "source", tmp_path / "wheels", tmp_path / "target"
    shutil.copytree(ROOT / "rl4rec", source / "rl4rec", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pipelines", "tests"):  # what a wheel must not have
        (source / name).mkdir()
        (source / name / "__init__.py").touch()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    offline = ["--no-deps", "--no-index"]
    build = [*pip, "wheel", *offline, "--no-build-isolation", "--wheel-dir", str(wheels), str(source)]
    subprocess.run(build, check=True, capture_output=True, text=True)
    (wheel,) = wheels.iterdir()
    assert wheel.name == f"rl4rec-{rl4rec.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    package = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "rl4rec").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    info = f"rl4rec-{rl4rec.__version__}.dist-info/"
    assert {name for name in names if not name.startswith(info)} == package
    assert {"rl4rec/py.typed", "rl4rec/report/templates/report.html.j2", f"{info}licenses/LICENSE"} <= names
    subprocess.run([*pip, "install", *offline, "--target", str(target), str(wheel)], check=True, capture_output=True)
    code = f"import sys; sys.path.insert(0, {str(target)!r}); import rl4rec; print(rl4rec.__file__)"
    done = subprocess.run([sys.executable, "-I", "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == str(target / "rl4rec" / "__init__.py")
