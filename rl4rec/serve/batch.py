"""Lists for all users of a file: `rl4rec recommend`."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from rl4rec._console import Progress
from rl4rec._io import read_parquet
from rl4rec.errors import UserError, listed, shown
from rl4rec.serve.recommender import Recommender

_AT_ONCE = 4096  # users between two writes
_LISTS = pl.List(pl.String)


def recommend_file(recommender: Recommender, users: Path, out: Path, *, k: int) -> int:
    """Rank the catalogue for each row of a table and write the lists as parquet, whole or not at all.

    Args:
        recommender: what ranks.
        users: `.parquet` or `.jsonl` with a column `history` of lists of item ids, oldest first; optional `exclude`,
            lists of items not to show. Other columns (a user id, say) are kept.
        out: parquet file with the columns of `users` but `history` and `exclude`, and `items`, `scores`, `unknown`.
        k: length of the lists.

    Returns:
        How many lists were written.

    Raises:
        UserError: the file cannot be read, a column is missing or of another type, or k is out of range.
    """
    table = _read(users)
    kept = table.drop("history", "exclude", strict=False)
    if out.is_dir():
        raise UserError(f"{out}: is a folder. Name the parquet file to write.")
    try:
        pq.write_table(kept.clear().to_arrow(), io.BytesIO())
    except pa.ArrowException as error:
        raise UserError(f"{users}: a column that parquet cannot hold ({error}). Leave it out.") from None
    part = out.with_name(f"{out.name}.{os.getpid()}.part")
    writer: pq.ParquetWriter | None = None
    try:
        for start, block in _blocks(table):
            exclude = block["exclude"].fill_null([]).to_list() if "exclude" in block.columns else None
            try:
                answers = recommender.recommend(block["history"].fill_null([]).to_list(), k=k, exclude=exclude)
            except ValueError as error:
                raise UserError(f"{users}: {error}") from None
            lists = {
                "items": pl.Series([answer.items for answer in answers], dtype=_LISTS),
                "scores": pl.Series([answer.scores for answer in answers], dtype=pl.List(pl.Float32)),
                "unknown": pl.Series([answer.unknown for answer in answers], dtype=_LISTS),
            }
            rows: pa.Table = kept.slice(start, len(block)).with_columns(**lists).to_arrow()
            if writer is None:
                out.parent.mkdir(parents=True, exist_ok=True)
                writer = pq.ParquetWriter(part, rows.schema)
            writer.write_table(rows.cast(writer.schema))
        if writer is not None:
            writer.close()
        os.replace(part, out)
    finally:
        part.unlink(missing_ok=True)
    return len(table)


def _blocks(table: pl.DataFrame) -> Iterator[tuple[int, pl.DataFrame]]:
    with Progress("recommend", total=len(table), unit="user") as progress:
        for start in range(0, len(table), _AT_ONCE):
            block = table.slice(start, _AT_ONCE)
            yield start, block
            progress.update(len(block))


def _read(path: Path) -> pl.DataFrame:
    match path.suffix:
        case ".parquet":
            table = read_parquet(path)
        case ".jsonl" | ".ndjson":
            table = _read_json_lines(path)
        case other:
            raise UserError(f"{path}: unknown form {shown(other)}. Expected .parquet or .jsonl.")
    if "history" not in table.columns:
        raise UserError(
            f"{path}: no column 'history'. The file has: {listed(table.columns)}. "
            "Name the one with lists of item ids history."
        )
    if table.is_empty():
        raise UserError(f"{path}: no users. Give it a row for each history.")
    for name in {"history", "exclude"} & set(table.columns):
        kind = table.schema[name]
        whole = isinstance(kind, pl.List) and kind.inner.is_integer()
        if whole or kind == pl.List(pl.Null):  # ids that are numbers, or only empty lists
            table = table.with_columns(pl.col(name).cast(_LISTS))
        elif kind not in (_LISTS, pl.List(pl.Categorical)):
            raise UserError(
                f"{path}: column '{name}' must hold lists of item ids (text or whole numbers), but it holds {kind}. "
                "Convert it."
            )
    taken = {"items", "scores", "unknown"} & set(table.columns)
    if taken:
        raise UserError(f"{path}: column '{min(taken)}' would be overwritten by the result. Rename it.")
    return table


def _read_json_lines(path: Path) -> pl.DataFrame:
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: not a file. Name a parquet or JSON lines file.")
    try:
        data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
        return pl.read_ndjson(io.BytesIO(data), infer_schema_length=None) if data.strip() else pl.DataFrame()
    except (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path}: cannot be read ({reason}). Expected one JSON object per line, with a key history."
        ) from None
