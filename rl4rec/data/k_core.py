"""From raw interactions to the ones that are kept: numbering, order, duplicates, k-core."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl

ORDER_RULE = (
    "by time; at equal times by item id (byte order), so that the order of the rows in the file does not matter; "
    "the official review file is sorted by item id, so this is its own order too"
)
DUPLICATE_RULES = {
    "exact": "one row for each user, item and time",
    "user_item": "the first row for each user and item",
    "none": "all rows are kept",
}


@dataclass(frozen=True)
class Interactions:
    """Numbered interactions, sorted by user, then time, then item. Numbers follow the byte order of the raw ids."""

    rows: pl.DataFrame  # user, item (UInt32), time (Int64 or Float64)
    users: pl.Series  # raw id of each user number
    items: pl.Series  # raw id of each item number


def number_and_sort(events: pl.DataFrame) -> Interactions:
    """Replace raw ids by numbers and sort (`ORDER_RULE`).

    Args:
        events: `user`, `item` (String), `time` (Int64 or Float64).
    """
    users, user_codes = _number(events["user"])
    items, item_codes = _number(events["item"])
    rows = pl.DataFrame([user_codes, item_codes, events["time"]])
    return Interactions(rows.sort("user", "time", "item"), users, items)


def _number(column: pl.Series) -> tuple[pl.Series, pl.Series]:
    names = column.unique().sort()
    return names, column.cast(pl.Enum(names)).to_physical().cast(pl.UInt32)


def drop_duplicates(rows: pl.DataFrame, rule: Literal["exact", "user_item", "none"]) -> pl.DataFrame:
    """Apply one of `DUPLICATE_RULES` to rows that are sorted by user, time, item."""
    match rule:
        case "none":
            return rows
        case "exact":
            same = pl.all_horizontal(pl.col("user", "item", "time").eq(pl.col("user", "item", "time").shift(1)))
            return rows.filter(~same.fill_null(False))
        case "user_item":
            return rows.unique(subset=["user", "item"], keep="first", maintain_order=True)


def k_core(users: npt.NDArray[np.uint32], items: npt.NDArray[np.uint32], k: int) -> tuple[npt.NDArray[np.bool_], int]:
    """The largest part of the interactions in which every user and every item has at least `k` of them.

    Users and items below `k` are dropped in turn until nothing changes; the result does not depend on who goes first.

    Args:
        users: (n,) user number of each interaction.
        items: (n,) item number of each interaction.
        k: at least 1.

    Returns:
        Which interactions are kept, (n,), and in how many rounds some were dropped.
    """
    kept = np.arange(len(users))
    rounds = 0
    while True:
        enough = np.bincount(users[kept]) >= k
        inner = kept[enough[users[kept]]]
        enough = np.bincount(items[inner]) >= k
        inner = inner[enough[items[inner]]]
        if len(inner) == len(kept):
            break
        kept, rounds = inner, rounds + 1
    mask = np.zeros(len(users), dtype=bool)
    mask[kept] = True
    return mask, rounds
