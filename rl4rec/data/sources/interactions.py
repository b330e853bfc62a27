"""A user's own interactions: CSV, TSV, parquet or JSON lines with a user, an item and a time column.

Times may be numbers (any unit), dates or ISO 8601 text: only their order matters.
"""

from __future__ import annotations

import math
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
)
from rl4rec.errors import UserError, shown
from rl4rec.params import Columns


def read_interactions(path: Path, columns: Columns) -> pl.DataFrame:
    """Interactions of a table file; its name tells its form: `.csv .tsv .jsonl .ndjson`, each `.gz` too, `.parquet`.

    Returns:
        `user`, `item` (String) and `time` (Int64 or Float64).

    Raises:
        UserError: an unknown form, an unreadable file, a missing column or field, a wrong type; with the line.
    """
    names = [columns.user, columns.item, columns.timestamp]
    if len(set(names)) < 3:
        raise UserError(
            f"data.columns: user, item and timestamp must be three columns, got {', '.join(names)}. "
            "Change them in params.yaml."
        )
    match path.name.removesuffix(".gz").rsplit(".", 1)[-1]:
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
    frame = pl.DataFrame([*ids, _times(path, table).alias("time")])
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


def _times(path: Path, table: pl.DataFrame) -> pl.Series:
    column, lines = table.to_series(3), table[LINE]
    if column.dtype == pl.String:
        first = str(column[0])
        kind, parsed = _parse_times(column, first)
        bad = parsed.is_null()
        if bad.any():
            row = int(bad.arg_true()[0])
            like = "" if row == 0 else f" like the first, {shown(first)}"
            raise UserError(
                f"{path}, line {lines[row]}: '{column.name}' is not {kind}{like}: {shown(column[row])}. "
                "Mend or remove that line."
            )
        column = parsed
    if column.dtype.is_integer():
        whole = column.cast(pl.Int64, strict=False)
        lost = whole.is_null() & column.is_not_null()
        if lost.any():
            row = int(lost.arg_true()[0])
            raise UserError(
                f"{path}, line {lines[row]}: '{column.name}' does not fit 64 bits: {column[row]}. "
                "Mend or remove that line."
            )
        return whole
    if column.dtype.is_float():
        bad = ~column.is_finite()
        if bad.any():
            row = int(bad.arg_true()[0])
            raise UserError(
                f"{path}, line {lines[row]}: '{column.name}' is not a number: {column[row]}. Mend or remove that line."
            )
        return column.cast(pl.Float64)
    if column.dtype in (pl.Date, pl.Datetime):
        return column.to_physical().cast(pl.Int64)
    raise UserError(
        f"{path}: column '{column.name}' holds {column.dtype}. Times must be numbers, dates or ISO text. "
        "Convert the column."
    )


def _parse_times(column: pl.Series, first: str) -> tuple[str, pl.Series]:
    try:
        if math.isfinite(float(first)):
            whole = column.cast(pl.Int64, strict=False)
            if not whole.has_nulls():
                return "a number", whole
            numbers = column.cast(pl.Float64, strict=False)
            # Floats for the sake of a number beyond 64 bits would lose digits, and with them the order, of all others.
            beyond = whole.is_null() & column.str.contains(r"^[+-]?[0-9]+$")
            if beyond.any():
                return "a number of at most 64 bits", numbers.set(beyond, None)
            return "a number", numbers
    except ValueError:
        pass
    try:
        return "a number or an ISO 8601 date", column.str.to_datetime(strict=False)
    except pl.exceptions.PolarsError:
        return "a number or an ISO 8601 date", pl.Series(column.name, [None] * len(column), dtype=pl.Datetime)
