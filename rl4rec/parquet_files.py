"""Reading parquet files that may be damaged, or made to do damage.

Through pyarrow: its reader checks what it reads. That of polars 2.1 believes the sizes that a file states, and a
damaged byte can end the whole process ("memory allocation failed") where no exception can be caught.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq

from rl4rec.errors import UserError, listed


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
    then = f" {then}" if then else ""
    try:
        if not path.exists():
            raise UserError(f"{path}: no such file.{then}")
        if not path.is_file():
            raise UserError(f"{path}: not a file. Name a parquet file.{then}")
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            for column in columns or ():
                if column not in names:
                    raise UserError(f"{path}: no column '{column}'. The file has: {listed(names)}.{named_by}{then}")
            table = file.read(columns=None if columns is None else list(columns))
        table.validate(full=True)  # text that is not UTF-8, lists that lead outside of their values
        frame = pl.from_arrow(table)
        assert isinstance(frame, pl.DataFrame)
        return frame if columns is None else frame.select(columns)
    except UserError:
        raise
    except (Exception, pl.exceptions.PanicException) as error:  # whatever the two libraries stumble over
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not a readable parquet file ({reason}).{then}") from None
