"""A user's own interactions: CSV, TSV, parquet or JSON lines with a user, an item and a time column.

Times may be numbers (any unit), dates or ISO 8601 text, of one kind (`rl4rec.data.sources.times`): only their order
matters.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

import polars as pl

from rl4rec._io import parse_json, read_parquet
from rl4rec.data.sources.files import (
    LINE,
    NoRecords,
    check_complete,
    check_ids,
    read_bytes,
    read_delimited,
    read_json_lines,
    table_form,
)
from rl4rec.data.sources.times import parse_times
from rl4rec.errors import UserError, shown
from rl4rec.params import Columns

_log = logging.getLogger(__name__)


def read_interactions(path: Path, columns: Columns) -> pl.DataFrame:
    """Interactions of a table file; its name tells its form: `.csv .tsv .jsonl .ndjson`, each `.gz` too, `.parquet`.

    Returns:
        `user`, `item` (String) and `time`, of a type that tells its kind (`parse_times`).

    Raises:
        UserError: an unknown form, an unreadable file, a missing column or field, a wrong type; with the line.
    """
    names = [columns.user, columns.item, columns.timestamp]
    match table_form(path):
        case "csv":
            table = read_delimited(path, separator=",", columns=None, use=names)
        case "tsv":
            table = read_delimited(path, separator="\t", columns=None, use=names)
        case "jsonl" | "ndjson" | "json":
            table = _read_json(path, names)
        case "parquet":
            table = _read_parquet(path, names)
        case other:
            raise UserError(
                f"{path}: unknown form {shown('.' + other)}. Expected .csv, .tsv, .jsonl (each also .gz) or .parquet."
            )
    ids = [_identifiers(path, table[name]).alias(role) for name, role in zip(names, ("user", "item"), strict=False)]
    times = parse_times(path, table[columns.timestamp], table[LINE], columns.time_format)
    frame = pl.DataFrame([*ids, times.alias("time")])
    check_complete(path, frame.with_columns(table[LINE]), ["user", "item", "time"])
    check_ids(path, frame, table[LINE])
    return frame


def _read_parquet(path: Path, names: list[str]) -> pl.DataFrame:
    table = read_parquet(path, names, named_by=" Name yours under data.columns in params.yaml.")
    if table.is_empty():
        raise NoRecords(f"{path}: no records. Expected one interaction per row.")
    table = table.with_row_index(LINE, offset=1)
    check_complete(path, table, names)
    return table


def _read_json(path: Path, names: list[str]) -> pl.DataFrame:
    """Ids as text, times as the first one is; whole numbers among fractions are such too."""
    *ids, time = names
    schema: dict[str, pl.DataType] = {name: pl.String() for name in ids}
    data = read_bytes(path)
    kind = _json_type(data, time)
    if kind == pl.Int64() and re.search(rb'"%s"\s*:\s*-?\d+[.eE]' % re.escape(time.encode()), data):
        kind = pl.Float64()
    return read_json_lines(path, schema | {time: kind})


def _json_type(data: bytes, name: str) -> pl.DataType:
    first = data.removeprefix(b"\xef\xbb\xbf").lstrip().split(b"\n", 1)[0]
    try:
        record = parse_json(first.decode("utf-8"))
    except ValueError:
        record = {}
    match record.get(name) if isinstance(record, dict) else None:
        case int(value) if not isinstance(value, bool):
            return pl.Int64()
        case float():
            return pl.Float64()
        case _:
            return pl.String()


def _identifiers(path: Path, column: pl.Series) -> pl.Series:
    kind = column.dtype
    whole = kind.is_integer() or (isinstance(kind, pl.Decimal) and kind.scale == 0)
    if kind != pl.String and not whole and kind not in (pl.Categorical, pl.Enum):
        raise UserError(
            f"{path}: column '{column.name}' holds {kind}. Ids must be text or whole numbers. Convert the column."
        )
    ids = column.cast(pl.String)
    if kind == pl.String and bool(ids.head(1000).str.contains(r"^\d+\.0$").all()):
        _log.warning(
            "%s: the ids in column '%s' are like '%s': whole numbers that were written as decimals are other ids than "
            "those without a point. If these are such, convert them.",
            path, column.name, ids[0],
        )  # fmt: skip
    return ids
