"""Drift against numbers worked by hand; alarms neither by chance nor by few lists."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from rl4rec.data.dataset import PreparedData, Ragged
from rl4rec.errors import UserError
from rl4rec.ops.drift import Drift, measure_drift, popularity_shift, read_served
from rl4rec.params import MonitorParams

PARAMS = MonitorParams()
EVALUATED = {
    "protocol": {"evaluated_users": 2},
    "metrics": {"test/full/popularity_percentile@2": 0.5, "test/full/coverage@2": 0.8},
}


def shop(counts: list[int]) -> PreparedData:
    users = sum(counts)
    return PreparedData(
        folder=Path("nowhere"),
        users=[f"u{user}" for user in range(users)],
        item_ids=[f"i{item}" for item in range(len(counts))],
        item_counts=np.array(counts),
        sequences=Ragged.from_rows([[item] for item, count in enumerate(counts) for _ in range(count)]),
        stats={},
    )


def values(drift: Drift) -> dict[str, float]:
    return {signal.name: signal.value for signal in drift.signals}


def test_incoming_interactions_by_hand() -> None:
    incoming = pl.DataFrame({"user": ["u0", "u0", "v", "w"], "item": ["i0", "new", "i1", "i0"]})
    found = values(measure_drift(shop([15, 5]), PARAMS, incoming=incoming))
    assert found["new_interactions"] == pytest.approx(4 / 20)
    assert found["unseen_items"] == pytest.approx(1 / 4)
    assert found["new_users"] == pytest.approx(2 / 3)


def test_stability_index_by_hand() -> None:
    # Two items with half of the interactions each lie in two groups; the eight empty ones count alike then and now.
    shift, _ = popularity_shift(np.array([50, 50]), np.array([90, 10]), seed=0)
    p = np.array([50.5, 50.5, *[0.5] * 8]) / 105
    q = np.array([90.5, 10.5, *[0.5] * 8]) / 105
    assert shift == pytest.approx(float(((q - p) * np.log(q / p)).sum()))


def test_no_alarm_by_chance_but_by_a_real_shift() -> None:
    rng = np.random.default_rng(0)
    training = rng.zipf(1.3, 2000).clip(max=500)
    alarms = 0
    for trial in range(40):
        since = rng.multinomial(60, training / training.sum())
        shift, by_chance = popularity_shift(training, since, seed=trial)
        assert by_chance > PARAMS.popularity_shift  # sixty interactions say little
        alarms += shift > by_chance
    assert alarms <= 4  # 2.5 % of 40 is 1
    uniform = rng.multinomial(60, np.full(2000, 1 / 2000))
    shift, by_chance = popularity_shift(training, uniform, seed=0)
    assert shift > by_chance


def test_popularity_percentiles_by_hand() -> None:
    data = shop([4, 1, 1, 2])  # percentiles 3.5/4, 1/4, 1/4, 2.5/4
    assert data.popularity_percentiles().tolist() == pytest.approx([3.5 / 4, 1 / 4, 1 / 4, 2.5 / 4])


def test_served_lists_by_hand() -> None:
    data = shop([4, 1, 1, 2])
    served = pl.DataFrame({"items": [["i0", "i3", "i1"], ["i0", "gone"], []]})  # the first two of each count
    found = measure_drift(data, PARAMS, served=served, evaluated=EVALUATED, k=2)
    assert values(found) == {
        "unknown_served": pytest.approx(1 / 4),
        "empty_lists": pytest.approx(1 / 3),
        "shown_popularity": pytest.approx((3.5 + 2.5 + 3.5) / 12 - 0.5),
        "coverage_drop": pytest.approx(1 - 0.5 / 0.8),
    }
    assert found.due


def test_few_lists_say_nothing_about_coverage() -> None:
    served = pl.DataFrame({"items": [["i1", "i3"]]})
    found = measure_drift(shop([4, 1, 1, 2]), PARAMS, served=served, evaluated=EVALUATED, k=2)
    assert "coverage_drop" not in values(found)
    assert values(found)["shown_popularity"] == pytest.approx(0.5 - (1 + 2.5) / 8)


def test_due_when_one_limit_is_passed() -> None:
    data = shop([50, 50])
    same = pl.DataFrame({"user": ["u0", "u1"], "item": ["i0", "i1"]})
    quiet = measure_drift(data, PARAMS, incoming=same)
    assert not quiet.due and not any(signal.due for signal in quiet.signals)
    strict = PARAMS.model_copy(update={"new_interactions": 0.01})
    loud = measure_drift(data, strict, incoming=same)
    assert loud.due and [signal.name for signal in loud.signals if signal.due] == ["new_interactions"]
    assert "new_interactions: 0.0200, limit 0.0100 (passed)" in str(loud.signals[0])
    assert loud.as_dict()["signals"][0]["due"] is True


def test_lists_that_are_no_lists(tmp_path: Path) -> None:
    pl.DataFrame({"items": ["i1"]}).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(UserError, match="expected a column 'items' with lists"):
        read_served(tmp_path / "a.parquet")
    with pytest.raises(UserError, match="no such file"):
        read_served(tmp_path / "b.parquet")


def test_the_command_decides_by_its_exit_status(save_prepared: PreparedData, tmp_path: Path) -> None:
    settings = {"data": {"source": "interactions", "path": "store"}, "monitor": {"new_users": 1.0}}
    (tmp_path / "params.yaml").write_text(json.dumps(settings))
    save_prepared.folder.rename(tmp_path / "moved")
    (tmp_path / "data").mkdir()
    (tmp_path / "moved").rename(tmp_path / "data" / "prepared")

    def run(*lines: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "new.csv").write_text("\n".join(["user,item,timestamp", *lines]) + "\n")
        command = [sys.executable, "-c", "from rl4rec.cli import main; main()", "monitor", "--root", str(tmp_path)]
        command += ["--incoming", str(tmp_path / "new.csv")] if lines else []
        return subprocess.run(command, capture_output=True, text=True, check=False)

    quiet = run("u0,i1,1", "u1,i2,2")
    assert (quiet.returncode, quiet.stdout.splitlines()[-1]) == (3, "retraining is not due"), quiet.stderr
    loud = run("u0,i1,1", "u1,unheard,2")
    assert (loud.returncode, loud.stdout.splitlines()[-1]) == (0, "retraining is due")
    assert json.loads((tmp_path / "reports/drift.json").read_text())["due"] is True
    assert run().returncode == 2
