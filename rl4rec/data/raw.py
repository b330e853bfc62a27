"""The raw data of a source: which files it is, and its rows."""

from __future__ import annotations

import logging
from pathlib import Path

import polars as pl

from rl4rec.data.oddities import describe_left_out
from rl4rec.data.sources.amazon import fetch_beauty, find_beauty, read_beauty
from rl4rec.data.sources.files import NoRecords, table_form
from rl4rec.data.sources.interactions import read_interactions
from rl4rec.data.sources.sequences import read_sequences
from rl4rec.data.sources.simulated import simulate
from rl4rec.data.sources.times import join_times
from rl4rec.data.store import list_store
from rl4rec.errors import UserError, listed
from rl4rec.params import DataParams

_log = logging.getLogger(__name__)


def raw_files(params: DataParams, *, fetch: bool) -> list[Path]:
    """Files of the source (none for the simulated shop).

    Args:
        params: the `data` section.
        fetch: download Amazon Beauty where it is not found; else the list is empty then.

    Raises:
        UserError: a file that was named is not there, or the download failed.
    """
    match params.source:
        case "simulated":
            return []
        case "amazon-beauty":
            files = find_beauty(params)
            return fetch_beauty(params) if fetch and not files else files
        case "sequences" | "interactions":
            path = Path(str(params.path))
            if path.is_dir() and params.source == "interactions":
                tables = list_store(path).tables
                if not tables:
                    left_out = left_out_files(params)
                    raise UserError(
                        f"data.path: no tables in the folder {path}. Add some: rl4rec ingest FILE"
                        + (f". {describe_left_out(left_out)}" if left_out else "")
                    )
                return tables
            if not path.is_file():
                raise UserError(f"data.path: no such file: {path}. Name the file with your {params.source}.")
            return [path]


def left_out_files(params: DataParams) -> list[str]:
    """Files of the folder with the interactions that are not read."""
    path = Path(str(params.path))
    if params.source != "interactions" or not path.is_dir():
        return []
    return [str(file.relative_to(path)) for file in list_store(path).left_out]


def gives_only_order(params: DataParams, files: list[Path]) -> bool:
    """Whether the source has no times, only the order of each user's items."""
    return params.source == "sequences" or (params.source == "amazon-beauty" and table_form(files[0]) == "txt")


def read_raw(params: DataParams, files: list[Path]) -> pl.DataFrame:
    """Rows of the source: `user`, `item` (String), `time` (of a type that `rl4rec.data.sources.times` knows).

    The simulated shop has `step` too, the place of an interaction in the user's full sequence.

    Raises:
        UserError: damaged input, with file and line.
    """
    match params.source:
        case "simulated":
            return simulate(params.simulated).events()
        case "amazon-beauty":
            return read_beauty(files)
        case "sequences":
            return read_sequences(files[0])
        case "interactions":
            parts = _read_parts(files, params)
            times = join_times([(file, part["time"]) for file, part in parts], params.columns.timestamp)
            return pl.concat([part.with_columns(time) for (_, part), time in zip(parts, times, strict=True)])


def _read_parts(files: list[Path], params: DataParams) -> list[tuple[Path, pl.DataFrame]]:
    """The files with their rows, those without any left out."""
    parts, empty = [], []
    for file in files:
        try:
            parts.append((file, read_interactions(file, params.columns)))
        except NoRecords:
            empty.append(file)
            if len(empty) == len(files):
                raise
    if empty:
        _log.warning("%d of %d files of the data folder have no rows: %s", len(empty), len(files), listed(empty))
    return parts
