"""The raw data of a source: which files it is, and its rows."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from rl4rec.data.sources.amazon import fetch_beauty, find_beauty, read_beauty
from rl4rec.data.sources.interactions import read_interactions
from rl4rec.data.sources.sequences import read_sequences
from rl4rec.data.sources.simulated import simulate
from rl4rec.data.store import store_files
from rl4rec.errors import UserError
from rl4rec.params import DataParams


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
                files = store_files(path)
                if not files:
                    raise UserError(f"data.path: no tables in the folder {path}. Add some: rl4rec ingest FILE")
                return files
            if not path.is_file():
                raise UserError(f"data.path: no such file: {path}. Name the file with your {params.source}.")
            return [path]


def read_raw(params: DataParams, files: list[Path]) -> pl.DataFrame:
    """Rows of the source: `user`, `item` (String), `time` (Int64 or Float64); only the order of times matters.

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
            parts = [read_interactions(file, params.columns) for file in files]
            kinds = {part.schema["time"] for part in parts}
            if len(kinds) > 1:
                raise UserError(
                    f"{files[0].parent}: column '{params.columns.timestamp}' holds {' and '.join(map(str, kinds))} in "
                    "different files: times must be of one kind. Convert some of the files."
                )
            return pl.concat(parts)
