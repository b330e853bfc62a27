"""Which files of a folder are interactions."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rl4rec.data.sources.files import table_form
from rl4rec.errors import UserError

_FORMS = ("csv", "tsv", "jsonl", "ndjson", "json", "parquet")


class Store(NamedTuple):
    """The files of a folder and its subfolders, in the order of their paths."""

    tables: list[Path]
    left_out: list[Path]  # of no known form, or tables below a name with an underscore; hidden ones are not counted


def list_store(folder: Path) -> Store:
    """The files of a folder and its subfolders, hidden ones left out; endings count in any case.

    Names that begin with an underscore are those of working files (Spark, Hive, Delta): they are no tables here either.

    Raises:
        UserError: a folder cannot be read, or a file is a link to nothing, a pipe or a device: its interactions would
            be missing.
    """
    found = sorted(_files(folder, set()), key=lambda path: path.relative_to(folder).parts)
    private = {path for path in found if any(part.startswith("_") for part in path.relative_to(folder).parts)}
    tables = [path for path in found if table_form(path) in _FORMS and path not in private]
    for path in tables:
        if not path.is_file():
            raise UserError(f"{path}: not a file (a link to nothing, or a pipe). Remove or replace it.")
    return Store(tables, [path for path in found if (table_form(path) in _FORMS) == (path in private)])


def _files(folder: Path, above: set[str]) -> Iterator[Path]:
    """All that is no folder; links to folders are followed, but never in a circle."""
    real = os.path.realpath(folder)
    if real in above:
        return
    try:
        entries = list(folder.iterdir())
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be read ({error.strerror or error}). See that the folder may be read."
        ) from None
    for path in entries:
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _files(path, above | {real})
        else:
            yield path
