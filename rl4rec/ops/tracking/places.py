"""Where the artifacts of a project lie, by its database file: kept true when the project is moved or copied.

MLflow stores absolute places, by default `<folder>/mlruns/<experiment>`. In a project that was moved or copied they
name the old folder: MLflow would write there, into the original of a copy, and find nothing where the original is gone.
And a place without a scheme is read as if it were quoted: what is meant for `50%20off` goes to `50 off`.

Only a database inside of the project is looked at, and only places below the project's old folder are changed: other
folders and stores are the user's choice.
"""

from __future__ import annotations

import logging
import os
import re
import sqlite3
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rl4rec.ops.tracking.database import opened

logger = logging.getLogger("rl4rec.tracking")

_RUNS = "mlruns"  # MLflow's folder
_PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
_TO_QUOTE = re.compile(r"[%?#;\t\r\n]")  # what means more than itself in a URI


def mend_places(file: Path, root: Path = Path()) -> bool:
    """Make the places in a database name the present folder, in one transaction; True: there were others.

    Args:
        file: the database, which is there.
        root: the project.
    """
    file, root = file.resolve(), root.resolve()
    try:
        with opened(file) as connection:
            if not _stale(connection, file, root):
                return False
        with opened(file, write=True) as connection:
            connection.execute("BEGIN IMMEDIATE")  # another process may have been faster
            olds = _stale(connection, file, root)
            changed = [_mend(connection, old, root) for old in olds]
            connection.execute("COMMIT")
    except sqlite3.Error as error:
        logger.warning("MLflow: %s: whether its artifacts lie in this project cannot be checked: %s", file.name, error)
        return False
    for old, (mended, elsewhere) in zip(olds, changed, strict=True):
        _report(old, mended, elsewhere, root)
    return bool(olds)


@dataclass(frozen=True)
class _Old:
    """A folder in which the project lay.

    Attributes:
        folder: of the project; the present one if only the quotes are wrong.
        copied: the original is still there, with its own database.
    """

    folder: Path
    copied: bool = False


def _stale(connection: sqlite3.Connection, file: Path, root: Path) -> list[_Old]:
    """The folders whose places in the database are to be changed."""
    defaults: dict[Path, list[tuple[int, int | None]]] = {}  # a folder's experiments in MLflow's default place
    misread = False
    query = "SELECT experiment_id, creation_time, artifact_location FROM experiments"
    for number, created, place in connection.execute(query).fetchall() if _has(connection, "experiments") else []:
        path, read = _readings(place)
        if path is None or (read != path and read.is_relative_to(root)):
            continue
        if path.is_relative_to(root):
            misread |= _quoted(path) != place and _needs_quotes(place)
        elif path.parts[-2:] == (_RUNS, str(number)):
            defaults.setdefault(path.parents[1], []).append((number, created))
    olds = [_Old(root)] if misread else []
    if file.is_relative_to(root):
        for folder, experiments in defaults.items():
            if os.path.exists(folder) and os.path.samefile(folder, root):
                continue
            copied = _has_original(folder / file.relative_to(root), file, experiments)
            if copied or _was_moved(connection, folder, root, [number for number, _ in experiments]):
                olds.append(_Old(folder, copied))
    return olds


def _has(connection: sqlite3.Connection, table: str) -> bool:
    """Whether there is such a table: a database of an early MLflow lacks some."""
    return connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchone() is not None


def _has_original(theirs: Path, ours: Path, experiments: list[tuple[int, int | None]]) -> bool:
    """Whether `theirs` is another database with these experiments, made at the same moment: then ours is a copy."""
    if not os.path.isfile(theirs) or os.path.samefile(theirs, ours):
        return False
    query = "SELECT 1 FROM experiments WHERE experiment_id = ? AND creation_time = ?"
    try:
        with opened(theirs) as connection:
            return any(connection.execute(query, experiment).fetchone() for experiment in experiments)
    except sqlite3.Error:
        return False


def _was_moved(connection: sqlite3.Connection, folder: Path, root: Path, experiments: list[int]) -> bool:
    """Whether what was in `folder` is here: nothing is left there but what MLflow made later, or the files are here."""
    if not os.path.exists(folder / _RUNS) or os.listdir(folder) == [_RUNS]:
        return True
    return any(_files_are_here(connection, root / _RUNS / str(number), number) for number in experiments)


def _files_are_here(connection: sqlite3.Connection, folder: Path, experiment: int) -> bool:
    """Whether a folder has files of a run or model of this experiment in this database."""
    for found, table, key in ((folder, "runs", "run_uuid"), (folder / "models", "logged_models", "model_id")):
        if found.is_dir() and _has(connection, table):
            query = f"SELECT 1 FROM {table} WHERE experiment_id = ? AND {key} = ?"
            if any(connection.execute(query, (experiment, each.name)).fetchone() for each in found.iterdir()):
                return True
    return False


def _mend(connection: sqlite3.Connection, old: _Old, root: Path) -> tuple[int, int]:
    """Change the places below an old folder; how many to tell of, and how many have their files there only."""
    mended = elsewhere = 0
    for table, column in _PLACES:
        if not _has(connection, table):
            continue
        places = [place for (place,) in connection.execute(f"SELECT DISTINCT {column} FROM {table}").fetchall()]
        for place, path, read in _concerned(places, old, root):
            target = root / path.relative_to(old.folder)
            only_there = os.path.exists(read) and not os.path.exists(target)
            elsewhere += only_there
            if old.copied or table == "experiments" or not only_there:
                change = f"UPDATE {table} SET {column} = ? WHERE {column} = ?"
                connection.execute(change, (_quoted(target), place))
                mended += path != old.folder / _RUNS / "0"  # MLflow's own experiment, which has nothing
    return mended, elsewhere


def _concerned(places: list[str | None], old: _Old, root: Path) -> Iterator[tuple[str, Path, Path]]:
    """The places that belong to the project in its old folder: as stored, as meant, as MLflow reads them."""
    whole = old.copied or not os.path.exists(old.folder)  # all in it was the project's
    for place in places:
        path, read = _readings(place)
        if place is None or path is None or not path.is_relative_to(old.folder):
            continue
        if old.folder == root:
            if _needs_quotes(place):
                yield place, path, read
        elif not path.is_relative_to(root):
            inside = path.relative_to(old.folder)
            if whole or inside.parts[:1] == (_RUNS,) or os.path.exists(root / inside):
                yield place, path, read


def _readings(place: str | None) -> tuple[Path, Path] | tuple[None, Path]:
    """A local place as it was meant, and as MLflow reads it; (None, any): it is not local, or not absolute."""
    if place is not None and place.startswith("file:///"):
        path = Path(urllib.request.url2pathname(urllib.parse.urlsplit(place).path))
        return path, path
    if place is not None and place.startswith("/"):
        return Path(place), Path(urllib.request.url2pathname(place))
    return None, Path()


def _needs_quotes(place: str) -> bool:
    return not place.startswith("file:") and _TO_QUOTE.search(place) is not None


def _quoted(path: Path) -> str:
    """A path as a place that MLflow reads rightly."""
    return path.as_uri() if _needs_quotes(str(path)) else str(path)


def _report(old: _Old, mended: int, elsewhere: int, root: Path) -> None:
    if old.folder == root:
        if elsewhere:
            logger.warning(
                "MLflow: the name of the folder %s was misread: new files are written there, %d places have theirs "
                "elsewhere still, where they are read",
                root,
                elsewhere,
            )
        return
    if mended:
        rest = f"; {elsewhere} have their files in {old.folder / _RUNS} only: copy that folder here to have them"
        logger.warning(
            "MLflow: this project was moved or copied from %s: %d places of artifacts mended%s",
            old.folder,
            mended,
            rest if elsewhere else "",
        )
