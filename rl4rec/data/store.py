"""Which files of a folder are interactions."""

from __future__ import annotations

from pathlib import Path

from rl4rec.errors import UserError

_FORMS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")


def store_files(folder: Path) -> list[Path]:
    """The tables of a folder by name, hidden files and folders left out.

    Raises:
        UserError: the folder cannot be read, or a table is a link to nothing: its interactions would be missing.
    """
    try:
        tables = sorted(
            path
            for path in folder.iterdir()
            if not path.name.startswith(".") and path.name.removesuffix(".gz").endswith(_FORMS) and not path.is_dir()
        )
        for path in tables:
            if not path.is_file():
                raise UserError(f"{path}: not a file (a link to nothing, or a pipe). Remove or replace it.")
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be read ({error.strerror or error}). See that the folder may be read."
        ) from None
    return tables
