"""Prepare: raw interactions -> k-core -> one sequence a user -> the folder that every later stage reads.

Items are numbered by the byte order of their raw ids. Users are sorted by their sequence of item numbers (equal
sequences by raw user id): names of users influence nothing, so the same interactions give the same rows, the same
`data_hash` and the same training run, whatever layout they were published in.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from rl4rec.data.dataset import IntArray, PreparedData, Ragged, content_hash, load_prepared
from rl4rec.data.fingerprint import describe_files
from rl4rec.data.k_core import DUPLICATE_RULES, ORDER_RULE, drop_duplicates, k_core, number_and_sort
from rl4rec.data.raw import raw_files, read_raw
from rl4rec.data.sources.simulated import number_of, simulate
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
    times: npt.NDArray[Any]  # of each value of `sequences`
    steps: dict[str, int]  # rows read, rows dropped by each step, k-core rounds


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
    kept = _keep(read_raw(params, files), params)
    fresh = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        fresh.mkdir(parents=True)
        _write(fresh, kept, _stats(kept, params, files))
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
    return data


def _keep(events: pl.DataFrame, params: DataParams) -> _Kept:
    read = len(events)
    numbered = number_and_sort(events)
    del events
    rows = drop_duplicates(numbered.rows, params.deduplicate)
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
    times = rows["time"].to_numpy()[sequences.positions(order)]
    return _Kept(
        users=numbered.users.gather(users[order]).to_list(),
        item_ids=numbered.items.gather(items).to_list(),
        sequences=sequences.take(order),
        times=times,
        steps={
            "read": read,
            "dropped_duplicates": read - distinct,
            "dropped_k_core": distinct - len(rows),
            "k_core_rounds": rounds,
        },
    )


def _by_sequence(sequences: Ragged) -> IntArray:
    """Row numbers in the lexicographic order of the rows; equal rows keep their order (that of raw user ids)."""
    words = sequences.values.astype(">u4")  # big-endian: the order of the bytes is the order of the numbers
    buffers = [None, pa.py_buffer(sequences.offsets * 4), pa.py_buffer(words)]
    rows = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(sequences), buffers)
    frame = pl.DataFrame({"row": np.arange(len(sequences)), "key": pl.Series(rows)})
    return frame.sort("key", "row")["row"].to_numpy()


def _stats(kept: _Kept, params: DataParams, files: list[Path]) -> dict[str, Any]:
    lengths = kept.sequences.lengths
    users, items, interactions = len(lengths), len(kept.item_ids), len(kept.sequences.values)
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
        "data_hash": content_hash(kept.item_ids, kept.sequences),
        "source": params.source,
        "files": describe_files(files),
        "rows": kept.steps,
        "rules": {
            "order": ORDER_RULE,
            "duplicates": f"{params.deduplicate}: {DUPLICATE_RULES[params.deduplicate]}",
            "k_core": f"users and items with at least {params.k_core} interactions, to a fixed point, after duplicates",
            "split": "test is a user's last item, validation the second last; fewer than three items only train",
            "numbering": "items by the byte order of raw ids, users by their sequence of items",
        },
    }


def _write(folder: Path, kept: _Kept, stats: dict[str, Any]) -> None:
    offsets, values = kept.sequences.offsets, kept.sequences.values.astype(np.int32)
    items = pl.Series(pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values)))
    pl.DataFrame({"user": kept.users, "items": items}).write_parquet(folder / "sequences.parquet")
    data = PreparedData(folder, kept.users, kept.item_ids, np.empty(0, np.int64), kept.sequences, stats)
    counts = np.bincount(data.train_sequences().values, minlength=len(kept.item_ids))
    pl.DataFrame({"item": kept.item_ids, "count": counts}).write_parquet(folder / "items.parquet")
    (folder / "stats.json").write_text(json.dumps(stats, indent=2) + "\n", encoding="utf-8")
    build_tokenizer(kept.item_ids).save_pretrained(folder / "tokenizer")


def _write_oracle(folder: Path, kept: _Kept, params: DataParams) -> None:
    """True next-item distributions; the time of a simulated interaction is its position in the full sequence."""
    shop = simulate(params.simulated)
    users, items = number_of(pl.Series(kept.users)), number_of(pl.Series(kept.item_ids))
    columns = {}
    for fold, back in (("valid", 2), ("test", 1)):
        enough = kept.sequences.lengths >= 3
        steps = np.where(enough, kept.times[np.maximum(kept.sequences.offsets[1:] - back, 0)], -1)
        table = shop.oracle(users, steps, items)
        columns[fold] = pl.Series(fold, table).arr.to_list()
    pl.DataFrame(columns).write_parquet(folder / "oracle.parquet")


def _replace(out: Path, fresh: Path) -> None:
    old = out.with_name(f".{out.name}.{os.getpid()}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        os.replace(out, old)
    os.replace(fresh, out)
    shutil.rmtree(old, ignore_errors=True)
