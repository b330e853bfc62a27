from collections import Counter

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl4rec.data.k_core import drop_duplicates, k_core, number_and_sort


def events(rows: list[tuple[str, str, int]]) -> pl.DataFrame:
    schema = {"user": pl.String, "item": pl.String, "time": pl.Int64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def core_by_brute_force(pairs: list[tuple[int, int]], k: int) -> list[tuple[int, int]]:
    while True:
        users, items = Counter(u for u, _ in pairs), Counter(i for _, i in pairs)
        kept = [(u, i) for u, i in pairs if users[u] >= k and items[i] >= k]
        if kept == pairs:
            return kept
        pairs = kept


def test_dropping_a_user_can_drop_an_item_and_then_another_user():
    # Item 2 has two takers, but user 2 has only one interaction; without it item 2 falls, then user 1.
    users = np.array([0, 0, 3, 3, 1, 1, 2], dtype=np.uint32)
    items = np.array([0, 1, 0, 1, 0, 2, 2], dtype=np.uint32)
    mask, rounds = k_core(users, items, 2)
    assert mask.tolist() == [True, True, True, True, False, False, False]
    assert rounds == 2


def test_one_core_keeps_everything_and_an_impossible_core_nothing():
    users, items = np.array([0, 1], dtype=np.uint32), np.array([0, 1], dtype=np.uint32)
    assert k_core(users, items, 1)[0].all()
    assert not k_core(users, items, 2)[0].any()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=60), st.integers(1, 4))
def test_equals_brute_force(pairs, k):
    users, items = (np.array(column, dtype=np.uint32) for column in zip(*pairs, strict=True))
    mask, _ = k_core(users, items, k)
    assert [pair for pair, kept in zip(pairs, mask, strict=True) if kept] == core_by_brute_force(pairs, k)


def test_numbers_follow_the_byte_order_of_raw_ids_and_rows_are_in_order():
    numbered = number_and_sort(events([("b", "z", 5), ("a", "é", 9), ("a", "10", 9), ("a", "9", 1)]))
    assert numbered.users.to_list() == ["a", "b"]
    assert numbered.items.to_list() == ["10", "9", "z", "é"]
    # a: "9" at 1, then at the equal time 9 by item id: "10" before "é"; then b.
    assert numbered.rows.rows() == [(0, 1, 1), (0, 0, 9), (0, 3, 9), (1, 2, 5)]


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        ("none", [("a", 1), ("a", 1), ("b", 1), ("a", 2)]),
        ("exact", [("a", 1), ("b", 1), ("a", 2)]),
        ("user_item", [("a", 1), ("b", 1)]),
    ],
)
def test_duplicate_rules(rule, kept):
    numbered = number_and_sort(events([("u", "a", 2), ("u", "a", 1), ("u", "b", 1), ("u", "a", 1)]))
    rows = drop_duplicates(numbered.rows, rule)
    assert [(numbered.items[i], t) for _, i, t in rows.rows()] == kept


def test_equal_item_and_time_of_two_users_are_no_duplicates():
    numbered = number_and_sort(events([("u", "a", 1), ("v", "a", 1)]))
    assert len(drop_duplicates(numbered.rows, "exact")) == 2
    assert len(drop_duplicates(numbered.rows, "user_item")) == 2
