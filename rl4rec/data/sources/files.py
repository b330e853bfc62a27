"""Reading raw files, so that damage is reported with the file and the line where it is."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import polars as pl

from rl4rec.errors import UserError

_TYPES: dict[pl.DataType, tuple[tuple[type, ...], str]] = {
    pl.String(): ((str, int), "text or a whole number"),
    pl.Int64(): ((int,), "a whole number"),
    pl.Float64(): ((int, float), "a number"),
}


def read_bytes(path: Path) -> bytes:
    """Content of a file, decompressed where its name ends in `.gz`.

    Raises:
        UserError: the file is missing, unreadable, empty, or a truncated or damaged gzip archive.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(
            f"{path}: truncated or damaged gzip file ({error}). Replace it with a complete copy; "
            "`gzip -t` tells whether a copy is whole."
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}).") from None
    if not data.strip():
        raise UserError(f"{path}: the file is empty. Expected one record a line.")
    return data


def read_text(path: Path) -> str:
    """Content of a UTF-8 text file (a byte order mark is dropped).

    Raises:
        UserError: as `read_bytes`, or the text is not UTF-8 (the message names the line).
    """
    data = read_bytes(path)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line}: not UTF-8 text (byte 0x{data[error.start]:02x}). Convert the file to UTF-8."
        ) from None


def read_delimited(path: Path, *, separator: str, columns: Sequence[str] | None, use: Sequence[str]) -> pl.DataFrame:
    """Columns of a delimited text file as text, with `line`, the record's line number (from 1).

    Blank lines are skipped. A quoted field that spans lines shifts the line numbers after it.

    Args:
        path: the file; decompressed where its name ends in `.gz`.
        separator: one character.
        columns: names of the columns of a file without a header; None where the first line names them.
        use: the columns to return; none of their fields may be empty.

    Raises:
        UserError: unreadable, not UTF-8, a wrong number of columns, a column or a field that is missing.
    """
    source = io.BytesIO(read_bytes(path)) if path.suffix == ".gz" else path
    header = columns is None
    try:
        if path.suffix != ".gz" and path.stat().st_size == 0:
            read_bytes(path)
        names = list(columns) if columns is not None else _header(path, separator)
        missing = [name for name in use if name not in names]
        if missing:
            raise UserError(
                f"{path}, line 1: no column '{missing[0]}'. The file has: {', '.join(names)}. "
                "Name yours under data.columns in params.yaml."
            )
        table = pl.scan_csv(
            source,
            separator=separator,
            has_header=header,
            schema={name: pl.String() for name in names},
            row_index_name="line",
            row_index_offset=2 if header else 1,
        )
        # Lines with too many fields are only noticed where every column is read.
        every = pl.all_horizontal(pl.col(*names).is_null())
        frame = table.select("line", *use, every.alias("_blank")).collect(engine="streaming")
        frame = frame.filter(~pl.col("_blank")).drop("_blank")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}).") from None
    except pl.exceptions.PolarsError as error:
        _blame_delimited(path, separator, columns, error)
    if frame.is_empty():
        raise UserError(f"{path}: no records. Expected one interaction a line.")
    check_complete(path, frame, use)
    return frame


def check_complete(path: Path, frame: pl.DataFrame, columns: Sequence[str]) -> None:
    """Refuse a table (with `line`) where one of the columns has an empty field.

    Raises:
        UserError: naming the first such line.
    """
    for column in columns:
        if frame[column].null_count() == 0 and (frame.schema[column] != pl.String or (frame[column] != "").all()):
            continue
        line = frame.filter(pl.col(column).is_null() | (pl.col(column).cast(pl.String) == ""))["line"][0]
        raise UserError(f"{path}, line {line}: '{column}' is missing. Every record needs {', '.join(columns)}.")


def _header(path: Path, separator: str) -> list[str]:
    first = read_text(path).split("\n", 1)[0] if path.suffix == ".gz" else _first_line(path)
    row = pl.read_csv(io.BytesIO(first.encode()), separator=separator, has_header=False, infer_schema=False)
    names = [str(name) for name in row.row(0)]
    if len(set(names)) < len(names):
        raise UserError(f"{path}, line 1: a column name is given twice: {', '.join(names)}.")
    return names


def _first_line(path: Path) -> str:
    with path.open("rb") as file:
        line = file.readline()
    try:
        text = line.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError:
        raise UserError(f"{path}, line 1: not UTF-8 text. Convert the file to UTF-8.") from None
    if not text.strip():
        raise UserError(f"{path}, line 1: expected the names of the columns, got an empty line.")
    return text


def _blame_delimited(path: Path, separator: str, columns: Sequence[str] | None, error: Exception) -> NoReturn:
    lines = read_text(path).split("\n")
    width = len(columns) if columns is not None else lines[0].count(separator) + 1
    for number, line in enumerate(lines, start=1):
        fields = line.count(separator) + 1
        if line.strip() and '"' not in line and fields != width:
            wanted = f" ({', '.join(columns)})" if columns is not None else ""
            raise UserError(f"{path}, line {number}: expected {width} fields{wanted}, got {fields}: {line[:80]!r}.")
    raise UserError(f"{path}: not a readable table ({error}).")


def read_json_lines(path: Path, schema: Mapping[str, pl.DataType]) -> pl.DataFrame:
    """Keys of a file with one JSON object a line; other keys are ignored, blank lines skipped.

    Raises:
        UserError: unreadable, not UTF-8, not JSON, or a key that is missing or of the wrong type, with the line.
    """
    data = read_bytes(path)
    try:
        frame = pl.read_ndjson(io.BytesIO(data), schema=dict(schema)).select(*schema)
    except pl.exceptions.PolarsError as error:
        _blame_json(path, schema)
        raise UserError(f"{path}: not readable as JSON lines ({error}).") from None
    if any(frame[name].null_count() for name in schema) or _converted(frame):
        _blame_json(path, schema)
    return frame


def _converted(frame: pl.DataFrame) -> bool:
    """Whether a text may have been something else, which the reader turns into text without a word."""
    texts = [name for name in frame.columns if frame.schema[name] == pl.String]
    odd = (
        pl.any_horizontal(pl.col(*texts).str.contains(r"^([\[{]|true$|false$|-?\d+[.eE])")) if texts else pl.lit(False)
    )
    return bool(frame.select(odd.any()).item())


def _blame_json(path: Path, schema: Mapping[str, pl.DataType]) -> None:
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number}: not a JSON object ({error}). Expected one a line.") from None
        if not isinstance(record, dict):
            raise UserError(f"{path}, line {number}: expected a JSON object, got {line[:80]!r}.")
        for name, wanted in schema.items():
            kinds, words = _TYPES[wanted]
            if record.get(name) is None:
                raise UserError(f"{path}, line {number}: no '{name}'. Keys here: {', '.join(record)}.")
            if not isinstance(record[name], kinds) or isinstance(record[name], bool):
                raise UserError(f"{path}, line {number}: '{name}' must be {words}, got {record[name]!r}.")
