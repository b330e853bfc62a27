"""MLflow's database where it is a file: made in one step, and refused where another MLflow has written it."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from rl4rec.errors import UserError

_PREFIX = "sqlite:///"
_LOCK_SECONDS = 30.0  # as long as others write


class UnfitDatabase(UserError):
    """A database that MLflow cannot use as it is, but can once it is mended: what was to go there waits."""


def database_file(address: str) -> Path | None:
    """The file of an address such as `sqlite:///mlflow.db`; None: it names no file."""
    if not address.startswith(_PREFIX):
        return None
    from sqlalchemy.engine import make_url

    name = make_url(address).database  # as MLflow reads it
    return None if name in (None, "", ":memory:") else Path(str(name))


def make_database(file: Path) -> None:
    """Make a database file that is not there yet, in one step.

    MLflow needs seconds to build its tables, and cannot go on with a database whose building was interrupted.
    """
    if file.exists():
        return
    import mlflow

    draft = file.with_name(f".{file.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    mlflow.MlflowClient(f"{_PREFIX}{draft}").search_experiments(max_results=1)
    with contextlib.suppress(FileExistsError):  # another process was faster
        os.link(draft, file)
    draft.unlink()


@contextlib.contextmanager
def opened(file: Path, *, write: bool = False) -> Iterator[sqlite3.Connection]:
    """A connection to a database file that is there; without `write` nothing can be changed through it."""
    address = f"{file.resolve().as_uri()}?mode={'rw' if write else 'ro'}"
    with contextlib.closing(
        sqlite3.connect(address, uri=True, timeout=_LOCK_SECONDS, isolation_level=None)
    ) as connection:
        yield connection


def check_version(file: Path) -> None:
    """Refuse a database of another version of MLflow, which MLflow would refuse too, or upgrade without a copy.

    Raises:
        UnfitDatabase: it is of another version, or no database.
    """
    try:
        with opened(file) as connection:
            if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchone():
                return  # empty
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.OperationalError:
        return  # locked, or no right to read it: MLflow says so
    except sqlite3.DatabaseError as error:
        raise UnfitDatabase(
            f"{file}: not a database of MLflow ({error}). Put back a copy, or move the file away: a new one is made"
        ) from None
    if row is not None:
        _require_known(file, str(row[0]))


def _require_known(file: Path, found: str) -> None:
    import mlflow
    from alembic.script import ScriptDirectory

    script = ScriptDirectory(str(Path(mlflow.__file__).parent / "store" / "db_migrations"))
    if found == script.get_current_head():
        return
    if found in {revision.revision for revision in script.walk_revisions()}:
        raise UnfitDatabase(
            f"{file}: an older MLflow than {mlflow.__version__} has written this database. Copy the file, then run "
            f"`mlflow db upgrade '{_PREFIX}{file}'`"
        )
    raise UnfitDatabase(
        f"{file}: another MLflow than {mlflow.__version__}, likely a newer one, has written this database (schema "
        f"{found}). Install that version, put back a copy from before, or name another database (tracking.uri)"
    )
