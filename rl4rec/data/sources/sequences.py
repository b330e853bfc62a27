"""A user's own sequences: one user a line, `user item ... item`, oldest item first, separated by white space."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl

from rl4rec.data.sources.files import read_text
from rl4rec.errors import UserError


def read_sequences(path: Path, item_names: Path | None = None) -> pl.DataFrame:
    """Interactions of a sequence file.

    Args:
        path: UTF-8 text, `.gz` allowed. Blank lines are skipped.
        item_names: JSON object that maps the item ids of the file to the ids to use, or None to use them as they are.

    Returns:
        `user`, `item` (String) and `time` (Int64, the item's position in its line, from 0).

    Raises:
        UserError: an unreadable file, a user without items or on two lines, an id that `item_names` lacks.
    """
    lines = pl.DataFrame({"text": read_text(path).split("\n")}).with_row_index("line", offset=1)
    words = lines.select("line", pl.col("text").str.extract_all(r"\S+").alias("words"))
    words = words.filter(pl.col("words").list.len() > 0)
    users = words.select(
        "line", pl.col("words").list.first().alias("user"), pl.col("words").list.slice(1).alias("item")
    )
    alone = users.filter(pl.col("item").list.len() == 0)
    if len(alone):
        line, user = alone.row(0)[:2]
        raise UserError(f"{path}, line {line}: user '{user}' has no items. Expected `user item ... item`.")
    again = users.filter(pl.col("user").is_duplicated())
    if len(again):
        user = again["user"][0]
        first, second = again.filter(pl.col("user") == user)["line"].head(2)
        raise UserError(
            f"{path}, line {second}: user '{user}' was already on line {first}. Put all items of a user on one line."
        )
    users = users.with_columns(pl.int_ranges(pl.col("item").list.len(), dtype=pl.Int64).alias("time"))
    events = users.explode("item", "time")
    if item_names is not None:
        events = _rename(events, path, item_names)
    return events.select("user", "item", "time")


def _rename(events: pl.DataFrame, path: Path, item_names: Path) -> pl.DataFrame:
    try:
        names = json.loads(read_text(item_names))
    except json.JSONDecodeError as error:
        raise UserError(f"{item_names}, line {error.lineno}: not JSON ({error.msg}).") from None
    if not isinstance(names, dict) or not all(isinstance(name, str) and name for name in names.values()):
        raise UserError(f"{item_names}: expected a JSON object of item id: name, both text.")
    if len(set(names.values())) < len(names):
        raise UserError(f"{item_names}: two item ids have the same name. Names must be unique.")
    table = pl.DataFrame(
        {"item": list(names), "name": list(names.values())}, schema={"item": pl.String, "name": pl.String}
    )
    renamed = events.join(table, on="item", how="left", maintain_order="left")
    lost = renamed.filter(pl.col("name").is_null())
    if len(lost):
        raise UserError(f"{path}, line {lost['line'][0]}: item '{lost['item'][0]}' is not in {item_names.name}.")
    return renamed.select("user", pl.col("name").alias("item"), "time")
