from pathlib import Path

import numpy as np
import pytest

from rl4rec.data.dataset import PreparedData, Ragged, content_hash, load_prepared
from rl4rec.errors import UserError


def rows_of(ragged: Ragged) -> list[list[int]]:
    return [ragged[row].tolist() for row in range(len(ragged))]


ROWS = [[4, 1, 2], [], [3], [0, 2, 4, 1]]


def test_rows_go_in_and_come_out():
    ragged = Ragged.from_rows(ROWS)
    assert len(ragged) == 4
    assert rows_of(ragged) == ROWS
    assert ragged.lengths.tolist() == [3, 0, 1, 4]
    assert rows_of(Ragged.from_rows([])) == []


def test_take_in_any_order_and_again():
    assert rows_of(Ragged.from_rows(ROWS).take(np.array([3, 1, 0, 3]))) == [ROWS[3], [], ROWS[0], ROWS[3]]
    assert rows_of(Ragged.from_rows(ROWS).take(np.array([], dtype=np.int64))) == []


def test_positions_of_rows():
    assert Ragged.from_rows(ROWS).positions(np.array([2, 0])).tolist() == [3, 0, 1, 2]


def data(rows: list[list[int]]) -> PreparedData:
    users, items = [f"u{n}" for n in range(len(rows))], [f"i{n}" for n in range(5)]
    return PreparedData(Path("nowhere"), users, items, np.zeros(5, np.int64), Ragged.from_rows(rows), {})


def test_leave_one_out():
    shop = data([[4, 1, 2], [3, 0], [0, 2, 4, 1]])
    valid, test = shop.split("valid"), shop.split("test")
    assert valid.user_rows.tolist() == test.user_rows.tolist() == [0, 2]
    assert (rows_of(valid.history), valid.targets.tolist()) == ([[4], [0, 2]], [1, 4])
    assert (rows_of(test.history), test.targets.tolist()) == ([[4, 1], [0, 2, 4]], [2, 1])
    assert rows_of(shop.train_sequences()) == [[4], [3, 0], [0, 2]]


def test_hash_sees_items_order_and_bounds():
    one = content_hash(["a", "b"], Ragged.from_rows([[0, 1], [1]]))
    assert one == content_hash(["a", "b"], Ragged.from_rows([[0, 1], [1]]))
    others = [
        content_hash(["a", "c"], Ragged.from_rows([[0, 1], [1]])),
        content_hash(["a", "b"], Ragged.from_rows([[1, 0], [1]])),
        content_hash(["a", "b"], Ragged.from_rows([[0], [1, 1]])),
    ]
    assert len({one, *others}) == 4


def test_not_a_prepared_folder(tmp_path):
    with pytest.raises(UserError, match=r"sequences\.parquet: no such file. Run `dvc repro prepare`"):
        load_prepared(tmp_path)
    for name in ("sequences.parquet", "items.parquet", "stats.json"):
        (tmp_path / name).write_text("x")
    with pytest.raises(UserError, match=r"sequences\.parquet: not a readable parquet file"):
        load_prepared(tmp_path)


def test_what_is_held_out_of_the_training_part_never_trains():
    rows = [[1, 2, 3, 4, 5, 6], [1, 2, 3], [4, 5, 6, 7], [8, 9], [3]]
    data = PreparedData(
        folder=Path("none"),
        users=list("abcde"),
        item_ids=[f"i{item}" for item in range(10)],
        item_counts=np.zeros(10, np.int64),
        sequences=Ragged.from_rows(rows),
        stats={},
    )
    one, two = data.hold_out(0), data.hold_out(1)
    # training parts: 1 2 3 4, 1, 4 5, 8 9 and 3, the last two of users with nothing held out
    assert rows_of(one.train_sequences()) == [[1, 2, 3], [], [4], [8], []]
    assert rows_of(two.train_sequences()) == [[1, 2], [], [], [], []]
    assert one.split("valid").targets.tolist() == [4, 5, 9]
    assert two.split("valid").targets.tolist() == [3]
    assert one.item_counts.tolist() == [0, 1, 1, 1, 1, 0, 0, 0, 1, 0]
    latest = data.hold_out(0, latest=True)  # training parts: 1 2 3 4 5, 1 2, 4 5 6, 8 9 and 3
    assert rows_of(latest.train_sequences()) == [[1, 2, 3, 4], [1], [4, 5], [8], []]
    assert latest.split("valid").targets.tolist() == [5, 2, 6, 9]
