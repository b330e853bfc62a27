"""Prepare: raw interactions -> k-core -> one sequence per user -> the folder that every later stage reads.

Items are numbered by the byte order of their raw ids. Users are sorted by their sequence of item numbers (equal
sequences by raw user id): names of users influence nothing, so the same interactions give the same rows, the same
`data_hash` and the same training run, whatever layout they were published in.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from rl4rec.data.dataset import FOLDS, Fold, IntArray, PreparedData, Ragged, content_hash, load_prepared
from rl4rec.data.fingerprint import describe_files
from rl4rec.data.k_core import DUPLICATE_RULES, ORDER_RULES, drop_duplicates, k_core, number_and_sort
from rl4rec.data.oddities import oddities
from rl4rec.data.raw import gives_only_order, left_out_files, raw_files, read_raw
from rl4rec.data.sources.simulated import number_of, simulate
from rl4rec.data.sources.times import time_kind
from rl4rec.data.splits import Cuts, LastItem, TimeSplit
from rl4rec.data.vocabulary import build_tokenizer
from rl4rec.errors import UserError
from rl4rec.params import DataParams

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Kept:
    """What is left of the raw interactions, numbered anew."""

    users: list[str]
    item_ids: list[str]
    sequences: Ragged
    times: npt.NDArray[Any] | None  # of each value of `sequences`; None: the source has only their order
    kind: str  # of the times
    steps: IntArray | None  # simulated shop only: place of each value in the user's full sequence
    rows: dict[str, int]  # read, dropped by each step, k-core rounds
    cuts: Cuts
    split: dict[str, Any]  # the rule and its moments


def prepare(params: DataParams, out: Path) -> PreparedData:
    """Read the source, filter, number, and write `out` whole (its earlier content is replaced at the end).

    Args:
        params: the `data` section.
        out: folder for the prepared data.

    Returns:
        What `load_prepared(out)` reads.

    Raises:
        UserError: no data, damaged data, or nothing left after filtering.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file, but the prepared data are a folder. Move it away.")
    files = raw_files(params, fetch=True)
    kept = _keep(read_raw(params, files), params, only_order=gives_only_order(params, files))
    fresh = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        fresh.mkdir(parents=True)
        _write(fresh, kept, params, files)
        if params.source == "simulated":
            _write_oracle(fresh, kept, params)
        _replace(out, fresh)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    data = load_prepared(out)
    _log.info(
        "%s: %d users, %d items, %d interactions (%s)",
        out, len(data.users), data.num_items, len(data.sequences.values), data.data_hash,
    )  # fmt: skip
    tied, targets = data.stats["ties"]["tied_neighbours"], data.stats["held_out"]["test"]
    if tied is not None:
        _log.info(
            "%.1f %% of neighbours and %.1f %% of the test targets have the time of another item; order: %s",
            100 * tied, 100 * targets["tied_targets"] / targets["users"], params.tie_rule,
        )  # fmt: skip
    for sentence in oddities(data.stats):
        _log.warning("%s", sentence)
    return data


def _keep(events: pl.DataFrame, params: DataParams, *, only_order: bool) -> _Kept:
    read = len(events)
    kind = time_kind(events.schema["time"])
    numbered = number_and_sort(events, params.tie_rule, seed=params.seed)
    del events
    rows = drop_duplicates(numbered.rows, params.deduplicate, params.tie_rule)
    distinct = len(rows)
    mask, rounds = k_core(rows["user"].to_numpy(), rows["item"].to_numpy(), params.k_core)
    rows = rows.filter(pl.Series(mask))
    if rows.is_empty():
        raise UserError(
            f"data.k_core: nothing is left of {read} interactions ({len(numbered.users)} users, {len(numbered.items)} "
            f"items) when every user and item needs {params.k_core}. Lower data.k_core or bring more data."
        )
    items = np.unique(rows["item"].to_numpy())
    if len(items) < 2:
        raise UserError(f"only one item is left of {read} interactions: there is nothing to rank. Bring more data.")
    users, lengths = np.unique(rows["user"].to_numpy(), return_counts=True)
    if lengths.max() < 3:
        raise UserError(
            "no user has three interactions: one to train on, one to validate and one to test. Bring more data."
        )
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    sequences = Ragged(np.searchsorted(items, rows["item"].to_numpy()).astype(np.int64), offsets)
    order = _by_sequence(sequences)
    places = sequences.positions(order)
    sequences = sequences.take(order)
    times = None if only_order else rows["time"].dt.replace_time_zone(None) if kind == "instant" else rows["time"]
    moments = None if times is None else times.to_numpy()[places]
    cuts, split = _cut(sequences, moments, kind, params)
    return _Kept(
        users=numbered.users.gather(users[order]).to_list(),
        item_ids=numbered.items.gather(items).to_list(),
        sequences=sequences,
        times=moments,
        kind="order" if only_order else kind,
        steps=rows["step"].to_numpy()[places] if "step" in rows.columns else None,
        rows={
            "read": read,
            "dropped_duplicates": read - distinct,
            "dropped_k_core": distinct - len(rows),
            "k_core_rounds": rounds,
        },
        cuts=cuts,
        split=split,
    )


def _cut(
    sequences: Ragged, times: npt.NDArray[Any] | None, kind: str, params: DataParams
) -> tuple[Cuts, dict[str, Any]]:
    """Where the windows begin, and the split for `stats.json`."""
    if params.split == "last_item":
        return LastItem().cut(sequences.lengths), {"kind": "last_item", "rule": LastItem.rule}
    if times is None:
        raise UserError(
            "data.split: time needs times, and this file only has the order of the items. Set data.split: last_item, "
            "or bring a file with times."
        )
    windows = TimeSplit(params.time_split.valid_from, params.time_split.test_from)
    cuts, (valid, test) = windows.cut(times, sequences.offsets, kind)
    rule = (
        f"by time: what comes before {valid} trains, the window up to {test} validates, what follows tests; the target "
        "is the first item of each user in a window, after at least one before it"
    )
    return cuts, {"kind": "time", "rule": rule, "valid_from": valid, "test_from": test}


def _by_sequence(sequences: Ragged) -> IntArray:
    """Row numbers in the lexicographic order of the rows; equal rows keep their order (that of raw user ids)."""
    words = sequences.values.astype(">u4")  # big-endian: the order of the bytes is the order of the numbers
    buffers = [None, pa.py_buffer(sequences.offsets * 4), pa.py_buffer(words)]
    rows = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(sequences), buffers)
    frame = pl.DataFrame({"row": np.arange(len(sequences)), "key": pl.Series(rows)})
    return frame.sort("key", "row")["row"].to_numpy()


def _write(folder: Path, kept: _Kept, params: DataParams, files: list[Path]) -> None:
    offsets, values = kept.sequences.offsets, kept.sequences.values.astype(np.int32)
    items = pl.Series(pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values)))
    cuts = {"before_valid": kept.cuts.valid.astype(np.int32), "before_test": kept.cuts.test.astype(np.int32)}
    pl.DataFrame({"user": kept.users, "items": items, **cuts}).write_parquet(folder / "sequences.parquet")
    data = PreparedData(folder, kept.users, kept.item_ids, np.empty(0, np.int64), kept.sequences, {}, kept.cuts)
    counts = np.bincount(data.train_sequences().values, minlength=len(kept.item_ids))
    pl.DataFrame({"item": kept.item_ids, "count": counts}).write_parquet(folder / "items.parquet")
    stats = _stats(kept, replace(data, item_counts=counts), params, files)
    (folder / "stats.json").write_text(json.dumps(stats, indent=2) + "\n", encoding="utf-8")
    build_tokenizer(kept.item_ids).save_pretrained(folder / "tokenizer")


def _stats(kept: _Kept, data: PreparedData, params: DataParams, files: list[Path]) -> dict[str, Any]:
    lengths = kept.sequences.lengths
    users, items, interactions = len(lengths), len(kept.item_ids), len(kept.sequences.values)
    held_out = {fold: _held_out(kept, data, fold) for fold in FOLDS}
    for fold, counts in held_out.items():
        if counts["users"] == 0:
            raise UserError(
                f"no user has an item in the {'validation' if fold == 'valid' else 'test'} window and one before it. "
                f"Move data.time_split.{fold}_from, or bring more data."
            )
    return {
        "users": users,
        "items": items,
        "interactions": interactions,
        "length": {
            "min": int(lengths.min()),
            "median": float(np.median(lengths)),
            "mean": round(float(lengths.mean()), 4),
            "max": int(lengths.max()),
        },
        "density": interactions / (users * items),
        "data_hash": content_hash(kept.item_ids, kept.sequences, None if params.split == "last_item" else kept.cuts),
        "source": params.source,
        "files": describe_files(files),
        "files_left_out": left_out_files(params),
        "rows": kept.rows,
        "times": kept.kind,
        "ties": {"rule": params.tie_rule, "tied_neighbours": None if kept.times is None else _tied_share(kept)},
        "split": kept.split,
        "held_out": held_out,
        "without_training": {
            "users": int((kept.cuts.valid == 0).sum()),
            "items": int((data.item_counts == 0).sum()),
        },
        "rules": {
            "order": ORDER_RULES[params.tie_rule],
            "duplicates": f"{params.deduplicate}: {DUPLICATE_RULES[params.deduplicate]}",
            "k_core": f"users and items with at least {params.k_core} interactions, to a fixed point, after duplicates",
            "split": kept.split["rule"],
            "numbering": "items by the byte order of raw ids, users by their sequence of items",
        },
    }


def _held_out(kept: _Kept, data: PreparedData, fold: Fold) -> dict[str, int | None]:
    """What is odd about the targets of a fold: how many there are, and how many of each kind."""
    split = data.split(fold)
    owner = np.repeat(np.arange(len(split.targets)), split.history.lengths)
    repeated = np.zeros(len(split.targets), bool)
    repeated[owner[split.history.values == split.targets[owner]]] = True
    places = kept.sequences.offsets[split.user_rows] + split.history.lengths
    return {
        "users": len(split.targets),
        "repeated_targets": int(repeated.sum()),
        "cold_targets": int((data.item_counts[split.targets] == 0).sum()),
        "tied_targets": None if kept.times is None else int(_tied(kept)[places].sum()),
    }


def _tied_neighbours(kept: _Kept) -> npt.NDArray[np.bool_]:
    """Whether each interaction has the time of the user's one before it, (interactions,)."""
    assert kept.times is not None
    same = np.concatenate([[False], kept.times[1:] == kept.times[:-1]])
    same[kept.sequences.offsets[:-1]] = False
    return same


def _tied(kept: _Kept) -> npt.NDArray[np.bool_]:
    """Whether each interaction has the time of one of its neighbours, (interactions,)."""
    before = _tied_neighbours(kept)
    tied: npt.NDArray[np.bool_] = before | np.concatenate([before[1:], [False]])
    return tied


def _tied_share(kept: _Kept) -> float:
    """Share of the pairs of neighbours in a sequence that have one time."""
    pairs = len(kept.sequences.values) - len(kept.sequences)
    return round(float(_tied_neighbours(kept).sum()) / max(pairs, 1), 6)


def _write_oracle(folder: Path, kept: _Kept, params: DataParams) -> None:
    """True next-item distributions, where the sequences are in the order in which users really took the items."""
    assert kept.steps is not None
    inside = np.ones(len(kept.steps), bool)
    inside[kept.sequences.offsets[:-1]] = False
    if (np.diff(kept.steps, prepend=-1)[inside] < 0).any():
        _log.warning(
            "no oracle: items of one time are not in the order in which users took them (data.ties: %s). "
            "Set data.ties: row to have it.",
            params.tie_rule,
        )
        return
    shop = simulate(params.simulated)
    users, items = number_of(pl.Series(kept.users)), number_of(pl.Series(kept.item_ids))
    columns = {}
    for fold, before, end in (
        ("valid", kept.cuts.valid, kept.cuts.test),
        ("test", kept.cuts.test, kept.sequences.lengths),
    ):
        targeted = (before > 0) & (before < end)
        places = np.minimum(kept.sequences.offsets[:-1] + before, len(kept.steps) - 1)
        table = shop.oracle(users, np.where(targeted, kept.steps[places], -1), items)
        columns[fold] = pl.Series(fold, table).arr.to_list()
    pl.DataFrame(columns).write_parquet(folder / "oracle.parquet")


def _replace(out: Path, fresh: Path) -> None:
    old = out.with_name(f".{out.name}.{os.getpid()}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        os.replace(out, old)
    os.replace(fresh, out)
    shutil.rmtree(old, ignore_errors=True)
