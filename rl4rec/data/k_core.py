"""From raw interactions to the ones that are kept: numbering, order, duplicates, k-core."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl

Ties = Literal["hash", "item", "row"]
ORDER_RULES: dict[Ties, str] = {
    "hash": "by time; at equal times by a hash of seed, user, time and item, so that order tells nothing",
    "item": "by time; at equal times by item id (byte order): the order of the official review file, which tells "
    "something: the later of two items has the larger id",
    "row": "by time; at equal times as the rows lie in the files",
}
DUPLICATE_RULES = {
    "exact": "one row for each user, item and time",
    "user_item": "the first row for each user and item",
    "none": "all rows are kept",
}


@dataclass(frozen=True)
class Interactions:
    """Numbered interactions, sorted by user, then time, then item. Numbers follow the byte order of the raw ids."""

    rows: pl.DataFrame  # user, item (UInt32), time (as it came), and what other columns there were
    users: pl.Series  # raw id of each user number
    items: pl.Series  # raw id of each item number


def number_and_sort(events: pl.DataFrame, ties: Ties = "item", *, seed: int = 0) -> Interactions:
    """Replace raw ids by numbers and sort by user, then time, then as `ORDER_RULES` says.

    Args:
        events: `user`, `item` (String), `time` (any type that sorts), and other columns, which are kept.
        ties: what decides at equal times.
        seed: of the hash.
    """
    users, user_codes = _number(events["user"])
    items, item_codes = _number(events["item"])
    rows = events.with_columns(user_codes, item_codes)
    match ties:
        case "row":
            return Interactions(rows.sort("user", "time", maintain_order=True), users, items)
        case "item":
            return Interactions(rows.sort("user", "time", "item"), users, items)
        case "hash":
            return Interactions(_sort_by_hash(rows.sort("user", "time", "item"), users, items, seed), users, items)


def _sort_by_hash(rows: pl.DataFrame, users: pl.Series, items: pl.Series, seed: int) -> pl.DataFrame:
    """Sorted rows with those of equal user and time in the order of a hash."""
    tied = same_as_before(rows, "user", "time")
    tied = tied | tied.shift(-1, fill_value=False)
    if not tied.any():
        return rows
    key = np.zeros(len(rows), np.uint64)
    key[tied.to_numpy()] = _tie_key(users, items, rows.filter(tied), seed)
    return rows.with_columns(pl.Series("<key>", key)).sort("user", "time", "<key>", "item").drop("<key>")


def same_as_before(rows: pl.DataFrame, *columns: str) -> pl.Series:
    """Whether each row has the same values in some columns as the row before it."""
    same = pl.all_horizontal(pl.col(*columns).eq(pl.col(*columns).shift(1)))
    return rows.select(same.fill_null(False)).to_series()


def _tie_key(users: pl.Series, items: pl.Series, rows: pl.DataFrame, seed: int) -> npt.NDArray[np.uint64]:
    """A hash of seed, user, time and item for each row, (n,): of the raw ids, so that new data leave it as it is."""
    # Without fractions: a whole number has one key, whatever type a fraction elsewhere gave it.
    bits = rows["time"].to_physical().cast(pl.Int64).to_numpy().view(np.uint64)
    key = _mix(np.full(len(rows), seed, np.uint64))
    key = _mix(key ^ _digests(users)[rows["user"].to_numpy()])
    key = _mix(key ^ bits)
    return _mix(key ^ _digests(items)[rows["item"].to_numpy()])


def _digests(names: pl.Series) -> npt.NDArray[np.uint64]:
    digests = b"".join(hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def _mix(key: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64 (Steele, Lea and Flood 2014): every bit of the input changes half of those of the output."""
    key = key + np.uint64(0x9E3779B97F4A7C15)
    key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return key ^ (key >> np.uint64(31))


def _number(column: pl.Series) -> tuple[pl.Series, pl.Series]:
    names = column.unique().sort()
    return names, column.cast(pl.Enum(names)).to_physical().cast(pl.UInt32)


def drop_duplicates(
    rows: pl.DataFrame, rule: Literal["exact", "user_item", "none"], ties: Ties = "item"
) -> pl.DataFrame:
    """Apply one of `DUPLICATE_RULES` to rows as `number_and_sort` sorts them, with the same `ties`."""
    match rule:
        case "none":
            return rows
        case "exact":
            if ties == "row":  # others may lie between equal rows
                return rows.unique(subset=["user", "item", "time"], keep="first", maintain_order=True)
            return rows.filter(~same_as_before(rows, "user", "item", "time"))
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
