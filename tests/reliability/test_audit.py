"""`make audit` says whether something was checked, whatever pip-audit makes of a service that knows nothing."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import io
import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
WHOLE = [{"name": f"p{n}", "version": "1", "vulns": []} for n in range(9)]
BAD = {"name": "torch", "version": "1", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2"]}]}
UNKNOWN = {"name": "x", "skip_reason": "not found"}


def audit() -> Any:
    loader = importlib.machinery.SourceFileLoader("audit", str(ROOT / ".ci" / "audit"))
    spec = importlib.util.spec_from_loader("audit", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("service", "found", "status", "says"),
    [
        ({"vulnerabilities": [1]}, WHOLE, 0, "9 packages checked, 0 known vulnerabilities"),
        ({"vulnerabilities": [1]}, [*WHOLE, BAD], 1, "torch 1: PYSEC-1, fixed in: 2"),
        ({"vulnerabilities": [1]}, [*WHOLE, *[UNKNOWN] * 9], 2, "NOT CHECKED: too many packages"),
        ({"vulnerabilities": [1]}, None, 2, "NOT CHECKED: pip-audit failed"),
        ({}, WHOLE, 2, "has no advisories (a mirror?)"),
        (None, WHOLE, 2, "NOT CHECKED: the advisory service at pypi.org cannot be reached"),
    ],
)
def test_what_an_audit_says(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    service: dict[str, object] | None,
    found: list[object] | None,
    status: int,
    says: str,
) -> None:
    def answer(*_: object, **__: object) -> io.BytesIO:
        if service is None:
            raise urllib.error.URLError("no route")
        return io.BytesIO(json.dumps(service).encode())

    monkeypatch.setattr(urllib.request, "urlopen", answer)
    tool = tmp_path / "pip-audit"
    (tmp_path / "answer").write_text("" if found is None else json.dumps({"dependencies": found}))
    tool.write_text(f"#!/bin/sh\ncat {tmp_path}/answer\n")
    tool.chmod(0o755)
    assert audit().main(str(tool), "site-packages") == status
    assert says in capsys.readouterr().out
