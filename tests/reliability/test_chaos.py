"""A handful of what `make chaos` does: stages killed and started again leave the same bits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_stages_end_as_if_nothing_had_happened(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "chaos.py"), "--kills", "1", "--seed", "1"]
    out = tmp_path / "chaos.json"
    done = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    reports = json.loads(out.read_text())["stages"]
    assert [report["stage"] for report in reports] == [
        *("prepare", "sft", "crossfit", "rl ppo", "rl grpo", "sft_continued"),
    ]
    for report in reports:
        assert report["repeated_differs"] == []
        assert len(report["kills"]) == 1 and report["kills"][0]["differs"] == []
