"""The table of malformed inputs: what is damaged, which command meets it, and what its message must say."""

# ruff: noqa: E501 - a table: a row a line

from __future__ import annotations

import gzip
import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import yaml

Damage = Callable[[Path], object]


class Case(NamedTuple):
    """One malformed input."""

    name: str
    command: tuple[str, ...]
    damage: Damage  # applied to a whole workspace
    says: tuple[str, ...]  # parts of the message: the file with its line or key, what was expected


class Bomb:
    """Pickled, this makes the file `executed` when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch executed",)


PICKLE = pickle.dumps(Bomb())

# Found by fuzzing: polars 2.1 believes the number of values that a damaged page states, and the process is ended.
HUGE_PAGE = (Path(__file__).parent / "huge_page.parquet").read_bytes()

# --- damages ---------------------------------------------------------------------------------------


def put(name: str, content: bytes | str) -> Damage:
    """A file with this content; compressed where its name ends in `.gz`."""

    def damage(folder: Path) -> None:
        data = content.encode() if isinstance(content, str) else content
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)

    return damage


def raw(name: str, content: bytes) -> Damage:
    """A file with these bytes, whatever its name."""
    return lambda folder: (folder / name).write_bytes(content)


def both(*damages: Damage) -> Damage:
    return lambda folder: [damage(folder) for damage in damages]


def cut(name: str, keep: float) -> Damage:
    """The file without its end."""

    def damage(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * keep)])

    return damage


def flip(name: str, place: float) -> Damage:
    """The file with one byte changed."""

    def damage(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[int(len(data) * place)] ^= 0xFF
        (folder / name).write_bytes(bytes(data))

    return damage


def gone(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def as_folder(name: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir(parents=True)

    return damage


def as_loop(name: str) -> Damage:
    """A symbolic link that leads to itself."""

    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(folder / name)

    return damage


def as_pipe(name: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return damage


def parquet(name: str, **columns: object) -> Damage:
    """A parquet file with these columns."""
    return lambda folder: pl.DataFrame(columns).write_parquet(folder / name)


def edit_json(name: str, change: Callable[[dict[str, Any]], object]) -> Damage:
    def damage(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))

    return damage


def edit_parquet(name: str, change: Callable[[pl.DataFrame], pl.DataFrame]) -> Damage:
    return lambda folder: change(pl.read_parquet(folder / name)).write_parquet(folder / name)


def settings(**changes: object) -> Damage:
    """Sections of params.yaml replaced."""

    def damage(folder: Path) -> None:
        content = yaml.safe_load((folder / "params.yaml").read_text())
        (folder / "params.yaml").write_text(yaml.safe_dump(content | changes))

    return damage


def source(kind: str, path: str, **more: object) -> Damage:
    return settings(data={"source": kind, "path": path, "k_core": 1, **more})


# --- interactions ----------------------------------------------------------------------------------

HEAD = "user,item,timestamp\n"
GOOD = HEAD + "u,a,1\nu,b,2\nu,c,3\nv,a,1\n"


def delivery(name: str, damage: Damage, *says: str, file: str = "new.csv") -> Case:
    return Case(f"ingest: {name}", ("rl4rec", "ingest", file), damage, says)


DELIVERIES = [
    delivery("empty file", put("new.csv", ""), "new.csv: the file is empty"),
    delivery("blank lines only", put("new.csv", "\n\n\r\n"), "new.csv", "empty line"),
    delivery("header only", put("new.csv", HEAD), "new.csv: no records"),
    delivery("no such file", gone("new.csv"), "new.csv: cannot be read"),
    delivery("folder for a file", as_folder("new.csv"), "new.csv: not a file, but a folder"),
    delivery("link to itself", as_loop("new.csv"), "new.csv: cannot be read"),
    delivery("pipe", as_pipe("new.csv"), "new.csv: not a file"),
    delivery("unknown form", put("new.xlsx", GOOD), "new.xlsx: unknown form '.xlsx'", file="new.xlsx"),
    delivery("wrong delimiter", put("new.csv", GOOD.replace(",", ";")), "line 1: no column 'user'", "separated by semicolons", ".csv with commas"),
    delivery("missing column", put("new.csv", "user,item\nu,a\n"), "line 1: no column 'timestamp'", "data.columns"),
    delivery("column twice", put("new.csv", "user,user,item,timestamp\n"), "line 1: a column name is given twice"),
    delivery("bare carriage returns", put("new.csv", GOOD.replace("\n", "\r")), "line 1", "carriage return"),
    delivery("field missing", put("new.csv", GOOD + "w,,3\n"), "line 6: 'item' is missing"),
    delivery("line cut off", put("new.csv", GOOD + "w,a"), "line 6: 'timestamp' is missing"),
    delivery("too many fields", put("new.csv", GOOD + "w,a,3,9\n"), "line 6: expected 3 fields, got 4"),
    delivery("open quote", put("new.csv", GOOD + 'w,"a,3\nx,b,4\n'), "line 6: a quote that is not closed"),
    delivery("not UTF-8 in a field", put("new.csv", GOOD.encode() + b"w,\xff,3\n"), "line 6: not UTF-8 text (byte 0xff)"),
    delivery("not UTF-8 in the header", put("new.csv", b"us\xe9r,item,timestamp\n"), "line 1: not UTF-8"),
    delivery("UTF-16", put("new.csv", GOOD.encode("utf-16")), "line 1: not UTF-8"),
    delivery("null bytes", put("new.csv", GOOD + "w,a\0b,3\n"), "line 6: the item 'a\\x00b' holds a null byte"),
    delivery("null bytes for a line", put("new.csv", GOOD + "\0" * 40 + "\nw,a,3\n"), "line 6: 'item' is missing"),
    delivery("10 MB line", put("new.csv", GOOD + "w," + "a" * 10_000_000 + ",3\n"), "line 6: the item 'aaa", "longer than"),
    delivery("10 MB header", put("new.csv", "u" * 10_000_000 + ",item,timestamp\nu,a,1\n"), "line 1: no column 'user'"),
    delivery("timestamp of words", put("new.csv", GOOD + "w,a,soon\n"), "line 6: 'timestamp' is not a number", "'soon'"),
    delivery("timestamp NaN", put("new.csv", GOOD + "w,a,nan\n"), "line 6: 'timestamp' is not a number like the first, '1': 'nan'"),
    delivery("timestamp infinite", put("new.csv", GOOD + "w,a,1e999\n"), "line 6: 'timestamp' is not a number like the first, '1': '1e999'"),
    delivery("timestamp beyond 64 bits", put("new.csv", GOOD + f"w,a,{2**70}\n"), "line 6: 'timestamp' is about 1.18059e+21", "at most 64 bits"),
    delivery("date that is none", put("new.csv", HEAD + "u,a,2024-02-30\n"), "line 2: 'timestamp' is not", "2024-02-30"),
    delivery("truncated gzip", both(put("new.csv.gz", GOOD * 500), cut("new.csv.gz", 0.6)), "new.csv.gz: truncated or damaged", file="new.csv.gz"),
    delivery("gzip that is none", raw("new.csv.gz", GOOD.encode()), "new.csv.gz: truncated or damaged", file="new.csv.gz"),
    delivery("gzip with a wrong checksum", both(put("new.csv.gz", GOOD * 500), flip("new.csv.gz", 0.999)), "new.csv.gz", file="new.csv.gz"),
    delivery("pickle for a table", raw("new.csv", PICKLE), "new.csv, line 1"),
    delivery("JSON that is none", put("new.jsonl", '{"user": "u", \n'), "new.jsonl, line 1: not a JSON object", file="new.jsonl"),
    delivery("JSON list", put("new.jsonl", '[{"user": "u"}]\n'), "line 1: expected a JSON object", file="new.jsonl"),
    delivery("JSON key missing", put("new.jsonl", '\n{"user": "u", "item": "a"}\n'), "line 2: no 'timestamp'", file="new.jsonl"),
    delivery("JSON of other types", put("new.jsonl", '{"user": "u", "item": ["a"], "timestamp": 1}\n'), "line 1: 'item' must be text", file="new.jsonl"),
    delivery("JSON number beyond 64 bits", put("new.jsonl", '{"user": "u", "item": "a", "timestamp": 1%s}\n' % ("0" * 30)), "line 1: 'timestamp' does not fit 64 bits", file="new.jsonl"),
    delivery("JSON number of 5,000 digits", put("new.jsonl", '{"user": "u", "item": "a", "timestamp": %s}\n' % ("9" * 5000)), "new.jsonl, line 1", file="new.jsonl"),
    delivery("JSON true for a time", put("new.jsonl", '{"user": "u", "item": "a", "timestamp": true}\n'), "line 1: 'timestamp'", file="new.jsonl"),
    delivery("JSON nested without end", put("new.jsonl", '{"user": ' + "[" * 100_000 + "\n"), "line 1: not a JSON object (nested too deeply)", file="new.jsonl"),
    delivery("JSON half a surrogate pair", put("new.jsonl", '{"user": "\\ud800", "item": "a", "timestamp": 1}\n'), "new.jsonl", "line 1", file="new.jsonl"),
    delivery("parquet that is none", raw("new.parquet", b"PAR1 no PAR1"), "new.parquet: not a readable parquet file", file="new.parquet"),
    delivery("parquet cut off", both(parquet("new.parquet", user=["u"], item=["a"], timestamp=[1]), cut("new.parquet", 0.8)), "new.parquet: not a readable parquet file", file="new.parquet"),
    delivery("parquet, item ids are fractions", parquet("new.parquet", user=["u"], item=[1.5], timestamp=[1]), "column 'item' holds Float64", file="new.parquet"),
    delivery("parquet, item ids are lists", parquet("new.parquet", user=["u"], item=[["a"]], timestamp=[1]), "column 'item' holds List", file="new.parquet"),
    delivery("parquet, a null list", parquet("new.parquet", user=["u", "v"], item=[["a"], None], timestamp=[1, 2]), "line 2: 'item' is missing", file="new.parquet"),
    delivery("parquet, times are true and false", parquet("new.parquet", user=["u"], item=["a"], timestamp=[True]), "column 'timestamp' holds Boolean", file="new.parquet"),
    delivery("parquet, a time beyond 64 bits", parquet("new.parquet", user=["u"], item=["a"], timestamp=pl.Series([2**63], dtype=pl.UInt64)), "line 1: 'timestamp' does not fit 64 bits", file="new.parquet"),
    delivery("parquet, a null id", parquet("new.parquet", user=["u", None], item=["a", "b"], timestamp=[1, 2]), "line 2: 'user' is missing", file="new.parquet"),
    delivery("parquet, a size that no machine has", raw("new.parquet", HUGE_PAGE), "new.parquet: not a readable parquet file", file="new.parquet"),
    delivery("pickle for parquet", raw("new.parquet", PICKLE), "new.parquet: not a readable parquet file", file="new.parquet"),
    delivery("store is a file", both(lambda f: (f / "store").rename(f / "moved"), put("store", "x")), "store: is a file"),
    delivery("a part of the store is damaged", raw("store/part-00000-x.parquet", b"x"), "part-00000-x.parquet: not a readable"),
    delivery("a part of the store leads nowhere", as_loop("store/part-00009.csv"), "part-00009.csv: not a file"),
    delivery("times of another kind than the store's", put("new.csv", HEAD + "u,z,2024-05-01\n"), "new.csv: column 'timestamp' holds dates such as 2024-05-01", "numbers such as 0"),
    delivery("times of another unit than the store's", put("new.csv", HEAD + "u,z,1714557602\nu,y,1714557603\n"), "new.csv: column 'timestamp' holds numbers of about 1.71e+09", "another unit"),
    delivery("seconds beside milliseconds", put("new.csv", HEAD + "u,z,1714557602\nu,y,1714557603000\n"), "different units", "1714557602 on line 2, 1714557603000 on line 3"),
    delivery("nanoseconds beside a fraction", put("new.csv", HEAD + f"u,z,{1714557602 * 10**9 + 1}\nu,y,2.5\n"), "line 2: 'timestamp' is about 1.71456e+18", "lose digits"),
    delivery("day and month, or month and day", put("new.csv", HEAD + "u,z,03/01/2024\n"), "line 2: 'timestamp' is not a number or an ISO 8601 date", "data.columns.time_format"),
    delivery("a date with slashes", put("new.csv", HEAD + "u,z,2024/01/03\n"), "line 2: 'timestamp' is not a number or an ISO 8601 date"),
    delivery("local time beside an instant", put("new.csv", HEAD + "u,z,2024-01-03T10:00Z\nu,y,2024-01-03T10:00\n"), "line 3: 'timestamp' is not an instant (with a zone) like the first"),
    delivery("date beside a local time", put("new.csv", HEAD + "u,z,2024-01-03T10:00\nu,y,2024-01-03\n"), "line 3: 'timestamp' is not a local time (without a zone) like the first"),
    delivery("a zone that is none", put("new.csv", HEAD + "u,z,2024-01-03T10:00+25:00\n"), "line 2: 'timestamp' is not an instant"),
    delivery("bzip2 for CSV", raw("new.csv", b"BZh91AY&SY"), "new.csv: is a bzip2 archive, not text"),
    delivery("a spreadsheet for CSV", raw("new.csv", b"PK\x03\x04"), "new.csv: is a zip archive or a spreadsheet, not text"),
    delivery("parquet for CSV", raw("new.csv", b"PAR1 no PAR1"), "new.csv: is a parquet file, not text"),
    delivery("packed in another way", put("new.csv.bz2", GOOD), "new.csv.bz2: unknown form '.bz2'", file="new.csv.bz2"),
    delivery("commas for tabs", put("new.tsv", GOOD), "line 1: no column 'user'", "separated by commas", file="new.tsv"),
    delivery("JSON NaN", put("new.jsonl", '{"user": "u", "item": "a", "timestamp": 1}\n{"user": "u", "item": "b", "timestamp": NaN}\n'), "line 2: not a JSON object (NaN is no JSON)", file="new.jsonl"),
    delivery("parquet, decimals beyond 2^53", parquet("new.parquet", user=["u", "v"], item=["a", "b"], timestamp=[2.0**60, 1.5]), "line 1: 'timestamp' is about 1.15292e+18", "lose digits", file="new.parquet"),
]  # fmt: skip

# --- the sources of `prepare` ------------------------------------------------------------------------


def prepared_from(name: str, damage: Damage, *says: str, stage: str = "prepare") -> Case:
    return Case(f"{stage}: {name}", (stage,), damage, says)


SOURCES = [
    prepared_from("nothing left of the k-core", both(put("x.csv", GOOD), source("interactions", "x.csv", k_core=5)), "data.k_core: nothing is left"),
    prepared_from("users of one interaction only", both(put("x.csv", HEAD + "u,a,1\nv,b,2\n"), source("interactions", "x.csv")), "no user has three interactions"),
    prepared_from("one item only", both(put("x.csv", HEAD + "u,a,1\nu,a,2\nu,a,3\n"), source("interactions", "x.csv")), "only one item is left"),
    prepared_from("duplicates only", both(put("x.csv", HEAD + "u,a,1\n" * 9), source("interactions", "x.csv")), "only one item is left of 9 interactions"),
    prepared_from("empty store", both(lambda f: (f / "empty").mkdir(), source("interactions", "empty")), "data.path: no tables in the folder"),
    prepared_from("a folder without tables", both(put("odd/a.csv.bz2", "x"), put("odd/deep/b.TXT", "x"), source("interactions", "odd")), "data.path: no tables in the folder odd", "2 files of the data folder not read: a.csv.bz2, deep/b.TXT", "Tables end in .csv"),
    prepared_from("files of different kinds of times", both(put("odd/1.csv", HEAD + "u,a,2024-05-01\n"), put("odd/deep/2.csv", HEAD + "u,b,1714557602\n"), source("interactions", "odd")), "odd/deep/2.csv: column 'timestamp' holds numbers such as 1714557602, but that of odd/1.csv dates"),
    prepared_from("files of different units", both(put("odd/1.csv", HEAD + "u,a,1714557602\n"), put("odd/2.csv", HEAD + "u,b,1714557602000\n"), source("interactions", "odd")), "odd/2.csv", "about 1.71e+12, but that of odd/1.csv of about 1.71e+09"),
    prepared_from("times of another format than stated", both(put("x.csv", HEAD + "u,a,2024-05-01\n"), source("interactions", "x.csv", columns={"time_format": "%d/%m/%Y"})), "x.csv, line 2: 'timestamp' is not of data.columns.time_format '%d/%m/%Y'"),
    prepared_from("windows behind all times", both(put("x.csv", HEAD + "".join(f"u,{item},{n}\nv,{item},{n}\n" for n, item in enumerate("abcd"))), source("interactions", "x.csv", split="time", time_split={"valid_from": 50, "test_from": 60})), "no user has an item in the validation window", "data.time_split.valid_from"),
    prepared_from("a date among running numbers", both(put("x.csv", HEAD + "".join(f"u,{item},{n}\nv,{item},{n}\n" for n, item in enumerate("abcd"))), source("interactions", "x.csv", split="time", time_split={"valid_from": "2024-01-01", "test_from": "2024-02-01"})), "data.time_split.valid_from", "no seconds"),
    prepared_from("no such file", source("interactions", "absent.csv"), "data.path: no such file: absent.csv"),
    prepared_from("no such file, fingerprint", source("sequences", "absent.txt"), "data.path: no such file: absent.txt", stage="fingerprint"),
    prepared_from("link to itself", both(as_loop("x.csv"), source("interactions", "x.csv")), "data.path: no such file"),
    prepared_from("a folder for sequences", both(as_folder("x.txt"), source("sequences", "x.txt")), "data.path: no such file"),
    prepared_from("sequences without items", both(put("x.txt", "u a b\n\nv\n"), source("sequences", "x.txt")), "x.txt, line 3: user 'v' has no items"),
    prepared_from("a user on two lines", both(put("x.txt", "u a b\nv a\nu c\n"), source("sequences", "x.txt")), "line 3: user 'u' was already on line 1"),
    prepared_from("sequences not UTF-8", both(put("x.txt", b"u a b\nv \xfe\n"), source("sequences", "x.txt")), "x.txt, line 2: not UTF-8"),
    prepared_from("sequences with a null byte", both(put("x.txt", "u a b c\nv a\0 b c\n"), source("sequences", "x.txt")), "x.txt, line 2: the item 'a\\x00' holds a null byte"),
    prepared_from("sequences empty", both(put("x.txt", " \n"), source("sequences", "x.txt")), "x.txt: the file is empty"),
    prepared_from("truncated gzip", both(put("x.txt.gz", "u a b c\n" * 900), cut("x.txt.gz", 0.5), source("sequences", "x.txt.gz")), "x.txt.gz: truncated or damaged"),
    prepared_from("Beauty: no layout", both(lambda f: (f / "b").mkdir(), source("amazon-beauty", "b")), "b holds none of reviews_Beauty_5.json.gz"),
    prepared_from("Beauty: another file", both(put("b.xml", "<a/>"), source("amazon-beauty", "b.xml")), "b.xml is none of"),
    prepared_from("Beauty: ratings of four fields expected", both(put("b/ratings_Beauty.csv", "u,a,5,1\nu,b,5\n"), source("amazon-beauty", "b")), "ratings_Beauty.csv, line 2: 'timestamp' is missing"),
    prepared_from("Beauty: a time of words", both(put("b/ratings_Beauty.csv", "u,a,5,1\nu,b,5,x\n"), source("amazon-beauty", "b")), "line 2", "whole number of seconds", "'x'"),
    prepared_from("Beauty: reviews cut off", both(put("b/reviews_Beauty_5.json", '{"reviewerID": "u", "asin": "a", "unixRev'), source("amazon-beauty", "b")), "line 1: not a JSON object"),
    prepared_from("Beauty: names are no object", both(put("b/sequential_data.txt", "1 1 2 3\n"), put("b/item_asin.json", "[1]"), source("amazon-beauty", "b")), "item_asin.json: expected a JSON object"),
    prepared_from("Beauty: names nested without end", both(put("b/sequential_data.txt", "1 1 2 3\n"), put("b/item_asin.json", "[" * 100_000), source("amazon-beauty", "b")), "item_asin.json: not JSON (nested too deeply)"),
    prepared_from("Beauty: half a surrogate pair", both(put("b/sequential_data.txt", "1 1 2 3\n"), put("b/item_asin.json", '{"1": "\\ud800"}'), source("amazon-beauty", "b")), "item_asin.json: half a surrogate pair"),
    prepared_from("Beauty: downloads switched off", settings(data={"download": {"enabled": False}}), "data.download.enabled is false"),
    prepared_from("one column for two roles", both(put("x.csv", GOOD), source("interactions", "x.csv", columns={"item": "user"})), "data.columns", "three columns"),
    prepared_from("prepared data are a file", both(lambda f: (f / "data/prepared").rename(f / "moved"), put("data/prepared", "x"), put("x.csv", GOOD), source("interactions", "x.csv")), "data/prepared: is a file"),
    prepared_from("raw.json is a folder", both(as_folder("data/raw.json"), put("x.csv", GOOD), source("interactions", "x.csv")), "data/raw.json", stage="fingerprint"),
]  # fmt: skip

# --- settings --------------------------------------------------------------------------------------

BOMB = "a0: &a0 [lol, lol]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
MERGES = "a0: &a0 {k: 1}\n" + "".join(f"a{n}: &a{n}\n  <<: [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))


def params(name: str, content: bytes | str, *says: str) -> list[Case]:
    """The same mistake in params.yaml and in the overrides of a workspace."""
    return [
        Case(f"params: {name}", ("rl4rec", "check-params"), put("params.yaml", content), ("params.yaml", *says)),
        Case(
            f"overrides: {name}",
            ("rl4rec", "workspace", "space", "--overrides", "changes.yaml"),
            put("changes.yaml", content),
            ("changes.yaml", *says),
        ),
    ]


PARAMS = [
    *params("not YAML", "sft: [1, 2", "not valid YAML", "line 1"),
    *params("a tab", "sft:\n\tseed: 1\n", "not valid YAML", "line 2"),
    *params("a list", "- sft\n", "expected se"),
    *params("a number", "7\n", "expected se"),
    *params("unknown section", "sfd: {}\n", "sfd: unknown key; did you mean 'sft'?"),
    *params("unknown key with brackets", "'a[0]': 1\n", "a[0]: unknown key"),
    *params("a key that is a number", "sft: {1: 2}\n", "sft.1"),
    *params("a key that is a list", "? [a, b]\n: 1\n", "not valid YAML"),
    *params("wrong type", "sft: {batch_size: many}\n", "sft.batch_size", "'many'"),
    *params("out of range", "sft: {learning_rate: -1}\n", "sft.learning_rate", "greater than 0", "got -1"),
    *params("NaN", "sft: {learning_rate: .nan}\n", "sft.learning_rate", "finite"),
    *params("infinite", "rl: {kl_coef: 1}\nsft: {weight_decay: .inf}\n", "sft.weight_decay", "finite"),
    *params("huge whole number", f"sft: {{batch_size: {10**30}}}\n", "sft.batch_size"),
    *params("number of 5,000 digits", f"sft: {{batch_size: {'9' * 5000}}}\n", "not valid YAML"),
    *params("true for a number", "sft: {seed: true}\n", "sft.seed", "expected a number, got a boolean"),
    *params("null for a section", "rl: null\n", "rl"),
    *params("key twice", "sft: {seed: 1, seed: 2}\n", "key 'seed' is given twice", "line 1"),
    *params("object tag", "sft: !!python/object/apply:os.system ['touch executed']\n", "not valid YAML", "python/object"),
    *params("a date that is none", "sft: {seed: 2024-13-45}\n", "not valid YAML"),
    *params("a tag that does not fit", "sft: {seed: !!int twelve}\n", "not valid YAML"),
    *params("a bool tag that does not fit", "sft: {seed: !!bool perhaps}\n", "not valid YAML"),
    *params("bomb of aliases", BOMB, "stands for more than"),
    *params("bomb of merges", MERGES, "stands for more than"),
    *params("an alias for itself", "sft: &a [*a]\n", "an alias stands for itself"),
    *params("an alias of nothing", "sft: *nothing\n", "not valid YAML", "nothing"),
    *params("nested without end", "[" * 50_000, "nested too deeply"),
    *params("20 MB", "# " + "x" * 20_000_000, "no file of settings"),
    *params("not UTF-8", b"sft: {seed: 1}\n# caf\xe9\n", "line 2", "not UTF-8"),
    *params("a null byte", "sft: {seed: 1}\0\n", "not valid YAML"),
    *params("a null byte in a path", 'data: {path: "a\\0b"}\n', "data.path", "control characters"),
    *params("an empty path", "data: {source: interactions, path: ''}\n", "data.path", "at least 1 character"),
    *params("a path that is a number", "data: {path: 7}\n", "data.path", "string"),
    *params("a model name that leaves the registry", "tracking: {registered_model: ../x}\n", "tracking.registered_model"),
    *params("a value of megabytes", "sft: {precision: " + "x" * 900_000 + "}\n", "sft.precision"),
    Case("params: no file", ("rl4rec", "check-params", "absent.yaml"), lambda _: None, ("absent.yaml: no such file",)),
    Case("params: a folder", ("rl4rec", "check-params"), as_folder("params.yaml"), ("params.yaml: cannot be read",)),
    Case("params: a link to itself", ("rl4rec", "check-params"), as_loop("params.yaml"), ("params.yaml: cannot be read",)),
    Case("params: of a stage", ("prepare",), put("params.yaml", "sft: {sed: 1}"), ("sft.sed: unknown key; did you mean",)),
    Case("overrides: the workspace is a file", ("rl4rec", "workspace", "params.yaml", "--overrides", "changes.yaml"), put("changes.yaml", "{sft: {seed: 1}}"), ("is not a workspace",)),
    Case("overrides: sections of another form", ("rl4rec", "workspace", "space", "--overrides", "changes.yaml"), put("changes.yaml", "data: [1]"), ("changes.yaml over params.yaml", "data")),
]  # fmt: skip

# --- prepared data and policies --------------------------------------------------------------------


def evaluated(name: str, damage: Damage, *says: str) -> Case:
    return Case(f"evaluate: {name}", ("evaluate", "sft"), damage, says)


def header_of(tensors: dict[str, object]) -> bytes:
    """The start of a safetensors file."""
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text)) + text


def set_config(**values: object) -> Damage:
    return edit_json("models/sft/config.json", lambda config: config.update(values))


def set_inner(**values: object) -> Damage:
    return edit_json("models/sft/config.json", lambda config: config["lm_config"].update(values))


WEIGHTS = "models/sft/model.safetensors"
SEQUENCES, ITEMS = "data/prepared/sequences.parquet", "data/prepared/items.parquet"
LISTS = pl.col("items")

ARTIFACTS = [
    evaluated("no prepared data", gone(SEQUENCES), "sequences.parquet: no such file", "dvc repro prepare"),
    evaluated("sequences cut off", cut(SEQUENCES, 0.7), "sequences.parquet: not a readable parquet file"),
    evaluated("sequences are a folder", as_folder(SEQUENCES), "sequences.parquet: not a file"),
    evaluated("sequences of text", edit_parquet(SEQUENCES, lambda t: t.with_columns(items=pl.lit("a"))), "sequences.parquet: expected text and lists of numbers"),
    evaluated("sequences without users", edit_parquet(SEQUENCES, lambda t: t.drop("user")), "sequences.parquet: no column 'user'"),
    evaluated("an item beyond the catalogue", edit_parquet(SEQUENCES, lambda t: t.with_columns(LISTS.list.eval(pl.element() + 1))), "an item's number is not from 0 to 23"),
    evaluated("a null in a sequence", edit_parquet(SEQUENCES, lambda t: t.with_columns(LISTS.list.eval(pl.element().replace({3: None})))), "an item's number is not from 0"),
    evaluated("an item twice", edit_parquet(ITEMS, lambda t: t.with_columns(item=pl.lit("a"))), "items.parquet: an item is there twice"),
    evaluated("a count below 0", edit_parquet(ITEMS, lambda t: t.with_columns(-pl.col("count"))), "items.parquet: an item is there twice or has a count below 0"),
    evaluated("stats cut off", cut("data/prepared/stats.json", 0.5), "stats.json: not JSON"),
    evaluated("stats without a hash", put("data/prepared/stats.json", "{}"), "stats.json: no data_hash"),
    evaluated("stats not UTF-8", put("data/prepared/stats.json", b"\xff\xfe{}"), "stats.json: not JSON"),
    evaluated("no policy", gone("models/sft/config.json"), "models/sft: no policy there", "dvc repro sft"),
    evaluated("config is no JSON", put("models/sft/config.json", "{"), "config.json: not JSON"),
    evaluated("config nested without end", put("models/sft/config.json", "[" * 100_000), "config.json: not JSON (nested too deeply)"),
    evaluated("config of another model", put("models/sft/config.json", '{"model_type": "gpt2"}'), "model_type: expected 'slate_policy', got 'gpt2'"),
    evaluated("config without a language model", set_config(lm_config=None), "lm_config: expected the settings"),
    evaluated("config of an unknown language model", set_inner(model_type="no-such"), "cannot be read as a policy"),
    evaluated("config with text for a size", set_inner(n_embd="wide"), "cannot be read as a policy"),
    evaluated("config with no heads", set_inner(n_head=0), "cannot be read as a policy"),
    evaluated("config with a fraction of items", set_config(num_items=1.5), "num_items: expected a whole number from 1, got 1.5"),
    evaluated("config with more items than weights", set_config(num_items=25), "config.json names 25 items, the weights have 24"),
    evaluated("config that reads more than it can", set_config(max_history=4000), "max_history: 4000 is more than"),
    evaluated("config with an unknown score", set_config(score="guess"), "score: expected one of dot, cosine, got 'guess'"),
    evaluated("config with a temperature of 0", set_config(score_temperature=0), "score_temperature: expected a number above 0"),
    evaluated("config with code", set_config(auto_map={"AutoConfig": "evil.Config"}), "'auto_map' is not supported"),
    evaluated("language model with code", set_inner(auto_map={"AutoModelForCausalLM": "evil.Model"}), "'auto_map' is not supported"),
    evaluated("an adapter that names another model", put("models/sft/adapter_config.json", '{"base_model_name_or_path": "x"}'), "adapter_config.json is not part of a policy"),
    evaluated("shards that lead elsewhere", put("models/sft/model.safetensors.index.json", '{"weight_map": {"a": "../../x"}}'), "index.json is not part of a policy"),
    evaluated("weights cut off", cut(WEIGHTS, 0.5), "models/sft: cannot be read as a policy", "dvc repro sft"),
    evaluated("weights with an endless header", raw(WEIGHTS, struct.pack("<Q", 2**63) + b"{}"), "models/sft: cannot be read as a policy"),
    evaluated("weights of other shapes", set_inner(n_embd=32), "models/sft"),
    evaluated("weights that are missing", raw(WEIGHTS, header_of({"__metadata__": {"format": "pt"}})), "missing keys"),
    evaluated("weights beyond the file", raw(WEIGHTS, header_of({"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}})), "models/sft"),
    evaluated("weights are a pickle", raw(WEIGHTS, PICKLE), "models/sft: cannot be read as a policy"),
    evaluated("weights in pickle form only", both(gone(WEIGHTS), raw("models/sft/pytorch_model.bin", PICKLE)), "no model.safetensors", "pickle"),
    evaluated("weights are a folder", as_folder(WEIGHTS), "no model.safetensors"),
    evaluated("weights not numbers", lambda f: nan_weights(f / WEIGHTS), "NaN"),
    evaluated("a catalogue of other size", both(edit_parquet(ITEMS, lambda t: pl.concat([t, pl.DataFrame({"item": ["z"], "count": [0]}, schema=t.schema)]))), "trained on a catalogue of 24 items"),
]  # fmt: skip


def nan_weights(path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_file({name: tensor * float("nan") for name, tensor in load_file(path).items()}, path, {"format": "pt"})


# --- what `recommend`, `monitor` and `compare` read --------------------------------------------------


def recommended(name: str, damage: Damage, *says: str, users: str = "users.jsonl", more: tuple[str, ...] = ()) -> Case:
    command = (
        "rl4rec",
        "recommend",
        "--model",
        "models/sft",
        "--users",
        users,
        "--out",
        "new/lists.parquet",
        "--k",
        "3",
    )
    return Case(f"recommend: {name}", (*command, *more), damage, says)


def monitored(name: str, damage: Damage, *says: str, more: tuple[str, ...] = ()) -> Case:
    command = ("rl4rec", "monitor", "--served", "served.parquet", "--policy", "sft", "--out", "new/drift.json")
    return Case(f"monitor: {name}", (*command, *more), damage, says)


def compared(name: str, damage: Damage, *says: str) -> Case:
    return Case(f"compare: {name}", ("compare",), damage, says)


def set_metrics(change: Callable[[dict[str, Any]], object]) -> Damage:
    return edit_json("metrics/ppo.json", change)


SWEEPS = (
    ("not YAML", "stage: [", "not valid YAML"),
    ("a list", "- 1", "got [1]"),
    ("unknown key", "stages: sft", "stages: unknown key"),
    ("an object tag", "stage: !!python/object/apply:os.system ['touch executed']", "not valid YAML"),
    ("a bomb of aliases", BOMB, "stands for more than"),
    ("nested without end", "[" * 50_000, "nested too deeply"),
)
OTHERS = [
    recommended("no such file", gone("users.jsonl"), "users.jsonl: cannot be read"),
    recommended("empty file", put("users.jsonl", ""), "users.jsonl: no column 'history'"),
    recommended("unknown form", put("users.csv", "history\n"), "users.csv: unknown form '.csv'", users="users.csv"),
    recommended("no histories", put("users.jsonl", '{"user": 1}\n'), "no column 'history'. The file has: user"),
    recommended("not JSON", put("users.jsonl", '{"history": [\n'), "users.jsonl: cannot be read"),
    recommended("not UTF-8", put("users.jsonl", b'{"history": ["\xff"]}\n'), "users.jsonl"),
    recommended("nested without end", put("users.jsonl", '{"history": ' + "[" * 100_000 + "\n"), "users.jsonl: cannot be read"),
    recommended("fractions for ids", put("users.jsonl", '{"history": [1.5, 2]}\n'), "column 'history' must hold lists of item ids"),
    recommended("text for a list", put("users.jsonl", '{"history": "i1"}\n'), "column 'history' must hold lists"),
    recommended("a null id", put("users.jsonl", '{"history": ["i1", null]}\n'), "users.jsonl: an item id must be text or a whole number, got None"),
    recommended("a column of the result", put("users.jsonl", '{"history": ["i1"], "scores": 1}\n'), "column 'scores' would be overwritten"),
    recommended("numbers that parquet cannot hold", put("users.jsonl", '{"history": ["i1"], "user": 1%s}\n' % ("0" * 30)), "users.jsonl: a column that parquet cannot hold"),
    recommended("exclusions of fractions", put("users.jsonl", '{"history": ["i1"], "exclude": [2.5]}\n'), "column 'exclude' must hold lists"),
    recommended("a folder", as_folder("users.jsonl"), "users.jsonl: not a file"),
    recommended("a pipe", as_pipe("users.jsonl"), "users.jsonl: not a file"),
    recommended("parquet cut off", both(parquet("users.parquet", history=[["i1"]]), cut("users.parquet", 0.5)), "users.parquet: not a readable parquet file", users="users.parquet"),
    recommended("a pickle", raw("users.parquet", PICKLE), "users.parquet: not a readable parquet file", users="users.parquet"),
    recommended("k of 0", lambda _: None, "k must be a whole number from 1 to 24", more=("--k", "0")),
    recommended("k beyond the catalogue", lambda _: None, "k must be a whole number from 1 to 24", more=("--k", "9" * 18)),
    recommended("a folder for the result", lambda f: (f / "lists").mkdir(), "lists: is a folder", more=("--out", "lists")),
    recommended("a file on the way to the result", put("new", "x"), "new"),
    recommended("no such policy", lambda _: None, "no such folder here", "Policies in", more=("--model", "models/none")),
    recommended("a vocabulary cut off", cut(ITEMS, 0.5), "items.parquet: not a readable parquet file"),
    monitored("no such file", gone("served.parquet"), "served.parquet: no such file"),
    monitored("served lists cut off", cut("served.parquet", 0.5), "served.parquet: not a readable parquet file"),
    monitored("served lists of numbers", parquet("served.parquet", items=[[1]]), "expected a column 'items' with lists of item ids"),
    monitored("no served lists", edit_parquet("served.parquet", lambda t: t.clear()), "expected a column 'items' with lists"),
    monitored("a pipe", as_pipe("served.parquet"), "served.parquet: not a file"),
    monitored("a policy elsewhere", lambda _: None, "--policy: expected one of sft", "'../../x'", more=("--policy", "../../x")),
    monitored("evaluation cut off", cut("metrics/sft.json", 0.5), "metrics/sft.json: not JSON", "dvc repro"),
    monitored("evaluation without coverage", put("metrics/sft.json", '{"metrics": {}}'), "metrics/sft.json: not an evaluation"),
    monitored("evaluation with a coverage of 0", edit_json("metrics/sft.json", lambda m: m["metrics"].update({"test/full/coverage@3": 0})), "expected figures above 0"),
    monitored("evaluation with text", edit_json("metrics/sft.json", lambda m: m["metrics"].update({"test/full/coverage@3": "x"})), "expected figures above 0"),
    monitored("damaged new interactions", put("new.csv", HEAD + "u,a,x\n"), "new.csv, line 2", more=("--incoming", "new.csv")),
    compared("no metrics", gone("metrics/ppo.json"), "metrics/ppo.json: no such file", "dvc repro"),
    compared("metrics cut off", cut("metrics/ppo.json", 0.7), "metrics/ppo.json: not JSON"),
    compared("metrics are a list", put("metrics/ppo.json", "[]"), "metrics/ppo.json: expected a JSON object"),
    compared("metrics without a protocol", set_metrics(lambda m: m.pop("protocol")), "metrics/ppo.json: not an evaluation: protocol"),
    compared("metrics without negatives", set_metrics(lambda m: m["protocol"].pop("negatives")), "protocol.negatives"),
    compared("metrics with text for a number", set_metrics(lambda m: m["metrics"].update({"test/full/ndcg@3": "high"})), "test/full/ndcg@3", "'high'"),
    compared("metrics with NaN", set_metrics(lambda m: m["metrics"].update({"test/full/ndcg@3": float("nan")})), "test/full/ndcg@3", "finite"),
    compared("metrics without a metric", set_metrics(lambda m: m["metrics"].pop("valid/full/mrr@5")), "valid/full/mrr@5 is missing"),
    compared("metrics with another key", set_metrics(lambda m: m["metrics"].update({"ndcg": 0.5})), "metrics.ndcg", "expected FOLD/PROTOCOL/METRIC@K"),
    compared("metrics of an earlier version", set_metrics(lambda m: m.update(test=m.pop("metrics"))), "metrics/ppo.json: not an evaluation: metrics"),
    compared("metrics of other data", set_metrics(lambda m: m["protocol"].update(data_hash="other")), "cannot be compared: data_hash"),
    compared("no ranks", gone("ranks/ppo.parquet"), "ranks/ppo.parquet: no such file"),
    compared("ranks cut off", cut("ranks/ppo.parquet", 0.6), "ranks/ppo.parquet: not a readable parquet file"),
    compared("ranks are a folder", as_folder("ranks/ppo.parquet"), "ranks/ppo.parquet"),
    compared("ranks are a pickle", raw("ranks/ppo.parquet", PICKLE), "ranks/ppo.parquet: not a readable parquet file"),
    compared("ranks without a column", edit_parquet("ranks/ppo.parquet", lambda t: t.drop("test/full")), "ranks/ppo.parquet: no column 'test/full'"),
    compared("ranks of text", edit_parquet("ranks/ppo.parquet", lambda t: t.cast({"test/full": pl.String})), "column 'test/full' must hold 40 32-bit numbers"),
    compared("ranks below 0", edit_parquet("ranks/ppo.parquet", lambda t: t.with_columns(-pl.col("test/full") - 1)), "column 'test/full' must hold 40 32-bit numbers from 0"),
    compared("ranks of another run", edit_parquet("ranks/ppo.parquet", lambda t: t.with_columns(pl.col("test/full") * 0)), "the files are of different runs"),
    compared("ranks of fewer users", edit_parquet("ranks/ppo.parquet", lambda t: t.head(3)), "ranks/ppo.parquet"),
    compared("slates cut off", cut("slates/ppo.parquet", 0.6), "slates/ppo.parquet: not a readable parquet file", "dvc repro evaluate@ppo"),
    compared("slates are a folder", as_folder("slates/ppo.parquet"), "slates/ppo.parquet: not a file"),
    compared("slates are a pickle", raw("slates/ppo.parquet", PICKLE), "slates/ppo.parquet: not a readable parquet file"),
    compared("slates without users", edit_parquet("slates/ppo.parquet", lambda t: t.drop("user_row")), "slates/ppo.parquet: no column 'user_row'"),
    compared("slates of text", edit_parquet("slates/ppo.parquet", lambda t: t.cast({"items": pl.List(pl.String)})), "slates/ppo.parquet: expected 32-bit numbers and lists of them"),
    compared("slates with a gap", edit_parquet("slates/ppo.parquet", lambda t: t.with_columns(items=pl.when(pl.col("user_row") > 3).then("items"))), "slates/ppo.parquet: expected 32-bit numbers and lists of them, without gaps"),
    compared("slates with an empty place", edit_parquet("slates/ppo.parquet", lambda t: t.with_columns(items=pl.col("items").list.concat([None]).cast(pl.List(pl.Int32)))), "slates/ppo.parquet: an item's number is not from 0 to 23"),
    compared("slates of unknown items", edit_parquet("slates/ppo.parquet", lambda t: t.with_columns(pl.col("items").list.eval(pl.element() + 1))), "slates/ppo.parquet: an item's number is not from 0 to 23"),
    compared("slates that repeat an item", edit_parquet("slates/ppo.parquet", lambda t: t.with_columns(pl.col("items").list.eval(pl.element() * 0))), "slates/ppo.parquet: an item is in a slate twice"),
    compared("slates of twelve", edit_parquet("slates/ppo.parquet", lambda t: t.with_columns(items=pl.lit(list(range(12)), dtype=pl.List(pl.Int32)))), "slates/ppo.parquet: a slate has more than 10 items"),
    compared("slates of fewer users", edit_parquet("slates/ppo.parquet", lambda t: t.head(3)), "slates/ppo.parquet: of other users than ranks/ppo.parquet"),
    compared("a log that is no JSON", put("logs/ppo.jsonl", '{"step": 1}\n{"step"\n'), "logs/ppo.jsonl, line 2: not JSON"),
    compared("a log of lists", put("logs/ppo.jsonl", "[1]\n"), "logs/ppo.jsonl, line 1: expected a JSON object"),
    compared("a log not UTF-8", put("logs/ppo.jsonl", b'{"step": 1}\n\xff\n'), "logs/ppo.jsonl, line 2: not JSON"),
    compared("a log nested without end", put("logs/ppo.jsonl", "[" * 100_000), "logs/ppo.jsonl, line 1: not JSON (nested too deeply)"),
    compared("a log is a folder", as_folder("logs/ppo.jsonl"), "logs/ppo.jsonl: cannot be read"),
    compared("oracle cut off", put("data/prepared/oracle.parquet", "PAR1"), "oracle.parquet: not a readable parquet file"),
    compared("oracle of other items", lambda f: oracle(f, items=3), "oracle.parquet: of other users or items"),
    Case("show-comparison: none", ("rl4rec", "show-comparison"), gone("metrics/comparison.json"), ("metrics/comparison.json: no such file",)),
    Case("show-comparison: cut off", ("rl4rec", "show-comparison"), put("metrics/comparison.json", '{"k": '), ("comparison.json: not JSON",)),
    Case("show-comparison: something else", ("rl4rec", "show-comparison"), put("metrics/comparison.json", '{"k": 1}'), ("comparison.json: not a comparison",)),
    Case("collect-refit: something else", ("rl4rec", "collect-refit", "refit"), put("refit/metrics/sft.json", '{"protocol": 3}'), ("sft.json: not an evaluation",)),
    Case("promote: a policy elsewhere", ("rl4rec", "promote", "--policy", "../x"), lambda _: None, ("--policy: expected one of", "'../x'")),
    *(Case(f"sweep: {name}", ("rl4rec", "sweep", "--settings", "sweep.yaml"), put("sweep.yaml", text), ("sweep.yaml", *says)) for name, text, *says in SWEEPS),
    Case("check-dvc: not YAML", ("rl4rec", "check-dvc"), put("dvc.yaml", "stages: ["), ("dvc.yaml: not valid YAML",)),
]  # fmt: skip


def oracle(folder: Path, *, items: int) -> None:
    rows = pl.read_parquet(folder / SEQUENCES).height
    table = pl.DataFrame({fold: [[1.0 / items] * items] * rows for fold in ("valid", "test")})
    table.write_parquet(folder / "data/prepared/oracle.parquet")


CASES = [*DELIVERIES, *SOURCES, *PARAMS, *ARTIFACTS, *OTHERS]
