"""Files: JSON, YAML and parquet that may be damaged are read with checks; what is written appears whole or not at all.

Parquet goes through pyarrow, whose reader checks what it reads. That of polars 2.1 believes the sizes that a file
states, and a damaged byte can end the whole process ("memory allocation failed") where no exception can be caught.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from rl4rec.errors import UserError, listed, shown

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa


def parse_json(text: str, *, constants: bool = True) -> Any:
    """A JSON document.

    Args:
        text: the document.
        constants: take NaN and Infinity, which Python writes and JSON does not know.

    Raises:
        ValueError: it is not one, or nested too deeply to be read.
    """
    try:
        return json.loads(text, parse_constant=None if constants else _refuse_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def read_json(path: Path, *, then: str) -> dict[str, Any]:
    """The JSON object of a file.

    Args:
        path: UTF-8 text (a byte order mark is dropped).
        then: what to do where it is damaged, for the message.

    Raises:
        UserError: the file is missing, unreadable, not JSON or not an object.
    """
    try:
        content = parse_json(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file. {then}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}). {then}") from None
    except ValueError as error:  # UnicodeDecodeError too
        raise UserError(f"{path}: not JSON ({str(error)[:200]}). {then}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object, got {shown(content)}. {then}")
    return content


_MAX_BYTES = 1_000_000
_MAX_VALUES = 100_000  # with every alias counted as what it stands for: a few lines of aliases can mean billions


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice (plain YAML silently keeps the last) and aliases that multiply."""

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()
        if node is not None:
            _count(node, {}, ())
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[object] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue  # not a key: `<<` takes over the keys of another mapping
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {shown(key)} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _count(node: yaml.Node, known: dict[int, int], above: tuple[int, ...]) -> int:
    """How many values a node stands for."""
    if id(node) in above:
        raise yaml.constructor.ConstructorError(None, None, "an alias stands for itself", node.start_mark)
    if id(node) not in known:
        parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        inner = parts if isinstance(node, yaml.CollectionNode) else ()
        known[id(node)] = 1 + sum(_count(part, known, (*above, id(node))) for part in inner)
        if known[id(node)] > _MAX_VALUES:
            raise yaml.constructor.ConstructorError(
                None, None, f"stands for more than {_MAX_VALUES} values", node.start_mark
            )
    return known[id(node)]


def read_yaml(path: Path) -> Any:
    """The content of a YAML file; None where it is empty.

    Raises:
        UserError: the file is missing, unreadable, not UTF-8 or not plain YAML; the message names the line.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise UserError(f"{path}: more than {_MAX_BYTES} bytes: that is no file of settings. Name the right one.")
        return yaml.load(data.decode("utf-8-sig"), Loader=_StrictLoader)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file. Run from the project's root, or name the file.") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}: cannot be read: not UTF-8 text. Convert the file to UTF-8.") from None
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read: {error.strerror or error}. See that it is a file that may be read"
        ) from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {error}. Mend it there") from None
    except RecursionError:
        raise UserError(
            f"{path}: not valid YAML: nested too deeply. Write settings as `section: {{key: value}}`."
        ) from None
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        # What PyYAML raises for values that look like a date, a number or a key, but are none.
        raise UserError(
            f"{path}: not valid YAML: {str(error)[:200]}. Put text that looks like a date or number into quotes"
        ) from None


def read_parquet(
    path: Path, columns: Sequence[str] | None = None, *, then: str = "", named_by: str = ""
) -> pl.DataFrame:
    """The table of a parquet file.

    Args:
        path: the file.
        columns: which columns, in this order; None: all of them.
        then: what to do where it is missing or damaged, for the message.
        named_by: where the names of the columns come from, for the message.

    Raises:
        UserError: the file is missing, unreadable, no parquet file or damaged, or a column is missing.
    """
    import polars as pl
    import pyarrow.parquet as pq

    then = f" {then}" if then else ""
    try:
        if not path.exists():
            raise UserError(f"{path}: no such file.{then}")
        if not path.is_file():
            raise UserError(f"{path}: not a file. Name a parquet file.{then}")
        # Other units would wrap around for years outside of 1677 to 2262.
        with pq.ParquetFile(path, coerce_int96_timestamp_unit="us") as file:
            names = file.schema_arrow.names
            for column in columns or ():
                if column not in names:
                    raise UserError(f"{path}: no column '{column}'. The file has: {listed(names)}.{named_by}{then}")
            table = file.read(columns=None if columns is None else list(columns))
        table.validate(full=True)  # text that is not UTF-8, lists that lead outside of their values
        frame = pl.from_arrow(_in_utc(table))
        assert isinstance(frame, pl.DataFrame)
        return frame if columns is None else frame.select(columns)
    except UserError:
        raise
    except (Exception, pl.exceptions.PanicException) as error:  # whatever the two libraries stumble over
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not a readable parquet file ({reason}).{then}") from None


def _in_utc(table: pa.Table) -> pa.Table:
    """Instants in UTC: a zone changes nothing about them, and not every library knows every name of a zone."""
    import pyarrow as pa

    for place, field in enumerate(table.schema):
        if pa.types.is_timestamp(field.type) and field.type.tz not in (None, "UTC"):
            instants = table.column(place).cast(pa.timestamp(field.type.unit, "UTC"))
            table = table.set_column(place, field.name, instants)
    return table


def write_text(path: Path, text: str) -> None:
    """Write a text file through a temporary sibling, so that a reader never sees half of it."""
    with _replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a binary file as `write_text` writes text."""
    with _replacing(path) as part:
        part.write_bytes(content)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON with sorted keys: equal content, equal bytes."""
    write_text(path, json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n")


def write_parquet(path: Path, table: pl.DataFrame) -> None:
    """Write a table as `write_text` writes text."""
    with _replacing(path) as part:
        table.write_parquet(part)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary sibling that takes the place of `path` when the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
