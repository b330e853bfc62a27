"""Reading raw files, so that damage is reported with the file and the line where it is."""

from __future__ import annotations

import difflib
import gzip
import io
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
import polars as pl

from rl4rec._io import parse_json
from rl4rec.errors import UserError, listed, shown

LINE = "<line>"  # column with a record's line number; no likely name of a user's own column
_BLANK = "<blank>"
_LONGEST_ID = 1000  # bytes; what is longer is a file of another kind, or one that lost its line ends
_BOM = b"\xef\xbb\xbf"
_GZIP = b"\x1f\x8b"
_SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
_FOREIGN = {  # first bytes of what is not text
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"PK\x03\x04": "a zip archive or a spreadsheet",
    b"PAR1": "a parquet file",
}

_TYPES: dict[pl.DataType, tuple[tuple[type, ...], str]] = {
    pl.String(): ((str, int), "text or a whole number"),
    pl.Int64(): ((int,), "a whole number"),
    pl.Float64(): ((int, float), "a number"),
}


class NoRecords(UserError):
    """A file that is whole but holds nothing; among others it may be left out."""


def table_form(path: Path) -> str:
    """What a file's name says that it is: its ending in small letters, without `.gz`; empty where there is none."""
    name = path.name.lower().removesuffix(".gz")
    return name.rpartition(".")[2] if "." in name else ""


def read_bytes(path: Path) -> bytes:
    """Content of a file, decompressed where it is a gzip archive, whatever its name.

    Raises:
        UserError: the file is missing, unreadable, empty, a truncated or damaged gzip archive, or not text.
    """
    check_file(path)
    try:
        data = path.read_bytes()
        if _is_gzip(path, data):
            data = gzip.decompress(data)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(
            f"{path}: truncated or damaged gzip file ({error}). Replace it with a complete copy; "
            "`gzip -t` tells whether a copy is whole."
        ) from None
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror or error}). See that the file is there and may be read."
        ) from None
    if not data.removeprefix(_BOM).strip():
        raise UserError(f"{path}: the file is empty. Expected one record per line.")
    for start, what in _FOREIGN.items():
        if data.startswith(start):
            raise UserError(f"{path}: is {what}, not text. Unpack it, or give the file the ending of what it is.")
    return data


def _is_gzip(path: Path, start: bytes) -> bool:
    return path.suffix.lower() == ".gz" or start.startswith(_GZIP)


def check_file(path: Path) -> None:
    """Refuse what is there but is no file: reading a pipe would wait for ever.

    Raises:
        UserError: it is a folder, a pipe or a device.
    """
    try:
        other = path.exists() and not path.is_file()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror or error}). See that the file is there and may be read."
        ) from None
    if other:
        raise UserError(f"{path}: not a file{', but a folder' if path.is_dir() else ''}. Name the file itself.")


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
    """Columns of a delimited text file as text, with `LINE`, the record's line number (from 1).

    Blank lines are skipped. A quoted field that spans lines shifts the line numbers after it.

    Args:
        path: the file; decompressed where its name ends in `.gz`.
        separator: one character.
        columns: names of the columns of a file without a header; None where the first line names them.
        use: the columns to return; none of their fields may be empty.

    Raises:
        UserError: unreadable, not UTF-8, a wrong number of columns, a column or a field that is missing.
    """
    header = columns is None
    check_file(path)
    try:
        source = _delimited_source(path)
        names = list(columns) if columns is not None else _header(path, source, separator)
        _require_columns(path, names, use, separator)
        table = pl.scan_csv(
            source,
            separator=separator,
            has_header=header,
            schema=None if header else {name: pl.String() for name in names},
            infer_schema=False,
            row_index_name=LINE,
            row_index_offset=2 if header else 1,
        )
        # By place: columns that nobody uses may have no name, or one twice, and then the reader gives them others.
        _, *columns_read = table.collect_schema().names()
        used = [pl.col(columns_read[names.index(name)]).alias(name) for name in use]
        # Lines with too many fields are only noticed where every column is read.
        every = pl.all_horizontal(pl.col(*columns_read).is_null())
        frame = table.select(LINE, *used, every.alias(_BLANK)).collect(engine="streaming")
        frame = frame.filter(~pl.col(_BLANK)).drop(_BLANK)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror or error}). See that the file is there and may be read."
        ) from None
    except pl.exceptions.PolarsError as error:
        _blame_delimited(path, separator, columns, error)
    if frame.is_empty():
        raise NoRecords(f"{path}: no records. Expected one interaction per line.")
    check_complete(path, frame, use)
    return frame


def _require_columns(path: Path, names: Sequence[str], use: Sequence[str], separator: str) -> None:
    twice = next((name for name in use if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{path}, line 1: a column name is given twice: '{twice}'. Rename one of them.")
    missing = next((name for name in use if name not in names), None)
    if missing is None:
        return
    other = next((each for each in _SEPARATORS if each in names[0]), None) if len(names) == 1 else None
    if other is not None:
        raise UserError(
            f"{path}, line 1: no column '{missing}': fields seem to be separated by {_SEPARATORS[other]}, and this "
            f"ending stands for {_SEPARATORS[separator]}. Export it as .csv with commas, .tsv with tabs, or parquet."
        )
    near = difflib.get_close_matches(missing, names, n=1)
    hint = f"Did you mean '{near[0]}'? " if near else ""
    raise UserError(
        f"{path}, line 1: no column '{missing}'. The file has: {listed(names)}. "
        f"{hint}Name yours under data.columns in params.yaml."
    )


def check_complete(path: Path, frame: pl.DataFrame, columns: Sequence[str]) -> None:
    """Refuse a table (with `LINE`) where one of the columns has an empty field.

    Raises:
        UserError: naming the first such line.
    """
    for column in columns:
        text = frame.schema[column] == pl.String
        if frame[column].null_count() == 0 and (not text or (frame[column] != "").all()):
            continue
        empty = pl.col(column).is_null() | (pl.col(column) == "") if text else pl.col(column).is_null()
        line = frame.filter(empty)[LINE][0]
        raise UserError(
            f"{path}, line {line}: '{column}' is missing. Every record needs {', '.join(columns)}. "
            "Mend or remove that line."
        )


def check_ids(path: Path, frame: pl.DataFrame, lines: pl.Series | None = None) -> None:
    """Refuse ids (`user`, `item`) that no file should hold: endless ones, or with null bytes.

    Args:
        path: the file, for the message.
        frame: with `user` and `item` (String).
        lines: line of each record; None: its number.

    Raises:
        UserError: naming the first such line.
    """
    for column in ("user", "item"):
        ids = frame[column]
        long, null = ids.str.len_bytes() > _LONGEST_ID, ids.str.contains("\0", literal=True)
        if not (long.any() or null.any()):
            continue
        row = int((long | null).arg_true()[0])
        problem = "holds a null byte: the file is damaged" if null[row] else f"is longer than {_LONGEST_ID} bytes"
        line = row + 1 if lines is None else lines[row]
        raise UserError(f"{path}, line {line}: the {column} {shown(ids[row])} {problem}. Mend or remove that line.")


def _delimited_source(path: Path) -> Path | io.BytesIO:
    """The file itself, or its content where that is compressed, starts with a byte order mark or is not text."""
    with path.open("rb") as file:
        start = file.read(8)
    if not start or _is_gzip(path, start) or start.startswith((_BOM, *_FOREIGN)):
        return io.BytesIO(read_bytes(path).removeprefix(_BOM))
    return path


def _header(path: Path, source: Path | io.BytesIO, separator: str) -> list[str]:
    first = _first_line(path) if isinstance(source, Path) else read_text(path).split("\n", 1)[0]
    if "\r" in first.rstrip("\r"):
        raise UserError(f"{path}, line 1: lines end with a bare carriage return. Convert them to end with a newline.")
    row = pl.read_csv(io.BytesIO(first.encode()), separator=separator, has_header=False, infer_schema=False)
    return ["" if name is None else str(name) for name in row.row(0)]


def _first_line(path: Path) -> str:
    with path.open("rb") as file:
        line = file.readline()
    try:
        text = line.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError:
        raise UserError(f"{path}, line 1: not UTF-8 text. Convert the file to UTF-8.") from None
    if not text.strip():
        raise UserError(
            f"{path}, line 1: expected the names of the columns, got an empty line. "
            "Remove that line, or write the names there."
        )
    return text


def _blame_delimited(path: Path, separator: str, columns: Sequence[str] | None, error: Exception) -> NoReturn:
    lines = read_text(path).split("\n")
    width = len(columns) if columns is not None else lines[0].count(separator) + 1
    for number, line in enumerate(lines, start=1):
        fields = line.count(separator) + 1
        if line.strip() and '"' not in line and fields != width:
            wanted = f" ({', '.join(columns)})" if columns is not None else ""
            raise UserError(
                f"{path}, line {number}: expected {width} fields{wanted}, got {fields}: {shown(line)}. "
                "Mend or remove that line."
            )
    for number, line in enumerate(lines, start=1):
        if line.count('"') % 2:
            raise UserError(
                f"{path}, line {number}: a quote that is not closed, or not doubled inside of a quoted field: "
                f"{shown(line)}."
            )
    raise UserError(f"{path}: not a readable table ({error}). Export it again, or as parquet.")


def read_json_lines(path: Path, schema: Mapping[str, pl.DataType]) -> pl.DataFrame:
    """Keys of a file with one JSON object per line, with `LINE`; other keys are ignored, blank lines skipped.

    Raises:
        UserError: unreadable, not UTF-8, not JSON, or a key that is missing or of the wrong type, with the line.
    """
    data = read_bytes(path).removeprefix(_BOM)
    try:
        frame = pl.read_ndjson(io.BytesIO(data), schema=dict(schema)).select(*schema)
    except pl.exceptions.PolarsError as error:
        _blame_json(path, schema)
        raise UserError(f"{path}: not readable as JSON lines ({error}). Expected one JSON object per line.") from None
    if any(frame[name].null_count() for name in schema) or _converted(frame):
        _blame_json(path, schema)
    return frame.insert_column(0, _line_numbers(data, len(frame)))


def _line_numbers(data: bytes, records: int) -> pl.Series:
    """The line of each record, where blank lines are none."""
    numbers = np.arange(1, records + 1)
    if data.count(b"\n") + (not data.endswith(b"\n")) != records:
        numbers = np.array([number for number, line in enumerate(data.split(b"\n"), start=1) if line.strip()])
    return pl.Series(LINE, numbers[:records])


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
            record = parse_json(line, constants=False)
        except ValueError as error:
            raise UserError(f"{path}, line {number}: not a JSON object ({error}). Expected one per line.") from None
        if not isinstance(record, dict):
            raise UserError(
                f"{path}, line {number}: expected a JSON object, got {shown(line)}. Mend or remove that line."
            )
        for name, wanted in schema.items():
            kinds, words = _TYPES[wanted]
            if record.get(name) is None:
                raise UserError(
                    f"{path}, line {number}: no '{name}'. Keys here: {listed(record)}. "
                    "Add it, or name yours under data.columns."
                )
            if not isinstance(record[name], kinds) or isinstance(record[name], bool):
                raise UserError(
                    f"{path}, line {number}: '{name}' must be {words}, got {shown(record[name])}. "
                    "Mend or remove that line."
                )
            if isinstance(record[name], int) and not -(2**63) <= record[name] < 2**63:
                raise UserError(
                    f"{path}, line {number}: '{name}' does not fit 64 bits: {shown(record[name])}. "
                    "Mend or remove that line."
                )
