"""The raw store: a folder of interactions that only ever grows, one file a delivery."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import polars as pl

from rl4rec.data.sources.interactions import read_interactions
from rl4rec.data.sources.times import join_times
from rl4rec.data.store import list_store
from rl4rec.errors import UserError
from rl4rec.params import Columns

_KEY = ["user", "item", "at"]  # at: the time, as one type with those of the store


class Ingested(NamedTuple):
    """What became of a delivery."""

    part: Path | None  # the new file of the store; None: nothing was new
    added: int
    known: int  # interactions that the store had already, or the delivery twice


def ingest(file: Path, store: Path, columns: Columns) -> Ingested:
    """Add what is new in a file of interactions to the store, whole or not at all.

    The new part is named by its number and content. Files of the store are never changed.

    Args:
        file: in any form of the source `interactions`.
        store: the folder that `data.path` names; made if it is not there.
        columns: of the file and of the store.

    Raises:
        UserError: the file is damaged, its times are of another kind than the store's, or another ingestion is
            under way.
    """
    if store.exists() and not store.is_dir():
        raise UserError(
            f"{store}: is a file, and a store of interactions is a folder. Move it into one and name that in data.path."
        )
    delivered = read_interactions(file, columns)
    store.mkdir(parents=True, exist_ok=True)
    with _only_one(store):
        parts = list_store(store).tables
        earlier = [read_interactions(part, columns) for part in parts]
        held = [(part, rows["time"]) for part, rows in zip(parts, earlier, strict=True)]
        *earlier_times, times = join_times([*held, (file, delivered["time"])], columns.timestamp)
        fresh = delivered.with_columns(times.alias("at")).unique(_KEY, keep="first", maintain_order=True)
        for rows, at in zip(earlier, earlier_times, strict=True):
            fresh = fresh.join(rows.with_columns(at.alias("at")), on=_KEY, how="anti", maintain_order="left")
        known = len(delivered) - len(fresh)
        if fresh.is_empty():
            return Ingested(None, 0, known)
        named = fresh.select(
            pl.col("user").alias(columns.user),
            pl.col("item").alias(columns.item),
            pl.col("time").alias(columns.timestamp),
        )
        draft = store / f".{os.getpid()}.part"
        try:
            named.write_parquet(draft)
            digest = hashlib.sha256(draft.read_bytes()).hexdigest()[:8]
            part = store / f"part-{len(parts):05d}-{digest}.parquet"
            os.replace(draft, part)
        finally:
            draft.unlink(missing_ok=True)
    return Ingested(part, len(fresh), known)


@contextlib.contextmanager
def _only_one(store: Path) -> Iterator[None]:
    """Hold a lock on the folder itself, which the system gives back when its holder dies."""
    folder = os.open(store, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise UserError(f"{store}: another ingestion is under way. Try again when it is done.") from None
    finally:
        os.close(folder)
