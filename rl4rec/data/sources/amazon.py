"""Amazon Beauty (2014): found in a folder in any of its published layouts, else downloaded.

Layouts, the first that is there wins: those with real times first, the ready 5-core before the full file.

1. `reviews_Beauty_5.json.gz` or `.json`: JSON lines with `reviewerID`, `asin`, `unixReviewTime`
2. `ratings_Beauty_5.csv.gz` or `.csv`, then `ratings_Beauty.csv.gz` or `.csv`: `user,item,rating,timestamp`, no header
3. `sequential_data.txt` (S3-Rec, P5), with `item_asin.json` beside it where item ids shall be Amazon's

Folders, in this order: `data.path`, `$RL4REC_DATA_HOME`, `data/raw` (where downloads go).
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import polars as pl

from rl4rec.data.download import RemoteFile, download
from rl4rec.data.sources.files import LINE, check_complete, check_ids, read_delimited, read_json_lines
from rl4rec.data.sources.sequences import read_sequences
from rl4rec.errors import UserError, shown
from rl4rec.params import DataParams

LAYOUTS = (
    "reviews_Beauty_5.json.gz",
    "reviews_Beauty_5.json",
    "ratings_Beauty_5.csv.gz",
    "ratings_Beauty_5.csv",
    "ratings_Beauty.csv.gz",
    "ratings_Beauty.csv",
    "sequential_data.txt",
)
ITEM_NAMES = "item_asin.json"
DOWNLOADS = Path("data/raw")

# The host publishes no checksums: it is asked over TLS only, size (as the server states it) and gzip integrity are
# verified, and the digest that was observed is recorded beside the file.
_SNAP = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles"
OFFICIAL = (
    RemoteFile("reviews_Beauty_5.json.gz", f"{_SNAP}/reviews_Beauty_5.json.gz"),
    RemoteFile("ratings_Beauty.csv", f"{_SNAP}/ratings_Beauty.csv"),
)

_log = logging.getLogger(__name__)


def find_beauty(params: DataParams) -> list[Path]:
    """The files of the first layout that is there, or an empty list.

    Raises:
        UserError: `data.path` or `$RL4REC_DATA_HOME` is given but holds no layout.
    """
    if params.path is not None:
        return _find_in(Path(params.path), "data.path")
    home = os.environ.get("RL4REC_DATA_HOME")
    if home:
        return _find_in(Path(home), "RL4REC_DATA_HOME")
    return _layout_in(DOWNLOADS)


def fetch_beauty(params: DataParams) -> list[Path]:
    """Download the official file to `data/raw`.

    Raises:
        UserError: downloading is switched off or every address failed; the message tells what to put where.
    """
    advice = (
        f"Put one of {', '.join(LAYOUTS)} into a folder and name it by RL4REC_DATA_HOME or data.path, "
        f"or into {DOWNLOADS}."
    )
    if not params.download.enabled:
        raise UserError(f"Amazon Beauty is not here and data.download.enabled is false. {advice}")
    reasons = []
    for remote in OFFICIAL:
        try:
            return [download(remote, DOWNLOADS, timeout_s=params.download.timeout_s, retries=params.download.retries)]
        except UserError as error:
            _log.warning("%s", error)
            reasons.append(str(error))
    raise UserError("\n".join(["Amazon Beauty could not be downloaded.", *reasons, advice]))


def read_beauty(files: list[Path]) -> pl.DataFrame:
    """Interactions of the files that `find_beauty` or `fetch_beauty` named: `user`, `item`, `time`.

    Raises:
        UserError: a damaged file, with the line.
    """
    path = files[0]
    kind = path.name.removesuffix(".gz").rsplit(".", 1)[-1]
    if kind == "json":
        schema = {"reviewerID": pl.String(), "asin": pl.String(), "unixReviewTime": pl.Int64()}
        table = read_json_lines(path, schema)
        table = table.rename({"reviewerID": "user", "asin": "item", "unixReviewTime": "time"})
        check_complete(path, table, ("user", "item", "time"))
        check_ids(path, table, table[LINE])
        return table.drop(LINE)
    if kind == "txt":
        return read_sequences(path, files[1] if len(files) > 1 else None)
    columns = ("user", "item", "rating", "timestamp")
    table = read_delimited(path, separator=",", columns=columns, use=("user", "item", "timestamp"))
    times = table["timestamp"].str.strip_chars().cast(pl.Int64, strict=False)
    if times.has_nulls():
        row = int(times.is_null().arg_true()[0])
        raise UserError(
            f"{path}, line {table[LINE][row]}: expected user,item,rating,timestamp with a whole number of seconds, "
            f"got the timestamp {shown(table['timestamp'][row])}. Mend or remove that line."
        )
    check_ids(path, table, table[LINE])
    return table.select("user", "item", times.alias("time"))


def _find_in(place: Path, named_by: str) -> list[Path]:
    if place.is_file():
        if place.name.removesuffix(".gz").rsplit(".", 1)[-1] not in ("json", "csv", "txt"):
            raise UserError(
                f"{named_by}: {place} is none of {', '.join(LAYOUTS)}. Name one of them, or the folder that holds it."
            )
        return _with_names(place)
    if not place.is_dir():
        raise UserError(f"{named_by}: no such file or folder: {place}. It should hold one of {', '.join(LAYOUTS)}.")
    files = _layout_in(place)
    if not files:
        raise UserError(f"{named_by}: {place} holds none of {', '.join(LAYOUTS)}. Put one of them there.")
    return files


def _layout_in(folder: Path) -> list[Path]:
    for name in LAYOUTS:
        if (folder / name).is_file():
            return _with_names(folder / name)
    return []


def _with_names(path: Path) -> list[Path]:
    names = path.parent / ITEM_NAMES
    return [path, names] if path.suffix == ".txt" and names.is_file() else [path]
