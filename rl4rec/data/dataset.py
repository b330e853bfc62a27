"""The prepared data set: what `prepare` writes and every later stage reads.

A folder with

- `sequences.parquet`   `user` (string, the raw id), `items` (list<int32>, item indices 0..I-1, oldest first),
                        `before_valid` and `before_test` (int32): how many of them come before each window
- `items.parquet`       `item` (string, the raw id), `count` (int64, interactions in the training part); row = index
- `stats.json`          users, items, interactions, `data_hash`, how the raw data was treated
- `tokenizer/`          the item vocabulary as a Hugging Face tokenizer
- `oracle.parquet`      simulated shop only: `valid` and `test` (list<float32>, (I,)), the true next-item
                        distribution at that step, rows as in `sequences.parquet`

What comes before the validation window trains; the first item of a window is its target (`rl4rec.data.splits`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from rl4rec._io import read_json, read_parquet
from rl4rec.data.splits import Cuts, LastItem
from rl4rec.errors import UserError

if TYPE_CHECKING:
    import polars as pl

IntArray = npt.NDArray[np.int64]
Fold = Literal["valid", "test"]
FOLDS: tuple[Fold, Fold] = ("valid", "test")


@dataclass(frozen=True)
class Ragged:
    """Rows of unequal length, flat: row i is `values[offsets[i]:offsets[i + 1]]`."""

    values: IntArray  # (total,)
    offsets: IntArray  # (rows + 1,)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> IntArray:
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> IntArray:
        """Length of each row, (rows,)."""
        lengths: IntArray = self.offsets[1:] - self.offsets[:-1]
        return lengths

    @classmethod
    def from_rows(cls, rows: Sequence[Sequence[int] | IntArray]) -> Ragged:
        """Flatten a list of rows."""
        lengths = np.fromiter((len(row) for row in rows), dtype=np.int64, count=len(rows))
        flat = [np.asarray(row, dtype=np.int64) for row in rows]
        values = np.concatenate(flat) if flat else np.empty(0, np.int64)
        return cls(values, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))

    def positions(self, rows: IntArray) -> IntArray:
        """Where the values of the given rows lie in `values`, row after row, (total of those rows,)."""
        lengths = self.lengths[rows]
        starts = np.cumsum(lengths) - lengths
        positions: IntArray = np.arange(lengths.sum()) + np.repeat(self.offsets[rows] - starts, lengths)
        return positions

    def take(self, rows: IntArray) -> Ragged:
        """The given rows, in the given order."""
        offsets = np.concatenate([[0], np.cumsum(self.lengths[rows])]).astype(np.int64)
        return Ragged(self.values[self.positions(rows)], offsets)

    def keep_first(self, keep: IntArray) -> Ragged:
        """The first `keep[i]` values of every row i; at most its length."""
        position = np.arange(len(self.values)) - np.repeat(self.offsets[:-1], self.lengths)
        values = self.values[position < np.repeat(keep, self.lengths)]
        return Ragged(values, np.concatenate([[0], np.cumsum(keep)]).astype(np.int64))

    def distinct(self, num_values: int) -> Ragged:
        """Each row's distinct values, ascending; values are 0..num_values - 1."""
        row = np.repeat(np.arange(len(self)), self.lengths)
        keys = np.sort(row * num_values + self.values)  # np.unique's hashing is ten times slower than a vectorised sort
        keys = keys[np.flatnonzero(np.diff(keys, prepend=-1))]
        lengths = np.bincount(keys // num_values, minlength=len(self))
        return Ragged(keys % num_values, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))


@dataclass(frozen=True)
class Split:
    """One fold: histories and the item that came next."""

    user_rows: IntArray  # (u,) row of each user in the data set
    history: Ragged  # u rows, item indices, oldest first
    targets: IntArray  # (u,)


@dataclass(frozen=True, repr=False)
class PreparedData:
    """All sequences of a data set, with the vocabulary and the statistics. Item indices are 0..I-1.

    Attributes:
        folder: where it is saved.
        users: raw ids of the users, row order.
        item_ids: raw id of each item, (I,).
        item_counts: interactions of each item in the training part, (I,).
        sequences: a user a row, item indices, oldest first, the held-out items included.
        stats: `stats.json`: counts, rules and the digest of the data.
        cuts: where each user's validation and test windows begin; None: leave-one-out.
    """

    folder: Path
    users: list[str]
    item_ids: list[str]
    item_counts: IntArray  # (I,) interactions in the training part
    sequences: Ragged
    stats: dict[str, Any]
    cuts: Cuts | None = None

    def __repr__(self) -> str:
        size = f"{len(self.users):,} users, {self.num_items:,} items, {len(self.sequences.values):,} interactions"
        return f"<PreparedData {self.folder}: {size}>"

    @property
    def windows(self) -> Cuts:
        """Where each user's validation and test windows begin."""
        return LastItem().cut(self.sequences.lengths) if self.cuts is None else self.cuts

    @property
    def num_items(self) -> int:
        """Size of the catalogue, I."""
        return len(self.item_ids)

    @property
    def data_hash(self) -> str:
        """Digest of the sequences and the vocabulary (`content_hash`)."""
        return str(self.stats["data_hash"])

    @property
    def tokenizer_folder(self) -> Path:
        """Where the item vocabulary is saved as a Hugging Face tokenizer."""
        return self.folder / "tokenizer"

    def popularity_percentiles(self) -> npt.NDArray[np.float64]:
        """Share of the catalogue that is less popular than each item, ties half, (I,)."""
        ordered = np.sort(self.item_counts)
        below, up_to = (np.searchsorted(ordered, self.item_counts, side=side) for side in ("left", "right"))
        percentiles: npt.NDArray[np.float64] = (below + up_to) / 2 / len(ordered)
        return percentiles

    def train_sequences(self, *, latest: bool = False) -> Ragged:
        """The training part of every user: what comes before the validation window.

        Args:
            latest: what comes before the test window: for a final refit, when all settings are frozen.
        """
        return self.sequences.keep_first(self.windows.test if latest else self.windows.valid)

    def hold_out(self, back: int, *, latest: bool = False) -> PreparedData:
        """The same data with an item of each user's training part as the validation target; only what is before trains.

        Args:
            back: which: 0 is the last item of the training part, 1 the one before it, and so on.
            latest: the training part is what comes before the test window.
        """
        feedback = self.windows.test if latest else self.windows.valid
        cuts = Cuts(np.maximum(feedback - back - 1, 0), np.maximum(feedback - back, 0))
        earlier = replace(self, cuts=cuts)
        counts = np.bincount(earlier.train_sequences().values, minlength=self.num_items)
        return replace(earlier, item_counts=counts)

    def split(self, fold: Fold) -> Split:
        """Histories and targets of a fold: the users who have an item in its window and one before it.

        Args:
            fold: `valid` or `test`.
        """
        windows = self.windows
        before = windows.valid if fold == "valid" else windows.test
        end = windows.test if fold == "valid" else self.sequences.lengths
        rows = np.flatnonzero((before > 0) & (before < end))
        kept = self.sequences if len(rows) == len(self.sequences) else self.sequences.take(rows)
        return Split(rows, kept.keep_first(before[rows]), kept.values[kept.offsets[:-1] + before[rows]])

    def oracle(self, fold: Fold) -> npt.NDArray[np.float32] | None:
        """True next-item distribution of the fold's users, (u, I), or None where it is not known.

        Args:
            fold: `valid` or `test`.

        Raises:
            UserError: the file is damaged or of other data.
        """
        path = self.folder / "oracle.parquet"
        if not path.exists():
            return None
        rows = self.split(fold).user_rows
        column = read_parquet(path, [fold], then="Run `dvc repro prepare`.")[fold].to_numpy()
        try:
            table: npt.NDArray[np.float32] = np.stack(list(column[rows])).astype(np.float32)
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(f"{path}: not a readable table ({error}). Run `dvc repro prepare`.") from None
        if table.shape != (len(rows), self.num_items):
            raise UserError(f"{path}: of other users or items than {self.folder}. Run `dvc repro prepare`.")
        return table


def content_hash(item_ids: Sequence[str], sequences: Ragged, cuts: Cuts | None = None) -> str:
    """SHA-256 (first 16 hex digits) of item ids, sequences and split: equal data, equal hash, on any machine.

    Names of users are left out: they influence neither training nor evaluation, and layouts differ in them.

    Args:
        item_ids: raw ids of the items.
        sequences: of each user.
        cuts: of each user; None: leave-one-out.
    """
    digest = hashlib.sha256(json.dumps(list(item_ids)).encode())
    for array in (sequences.offsets, sequences.values, *((cuts.valid, cuts.test) if cuts is not None else ())):
        digest.update(np.ascontiguousarray(array, dtype="<i8").tobytes())
    return digest.hexdigest()[:16]


def load_prepared(folder: Path | str) -> PreparedData:
    """Read the folder that `prepare` wrote.

    Args:
        folder: such as the pipeline's `data/prepared`.

    Raises:
        UserError: a file is missing or damaged, or does not hold what it should.
    """
    folder = Path(folder)
    again = "Run `dvc repro prepare`."
    table = read_parquet(folder / "sequences.parquet", ["user", "items", "before_valid", "before_test"], then=again)
    items = read_parquet(folder / "items.parquet", ["item", "count"], then=again)
    stats = read_json(folder / "stats.json", then=again)
    problem = _problem(table, items, stats)
    if problem:
        raise UserError(f"{folder}: damaged prepared data ({problem}). {again}")
    lengths = table["items"].list.len().to_numpy().astype(np.int64)
    values = table["items"].explode().drop_nulls().to_numpy().astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return PreparedData(
        folder=folder,
        users=table["user"].to_list(),
        item_ids=items["item"].to_list(),
        item_counts=items["count"].to_numpy().astype(np.int64),
        sequences=Ragged(values, offsets),
        stats=stats,
        cuts=Cuts(*(table[name].to_numpy().astype(np.int64) for name in ("before_valid", "before_test"))),
    )


def _problem(table: pl.DataFrame, items: pl.DataFrame, stats: dict[str, Any]) -> str | None:
    """What is wrong with the content of the files: a wrong index would be read as another item's."""
    import polars as pl  # training on data in memory needs no tables

    kind = table.schema["items"]
    if table.schema["user"] != pl.String or not isinstance(kind, pl.List) or not kind.inner.is_integer():
        return f"sequences.parquet: expected text and lists of numbers, got {table.schema['user']} and {kind}"
    if items.schema["item"] != pl.String or not items.schema["count"].is_integer():
        return f"items.parquet: expected text and numbers, got {items.schema['item']} and {items.schema['count']}"
    before_valid, before_test = table["before_valid"], table["before_test"]
    if not (before_valid.dtype.is_integer() and before_test.dtype.is_integer()):
        return f"sequences.parquet: expected numbers, got {before_valid.dtype} and {before_test.dtype}"
    if table.null_count().sum_horizontal().sum() or items.null_count().sum_horizontal().sum():
        return "a field is empty"
    if items["item"].n_unique() < len(items) or (items["count"] < 0).any():
        return "items.parquet: an item is there twice or has a count below 0"
    flat = table["items"].explode(empty_as_null=False)
    if flat.has_nulls() or (len(flat) and not (flat.is_between(0, len(items) - 1)).all()):
        return f"sequences.parquet: an item's number is not from 0 to {len(items) - 1}"
    ordered = (before_valid >= 0) & (before_valid <= before_test) & (before_test <= table["items"].list.len())
    if not ordered.all():
        return "sequences.parquet: a window begins before the one before it, or outside of the sequence"
    return None if isinstance(stats.get("data_hash"), str) else "stats.json: no data_hash"
