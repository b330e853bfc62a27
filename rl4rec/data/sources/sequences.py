"""A user's own sequences: one user a line, `user item ... item`, oldest item first, separated by white space."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from rl4rec._io import parse_json
from rl4rec.data.sources.files import check_ids, read_text
from rl4rec.errors import UserError, shown


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
    text = read_text(path)
    if "\r" in text.replace("\r\n", "\n"):
        raise UserError(f"{path}: lines end with a bare carriage return. Convert them to end with a newline.")
    lines = pl.DataFrame({"text": text.split("\n")}).with_row_index("line", offset=1)
    words = lines.select("line", pl.col("text").str.extract_all(r"\S+").alias("words"))
    words = words.filter(pl.col("words").list.len() > 0)
    users = words.select(
        "line", pl.col("words").list.first().alias("user"), pl.col("words").list.slice(1).alias("item")
    )
    alone = users.filter(pl.col("item").list.len() == 0)
    if len(alone):
        line, user = alone.row(0)[:2]
        raise UserError(f"{path}, line {line}: user {shown(user)} has no items. Expected `user item ... item`.")
    again = users.filter(pl.col("user").is_duplicated())
    if len(again):
        user = again["user"][0]
        first, second = again.filter(pl.col("user") == user)["line"].head(2)
        raise UserError(
            f"{path}, line {second}: user {shown(user)} was already on line {first}. "
            "Put all items of a user on one line."
        )
    users = users.with_columns(pl.int_ranges(pl.col("item").list.len(), dtype=pl.Int64).alias("time"))
    events = users.explode("item", "time")
    check_ids(path, events, events["line"])
    if item_names is not None:
        events = _rename(events, path, item_names)
    return events.select("user", "item", "time")


def _rename(events: pl.DataFrame, path: Path, item_names: Path) -> pl.DataFrame:
    try:
        names = parse_json(read_text(item_names))
    except ValueError as error:
        raise UserError(
            f"{item_names}: not JSON ({error}). "
            "Replace it with the published file, or remove it to keep the numbers of the items."
        ) from None
    if not isinstance(names, dict) or not all(isinstance(name, str) and name for name in names.values()):
        raise UserError(
            f"{item_names}: expected a JSON object of item id: name, both text. "
            "Replace it with the published file, or remove it to keep the numbers of the items."
        )
    if len(set(names.values())) < len(names):
        raise UserError(f"{item_names}: two item ids have the same name. Names must be unique.")
    try:
        schema = {"item": pl.String, "name": pl.String}
        table = pl.DataFrame({"item": list(names), "name": list(names.values())}, schema=schema)
    except UnicodeEncodeError:
        raise UserError(
            f"{item_names}: half a surrogate pair (\\ud800 to \\udfff) is no character. "
            "Replace it with the published file."
        ) from None
    check_ids(item_names, table.select(user="item", item="name"))
    renamed = events.join(table, on="item", how="left", maintain_order="left")
    lost = renamed.filter(pl.col("name").is_null())
    if len(lost):
        raise UserError(
            f"{path}, line {lost['line'][0]}: item {shown(lost['item'][0])} is not in {item_names.name}. "
            "Add it there, or remove that file to keep the numbers of the items."
        )
    return renamed.select("user", pl.col("name").alias("item"), "time")
