"""A user's own interactions: CSV, TSV, parquet or JSON lines with a user, an item and a time column.

Times may be numbers (any unit), dates or ISO 8601 text, of one kind (`rl4rec.data.sources.times`): only their order
matters.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from rl4rec._io import parse_json, read_parquet
from rl4rec.data.sources.files import (
    LINE,
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


def read_interactions(path: Path, columns: Columns) -> pl.DataFrame:
    """Interactions of a table file; its name tells its form: `.csv .tsv .jsonl .ndjson`, each `.gz` too, `.parquet`.

    Returns:
        `user`, `item` (String) and `time`, of a type that tells its kind (`parse_times`).

    Raises:
        UserError: an unknown form, an unreadable file, a missing column or field, a wrong type; with the line.
    """
    names = [columns.user, columns.item, columns.timestamp]
    if len(set(names)) < 3:
        raise UserError(
            f"data.columns: user, item and timestamp must be three columns, got {', '.join(names)}. "
            "Change them in params.yaml."
        )
    match table_form(path):
        case "csv":
            table = read_delimited(path, separator=",", columns=None, use=names)
        case "tsv":
            table = read_delimited(path, separator="\t", columns=None, use=names)
        case "jsonl" | "ndjson" | "json":
            table = read_json_lines(path, _json_schema(path, names))
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
        raise UserError(f"{path}: no records. Expected one interaction a row.")
    table = table.with_row_index(LINE, offset=1)
    check_complete(path, table, names)
    return table


def _json_schema(path: Path, names: list[str]) -> dict[str, pl.DataType]:
    first = read_bytes(path).removeprefix(b"\xef\xbb\xbf").lstrip().split(b"\n", 1)[0]
    try:
        record = parse_json(first.decode("utf-8"))
    except ValueError:
        record = {}
    if not isinstance(record, dict):
        record = {}
    schema: dict[str, pl.DataType] = {}
    for name in names:
        match record.get(name):
            case int(value) if not isinstance(value, bool):
                schema[name] = pl.Int64()
            case float():
                schema[name] = pl.Float64()
            case _:
                schema[name] = pl.String()
    return schema


def _identifiers(path: Path, column: pl.Series) -> pl.Series:
    if column.dtype != pl.String and not column.dtype.is_integer() and column.dtype not in (pl.Categorical, pl.Enum):
        raise UserError(
            f"{path}: column '{column.name}' holds {column.dtype}. Ids must be text or whole numbers. "
            "Convert the column."
        )
    return column.cast(pl.String)
