"""The refit: the validation targets join the feedback of every stage that trains, and nothing selects by them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from rl4rec.data.dataset import load_prepared
from rl4rec.ops.workspace import merge_settings
from tests.graph import ROOT, TINY, make_project, run

pytestmark = pytest.mark.slow

POLICIES = ("sft", "sft_continued", "ppo", "grpo")


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "logs" / f"{name}.jsonl").read_text().splitlines()]


@pytest.mark.timeout(1200)
def test_all_stages_train_on_the_latest_feedback(tmp_path: Path) -> None:
    refit = yaml.safe_load((ROOT / "refit.yaml").read_text())
    folder = make_project(tmp_path / "project", merge_settings(TINY, refit))
    run(folder, "dvc", "repro")
    data = load_prepared(folder / "data/prepared")
    # SFT reads one sequence a user: the training part and the validation target.
    assert sum(data.train_sequences(latest=True).lengths) == sum(data.sequences.lengths) - len(data.users)
    for policy in POLICIES:
        log = rows(folder, policy)
        assert not [row for row in log if any(key.startswith("valid/") for key in row)], policy
        assert log[-1]["summary"] and "best_step" not in log[-1]
    # The tables are chosen on the targets before: they are fitted without the ones that RL asks for.
    assert {row["table"] for row in rows(folder, "crossfit")} == {0, 1}
    (folder / "root").mkdir()
    arguments = ["collect-refit", str(folder), "--root", str(folder / "root")]
    run(folder, sys.executable, "-c", "from rl4rec.cli import main; main()", *arguments)
    for policy in POLICIES:
        found = json.loads((folder / "root/metrics/refit" / f"{policy}.json").read_text())
        assert found["protocol"]["feedback"] == "latest"
        assert found["metrics"] == json.loads((folder / "metrics" / f"{policy}.json").read_text())["metrics"]
