"""The order at equal times: without a pattern by default, the same for any order of the rows, and counted."""

import logging
import random
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from rl4rec.data.dataset import PreparedData
from rl4rec.data.k_core import number_and_sort
from rl4rec.data.prepare import prepare
from rl4rec.params import DataParams, SimulatedShop

USERS, BASKETS, SIZE, ITEMS = 400, 3, 4, 60


def noise() -> list[tuple[str, str, int]]:
    """Three baskets of four random items for each user, one time per basket, no structure at all."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(USERS):
        items = rng.choice(ITEMS, BASKETS * SIZE, replace=False)
        rows += [(f"u{user:03}", f"i{item:03}", place // SIZE) for place, item in enumerate(items)]
    return rows


def prepared(folder: Path, rows: list[tuple[str, str, int]], **settings: object) -> PreparedData:
    folder.mkdir(exist_ok=True)
    pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row").write_csv(folder / "rows.csv")
    params = DataParams(source="interactions", path=str(folder / "rows.csv"), **settings)  # type: ignore[arg-type]
    return prepare(params, folder / "out")


def share_of_larger_ids(data: PreparedData) -> float:
    """How often the test target has a larger id than the item before it: .5 where order tells nothing."""
    split = data.split("test")
    before = np.array([split.history[row][-1] for row in range(len(split.targets))])
    return float((split.targets > before).mean())


def test_only_the_order_by_item_tells_something_about_the_target(tmp_path: Path) -> None:
    rows = noise()
    assert share_of_larger_ids(prepared(tmp_path / "a", rows, ties="item")) == 1.0
    for ties in ("auto", "row"):
        assert abs(share_of_larger_ids(prepared(tmp_path / "b", rows, ties=ties)) - 0.5) < 4 * 0.5 / USERS**0.5


def test_the_hash_does_not_depend_on_the_order_of_the_rows_or_on_other_rows(tmp_path: Path) -> None:
    rows = noise()
    first = prepared(tmp_path / "a", rows)
    shuffled = prepared(tmp_path / "b", random.Random(1).sample(rows, len(rows)))
    assert shuffled.data_hash == first.data_hash
    more = prepared(tmp_path / "c", [*rows, *((f"new{n}", f"i{item:03}", 9) for n in range(5) for item in range(9))])
    order = {more.users[row]: [more.item_ids[item] for item in more.sequences[row]] for row in range(len(more.users))}
    for row, user in enumerate(first.users):
        assert order[user] == [first.item_ids[item] for item in first.sequences[row]]
    assert prepared(tmp_path / "d", rows, seed=1).data_hash != first.data_hash
    other_users = prepared(tmp_path / "e", [(f"x{user}", item, time) for user, item, time in rows])
    assert other_users.data_hash != first.data_hash, "each user's ties are drawn on their own"


def test_every_place_in_a_basket_is_as_likely_for_every_item(tmp_path: Path) -> None:
    rows = [(f"u{user}", f"i{item}", 7) for user in range(3000) for item in range(4)]
    data = prepared(tmp_path / "a", rows, k_core=1)
    table = np.stack([data.sequences[row] for row in range(3000)])
    for item in range(4):
        counts = (table == item).sum(axis=0)
        assert np.abs(counts - 750).max() < 4.5 * (3000 * 0.25 * 0.75) ** 0.5


def test_rows_keep_the_order_of_the_file_within_one_time() -> None:
    events = pl.DataFrame({"user": ["u"] * 4, "item": list("dbca"), "time": [1, 0, 1, 1]})
    numbered = number_and_sort(events, "row")
    assert [numbered.items[item] for item in numbered.rows["item"]] == ["b", "d", "c", "a"]


def test_duplicates_are_found_whatever_lies_between_them(tmp_path: Path) -> None:
    rows = [(f"u{n}", item, 1) for n in range(3) for item in ("a", "b", "a", "c", "b")]
    for ties in ("hash", "item", "row"):
        data = prepared(tmp_path / ties, rows, ties=ties, k_core=1)
        assert data.stats["rows"]["dropped_duplicates"] == 6
        assert {len(data.sequences[row]) for row in range(3)} == {3}


def test_ties_are_counted_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    # u: a b at one time, then c d at another, then e alone; v: all alone
    rows = [("u", "a", 1), ("u", "b", 1), ("u", "c", 2), ("u", "d", 2), ("u", "e", 3)]
    rows += [("v", item, time) for time, item in enumerate("abcde")]
    with caplog.at_level(logging.WARNING):
        stats = prepared(tmp_path / "a", rows, k_core=1).stats
    assert stats["ties"] == {"rule": "hash", "tied_neighbours": 2 / 8}
    assert stats["held_out"]["valid"]["tied_targets"] == 1  # d or c of u
    assert stats["held_out"]["test"]["tied_targets"] == 0
    assert "25.0 % of neighbours in a sequence and 0.0 % of the test targets have the time of another" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        prepared(tmp_path / "b", [(user, item, 10 * n) for n, (user, item, _) in enumerate(rows)], k_core=1)
    assert "time of another" not in caplog.text


def test_where_only_the_order_is_known_ties_are_unknown(tmp_path: Path) -> None:
    (tmp_path / "s.txt").write_text("u a b c\nv b c a\nw c a b\n")
    stats = prepare(DataParams(source="sequences", path=str(tmp_path / "s.txt"), k_core=1), tmp_path / "out").stats
    assert stats["times"] == "order"
    assert stats["ties"]["tied_neighbours"] is stats["held_out"]["test"]["tied_targets"] is None


def test_amazon_beauty_keeps_the_published_order() -> None:
    assert DataParams().tie_rule == "item"
    assert DataParams(source="simulated").tie_rule == DataParams(source="interactions", path="x").tie_rule == "hash"
    assert DataParams(ties="hash").tie_rule == "hash"


def test_the_shop_has_an_oracle_only_in_its_own_order(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shop = SimulatedShop(users=60, items=40, basket_size=3)
    params = DataParams(source="simulated", simulated=shop, ties="row")
    with caplog.at_level(logging.WARNING):
        assert prepare(params, tmp_path / "out").oracle("test") is not None
        assert "no oracle" not in caplog.text
        assert prepare(params.model_copy(update={"ties": "item"}), tmp_path / "out").oracle("test") is None
    assert "no oracle: items of one time are not in the order in which users took them" in caplog.text
