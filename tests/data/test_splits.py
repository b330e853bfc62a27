"""The split by time: windows, targets and counts worked by hand; the same through prepare with every kind of time."""

import datetime as dt
import logging
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from rl4rec.data.dataset import PreparedData, load_prepared
from rl4rec.data.prepare import prepare
from rl4rec.data.splits import LastItem, TimeSplit
from rl4rec.errors import UserError
from rl4rec.params import DataParams, SimulatedShop
from rl4rec.params import TimeSplit as Setting

# Days on which each user takes a, b, c ... in turn; validation from day 10, test from day 20.
DAYS = {
    "all": [1, 2, 11, 12, 21, 22],  # a b | c d | e f
    "early": [1, 2, 3],  # only trains
    "skips": [5, 25],  # a | - | b: no validation target, b on test
    "late": [12, 22],  # nothing trains; a is before the test window, so b is a test target
    "newest": [23, 24],  # only exists later: no history before its first item
}
WINDOWS = {"split": "time", "time_split": {"valid_from": 10, "test_from": 20}}


def rows_of(ragged) -> list[list[int]]:
    return [ragged[row].tolist() for row in range(len(ragged))]


def prepared(
    folder: Path, days: dict[str, list[int]] = DAYS, *, when=lambda day: day, **settings: object
) -> PreparedData:
    rows = [(user, "abcdefghij"[n], when(day)) for user, each in days.items() for n, day in enumerate(each)]
    folder.mkdir(exist_ok=True)
    pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row").write_csv(folder / "rows.csv")
    params = DataParams(source="interactions", path=str(folder / "rows.csv"), k_core=1, **(WINDOWS | settings))
    return prepare(params, folder / "out")


def by_user(data: PreparedData, values: list) -> dict[str, object]:
    return dict(zip(data.users, values, strict=True))


def test_windows_worked_by_hand(tmp_path: Path) -> None:
    data = prepared(tmp_path)
    assert load_prepared(tmp_path / "out").windows.valid.tolist() == data.windows.valid.tolist()
    train = by_user(data, rows_of(data.train_sequences()))
    assert train == {"all": [0, 1], "early": [0, 1, 2], "skips": [0], "late": [], "newest": []}
    latest = by_user(data, rows_of(data.train_sequences(latest=True)))
    assert latest == {"all": [0, 1, 2, 3], "early": [0, 1, 2], "skips": [0], "late": [0], "newest": []}
    found = {}
    for fold in ("valid", "test"):
        split = data.split(fold)
        pairs = zip(split.user_rows, rows_of(split.history), split.targets, strict=True)
        found[fold] = {data.users[user]: (history, int(target)) for user, history, target in pairs}
    assert found == {
        "valid": {"all": ([0, 1], 2)},
        "test": {"all": ([0, 1, 2, 3], 4), "skips": ([0], 1), "late": ([0], 1)},
    }
    assert data.item_counts.tolist() == [3, 2, 1, 0, 0, 0]


def test_what_only_exists_later_is_counted_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        stats = prepared(tmp_path).stats
    assert stats["without_training"] == {"users": 2, "items": 3}
    assert stats["held_out"]["test"] == {"users": 3, "repeated_targets": 0, "cold_targets": 1, "tied_targets": 0}
    assert stats["split"]["kind"] == "time" and "what comes before 10 trains" in stats["split"]["rule"]
    assert "40.0 % of 5 users have no test target" in caplog.text
    assert "33.3 % of the test targets are items without a training interaction" in caplog.text
    assert "2 users and 3 items have no training interaction: they only appear later" in caplog.text


def test_leave_one_out_as_ever() -> None:
    cuts = LastItem().cut(np.array([5, 3, 2, 1]))
    assert (cuts.valid.tolist(), cuts.test.tolist()) == ([3, 1, 2, 1], [4, 2, 2, 1])


DAY = dt.date(2024, 1, 1)


@pytest.mark.parametrize(
    "when",
    [
        lambda day: DAY + dt.timedelta(days=day - 1),
        lambda day: f"{DAY + dt.timedelta(days=day - 1)}T00:00:00",
        lambda day: f"{DAY + dt.timedelta(days=day - 1)}T00:00:00Z",
        lambda day: f"{DAY + dt.timedelta(days=day - 1)}T09:00:00+09:00",
        lambda day: 1704067200 + 86_400 * (day - 1),
        lambda day: (1704067200 + 86_400 * (day - 1)) * 1000,
        lambda day: (1704067200 + 86_400 * (day - 1)) * 10**9,
    ],
)
def test_dates_mean_the_same_in_every_kind_of_time(tmp_path: Path, when) -> None:
    dates = {"valid_from": "2024-01-10", "test_from": "2024-01-20"}
    by_hand = prepared(tmp_path / "a")
    assert prepared(tmp_path / "b", when=when, time_split=dates).data_hash == by_hand.data_hash
    assert prepared(tmp_path / "c", when=when, split="last_item").data_hash != by_hand.data_hash


def test_a_share_is_of_the_interactions_before_the_window(tmp_path: Path) -> None:
    days = {f"u{n}": [n + 1, n + 11, n + 21, n + 31] for n in range(10)}  # one interaction on each of 40 days
    data = prepared(tmp_path, days, time_split={"valid_from": 0.5, "test_from": 0.75})
    assert (data.stats["split"]["valid_from"], data.stats["split"]["test_from"]) == ("21", "31")
    assert len(data.train_sequences().values) == 20 and len(data.train_sequences(latest=True).values) == 30


def test_a_share_never_parts_interactions_of_one_time(tmp_path: Path) -> None:
    days = {f"u{n}": [1, 2, 2, 3] for n in range(5)}
    data = prepared(tmp_path, days, time_split={"valid_from": 0.5, "test_from": 0.9})
    assert set(data.windows.valid.tolist()) == {1} and set(data.windows.test.tolist()) == {3}


def test_the_hash_tells_splits_apart(tmp_path: Path) -> None:
    hashes = {
        prepared(tmp_path / "a").data_hash,
        prepared(tmp_path / "b", split="last_item").data_hash,
        prepared(tmp_path / "c", time_split={"valid_from": 11.5, "test_from": 20}).data_hash,
    }
    assert len(hashes) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"time_split": {"valid_from": 30, "test_from": 40}},
            r"validation window .* Move data\.time_split\.valid_from",
        ),
        ({"time_split": {"valid_from": 20, "test_from": 40}}, r"test window .* Move data\.time_split\.test_from"),
        ({"time_split": {"valid_from": "2024-01-01", "test_from": "2024-02-01"}}, "numbers of about .* no seconds"),
    ],
)
def test_windows_that_cannot_be(tmp_path: Path, settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepared(tmp_path, **settings)
    assert not (tmp_path / "out").exists()


def test_moments_must_fit_the_kind_of_the_times(tmp_path: Path) -> None:
    dates = {"when": lambda day: DAY + dt.timedelta(days=day)}
    with pytest.raises(UserError, match=r"valid_from: the times of these data are of kind 'date', got the number 10"):
        prepared(tmp_path / "a", **dates)
    fine = {"valid_from": "2024-01-10T12:00", "test_from": "2024-01-20T12:00"}
    with pytest.raises(UserError, match="whole days, got '2024-01-10T12:00'"):
        prepared(tmp_path / "b", **dates, time_split=fine)
    times = np.array(["2024-01-10"], dtype="datetime64[us]")
    with pytest.raises(UserError, match="have no zone"):
        TimeSplit("2024-01-10T12:00Z", "2024-01-20T12:00Z").cut(times, np.array([0, 1]), "local")


def test_a_file_with_an_order_only_has_no_time(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="split: time needs times"):
        DataParams(source="sequences", path="x", split="time")
    (tmp_path / "sequential_data.txt").write_text("1 1 2 3\n2 2 3 1\n3 3 1 2\n")
    with pytest.raises(UserError, match="this file only has the order of the items"):
        prepare(DataParams(path=str(tmp_path), split="time", k_core=1), tmp_path / "out")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"valid_from": 0.9, "test_from": 0.8}, "must be less than"),
        ({"valid_from": 0.8, "test_from": "2024-01-01"}, "of one kind, got a share and a date"),
        ({"valid_from": "soon"}, "a date such as 2024-05-01"),
        ({"valid_from": 0}, "of one kind, got a number and a share"),
        ({"valid_from": True}, "boolean"),
    ],
)
def test_settings(setting: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Setting(**setting)  # type: ignore[arg-type]


def test_dates_may_be_dates_of_yaml_and_numbers_may_be_text() -> None:
    assert Setting(valid_from=dt.date(2024, 1, 1), test_from="2024-02-01").valid_from == "2024-01-01"  # type: ignore[arg-type]
    assert Setting(valid_from="8e-1", test_from=0.9).valid_from == 0.8


def test_the_oracle_follows_the_windows(tmp_path: Path) -> None:
    shop = SimulatedShop(users=200, items=60, new_items=0.2)
    params = DataParams(source="simulated", split="time", simulated=shop)
    data = prepare(params, tmp_path / "out")
    for fold in ("valid", "test"):
        split, oracle = data.split(fold), data.oracle(fold)
        rows = np.arange(len(split.targets))
        assert oracle is not None and 10 < len(rows) < 200
        np.testing.assert_allclose(oracle.sum(axis=1), 1, atol=1e-5)
        assert oracle[rows, split.targets].min() > 0
        assert all(oracle[row, split.history[row]].max() == 0 for row in rows)


def test_moments_keep_their_digits(tmp_path: Path) -> None:
    large = {"valid_from": 9007199254740993, "test_from": 9007199254740995}
    assert (Setting(**large).valid_from, Setting(**large).test_from) == (9007199254740993, 9007199254740995)
    data = prepared(tmp_path / "a", {f"u{n}": [9007199254740990 + step for step in range(7)] for n in range(3)},
                    time_split=large)  # fmt: skip
    assert set(data.windows.valid.tolist()) == {3} and set(data.windows.test.tolist()) == {5}
    quarters = {f"u{n}": [1714521600 + step / 4 for step in range(6)] for n in range(3)}
    dates = {"valid_from": "2024-05-01T00:00:00.5", "test_from": "2024-05-01T00:00:01"}
    data = prepared(tmp_path / "b", quarters, time_split=dates)  # type: ignore[arg-type]
    assert set(data.windows.valid.tolist()) == {2} and set(data.windows.test.tolist()) == {4}
    hundred = {f"u{n}": [n, n + 10, n + 20, *range(n + 30, n + 100, 10)] for n in range(10)}  # 0 to 99, once each
    data = prepared(tmp_path / "c", hundred, time_split={"valid_from": 0.28, "test_from": 0.9})
    assert data.stats["split"]["valid_from"] == "28"


@pytest.mark.parametrize(
    "setting",
    [
        {"valid_from": "2024-05-01", "test_from": "2024-04-01"},
        {"valid_from": "2024-05-01T10:00Z", "test_from": "2024-06-01"},
        {"valid_from": float("inf")},
    ],
)
def test_moments_that_cannot_be_are_found_with_the_settings(setting: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=r"1 validation error"):
        Setting(**setting)  # type: ignore[arg-type]


def test_a_date_at_the_edge_of_the_calendar_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="outside of the years 1 to 9999"):
        prepared(
            tmp_path, when=lambda day: f"2024-01-{day:02d}T00:00Z",
            time_split={"valid_from": "2024-01-10T00:00Z", "test_from": "9999-12-31T23:59-05:00"},
        )  # fmt: skip
