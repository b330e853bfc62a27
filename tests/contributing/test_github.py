"""Issue forms as GitHub takes them, workflows with least rights, and what no commit should hold."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FORMS = sorted(path for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
KINDS = {"markdown", "input", "textarea", "dropdown", "checkboxes"}


def read(path: Path) -> dict[Any, Any]:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_an_issue_form_is_one_that_github_takes(path: Path) -> None:
    form = read(path)
    assert form.keys() == {"name", "description", "labels", "body"}
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert {field["type"] for field in form["body"]} <= KINDS
    assert len({field["id"] for field in fields}) == len(fields)
    assert any(field.get("validations", {}).get("required") is True for field in fields)
    for field in form["body"]:
        assert ("value" if field["type"] == "markdown" else "label") in field["attributes"]
        assert all("label" in option for option in field["attributes"].get("options", []))


def test_forms_for_bugs_wishes_and_results_and_a_blank_issue() -> None:
    assert [path.stem for path in FORMS] == ["bug", "feature", "result"]
    assert read(ROOT / ".github/ISSUE_TEMPLATE/config.yml")["blank_issues_enabled"] is True


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_has_rights_limits_and_pinned_actions(path: Path) -> None:
    workflow = read(path)
    assert workflow["permissions"].keys() == {"contents"}
    for name, job in workflow["jobs"].items():
        assert job["timeout-minutes"] > 0, name
        for step in job["steps"]:
            assert "uses" not in step or re.search(r"@(v\d+|release/v1)$", step["uses"]), step


def test_only_the_jobs_of_a_release_that_need_a_right_have_it() -> None:
    jobs = read(ROOT / ".github/workflows/release.yml")["jobs"]
    assert {name: job.get("permissions") for name, job in jobs.items()} == {
        "build": None,
        "attest": {"id-token": "write", "attestations": "write"},
        "pypi": {"id-token": "write"},
        "github": {"contents": "write"},
    }
    assert {name: job.get("needs") for name, job in jobs.items()} == {
        "build": None,
        "attest": "build",
        "pypi": "attest",
        "github": "pypi",
    }
    commands = [step.get("run", "") for step in jobs["build"]["steps"]]
    order = [
        next(n for n, line in enumerate(commands) if part in line) for part in (".ci/release", "check test", "dist")
    ]
    assert order == sorted(order)


def check_files() -> Any:
    spec = importlib.util.spec_from_file_location("check_files", ROOT / ".ci/check_files.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.py", "x = 1\n" + "<" * 7 + " HEAD\n", "a.py, line 2: a conflict marker"),
        ("a.json", '{"a": 1', "a.json: not readable"),
        ("dvc.lock", "stages: [\n", "dvc.lock: not readable"),
        ("a.bin", "x" * 1_000_001, "a.bin: 1,000,001 bytes"),
    ],
)
def test_what_no_commit_should_hold(tmp_path: Path, name: str, content: str, says: str) -> None:
    (tmp_path / name).write_text(content)
    (problem,) = check_files().problems_of(tmp_path / name)
    assert says in problem


def test_what_a_commit_may_hold(tmp_path: Path) -> None:
    for name, content in (
        ("a.yml", "a: 1\n"),
        ("a.json", "[1]"),
        ("a.md", "Title\n=======\n"),
        ("a.bin", "x" * 1_000_000),
    ):
        (tmp_path / name).write_text(content)
        assert check_files().problems_of(tmp_path / name) == []
