"""Which files of a folder are interactions."""

from __future__ import annotations

from pathlib import Path

_FORMS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")


def store_files(folder: Path) -> list[Path]:
    """The tables of a folder by name, hidden files left out."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_file() and not path.name.startswith(".") and path.name.removesuffix(".gz").endswith(_FORMS)
    )
