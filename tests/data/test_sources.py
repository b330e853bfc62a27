"""Every source and layout, and what is said about damaged input."""

import datetime
import gzip
import json

import polars as pl
import pytest
from pydantic import ValidationError

from rl4rec.data.sources.amazon import find_beauty, read_beauty
from rl4rec.data.sources.interactions import read_interactions
from rl4rec.data.sources.sequences import read_sequences
from rl4rec.errors import UserError
from rl4rec.params import Columns, DataParams

ROWS = [("u1", "A", 30), ("u2", "B", 20), ("u1", "C", 10)]


def rows_of(frame: pl.DataFrame) -> list[tuple]:
    return frame.select("user", "item", "time").rows()


def write(path, content):
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def reviews(rows) -> str:
    return "".join(
        json.dumps({"reviewerID": u, "asin": i, "helpful": [0, 1], "reviewText": 'a, "b"\n', "unixReviewTime": t})
        + "\n"
        for u, i, t in rows
    )


# --- Amazon Beauty ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["reviews_Beauty_5.json.gz", "reviews_Beauty_5.json"])
def test_reviews(tmp_path, name):
    write(tmp_path / name, reviews(ROWS))
    files = find_beauty(DataParams(path=str(tmp_path)))
    assert [file.name for file in files] == [name]
    assert rows_of(read_beauty(files)) == ROWS


@pytest.mark.parametrize("name", ["ratings_Beauty.csv", "ratings_Beauty_5.csv.gz"])
def test_ratings(tmp_path, monkeypatch, name):
    write(tmp_path / name, "u1,A,5.0,30\nu2,B,1.0,20\r\n\nu1,C,4.0,10\n")
    monkeypatch.setenv("RL4REC_DATA_HOME", str(tmp_path))
    assert rows_of(read_beauty(find_beauty(DataParams()))) == ROWS


def test_sequence_file_takes_item_names_from_beside_it(tmp_path):
    write(tmp_path / "sequential_data.txt", "1 1 2\n2 2 3 1\n")
    params = DataParams(path=str(tmp_path / "sequential_data.txt"))
    assert rows_of(read_beauty(find_beauty(params)))[0] == ("1", "1", 0)
    write(tmp_path / "item_asin.json", '{"1": "X", "2": "Y", "3": "Z"}')
    assert rows_of(read_beauty(find_beauty(params))) == [
        ("1", "X", 0), ("1", "Y", 1), ("2", "Y", 0), ("2", "Z", 1), ("2", "X", 2),
    ]  # fmt: skip


def test_precedence_real_times_first_and_path_before_home(tmp_path, monkeypatch):
    home, named = tmp_path / "home", tmp_path / "named"
    for folder in (home, named):
        folder.mkdir()
        write(folder / "sequential_data.txt", "1 1 2\n")
    write(home / "ratings_Beauty.csv", "u,A,5.0,3\n")
    write(home / "ratings_Beauty_5.csv", "u,A,5.0,3\n")
    monkeypatch.setenv("RL4REC_DATA_HOME", str(home))
    assert find_beauty(DataParams()) == [home / "ratings_Beauty_5.csv"]
    assert find_beauty(DataParams(path=str(named))) == [named / "sequential_data.txt"]


def test_nothing_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RL4REC_DATA_HOME", raising=False)
    assert find_beauty(DataParams()) == []
    monkeypatch.setenv("RL4REC_DATA_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"RL4REC_DATA_HOME: .* holds none of reviews_Beauty_5.json.gz"):
        find_beauty(DataParams())
    with pytest.raises(UserError, match=r"data\.path: no such file or folder: .*absent"):
        find_beauty(DataParams(path=str(tmp_path / "absent")))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("ratings_Beauty.csv", "u,A,5.0,3\nu,B,5.0\n", r"line 2: 'timestamp' is missing"),
        ("ratings_Beauty.csv", "u,A,5.0,3\n\nu,B,5.0,soon\n", r"line 3: .*'soon'"),
        ("ratings_Beauty.csv", "u,A,5.0,3\nu,B,5.0,4,5\n", r"line 2: expected 4 fields \(user, item.*got 5"),
        ("ratings_Beauty.csv", b"u,A,5.0,3\nu,\xff,5.0,4\n", r"line 2: not UTF-8 text \(byte 0xff\)"),
        ("ratings_Beauty.csv", "u,A,5.0,3\n,B,5.0,4\n", r"line 2: 'user' is missing"),
        ("ratings_Beauty.csv", "", r"the file is empty"),
        ("ratings_Beauty.csv", "\n\n", r"the file is empty|no records"),
        ("reviews_Beauty_5.json", reviews(ROWS) + '{"asin": \n', r"line 4: not a JSON object"),
        ("reviews_Beauty_5.json", reviews(ROWS[:1]) + "\n" + '{"asin": "A"}\n', r"line 3: no 'reviewerID'"),
        ("reviews_Beauty_5.json", reviews([("u", "A", "soon")]), r"line 1: 'unixReviewTime' must be a whole number"),
        ("reviews_Beauty_5.json", reviews([("u", ["A"], 1)]), r"line 1: 'asin' must be text or .* got \['A'\]"),
        ("sequential_data.txt", "1 2 3\n\n2\n", r"line 3: user '2' has no items"),
        ("sequential_data.txt", "1 2 3\n2 4\n1 5\n", r"line 3: user '1' was already on line 1"),
    ],
)
def test_damaged_beauty(tmp_path, name, content, message):
    path = write(tmp_path / name, content)
    with pytest.raises(UserError, match=message) as caught:
        read_beauty(find_beauty(DataParams(path=str(tmp_path))))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["ratings_Beauty_5.csv.gz", "reviews_Beauty_5.json.gz"])
@pytest.mark.parametrize("keep", [0.5, 0.99])
def test_truncated_gzip(tmp_path, name, keep):
    whole = gzip.compress(("u,A,5.0,3\n" * 1000).encode())
    (tmp_path / name).write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(UserError, match=rf"{name}: truncated or damaged gzip"):
        read_beauty(find_beauty(DataParams(path=str(tmp_path))))


def test_item_without_a_name(tmp_path):
    write(tmp_path / "sequential_data.txt", "1 1\n2 1 9\n")
    write(tmp_path / "item_asin.json", '{"1": "X"}')
    with pytest.raises(UserError, match=r"sequential_data.txt, line 2: item '9' is not in item_asin.json"):
        read_beauty(find_beauty(DataParams(path=str(tmp_path))))


# --- a user's own files ----------------------------------------------------------------------------


def test_sequences_split_on_any_white_space(tmp_path):
    path = write(tmp_path / "mine.txt.gz", "anna\tx  y \r\n\nbob z\n")
    assert rows_of(read_sequences(path)) == [("anna", "x", 0), ("anna", "y", 1), ("bob", "z", 0)]


NAMES = Columns(user="who", item="what", timestamp="when")
TABLE = pl.DataFrame(
    {"what": ["A", "B", "C"], "extra": [1.5, None, 2], "who": ["u1", "u2", "u1"], "when": [30, 20, 10]}
)


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.csv.gz", "t.jsonl", "t.ndjson.gz", "t.parquet"])
def test_interactions_in_any_form(tmp_path, name):
    path = tmp_path / name
    match name.split(".")[1]:
        case "csv":
            write(path, TABLE.write_csv())
        case "tsv":
            write(path, "\ufeff" + TABLE.write_csv(separator="\t"))
        case "parquet":
            TABLE.write_parquet(path)
        case _:
            write(path, TABLE.write_ndjson())
    assert rows_of(read_interactions(path, NAMES)) == ROWS


def test_whole_number_ids_and_quoted_fields(tmp_path):
    path = write(tmp_path / "t.csv", 'user,item,timestamp\n1,"a, b",3\n2,"say ""x""",4\n')
    assert rows_of(read_interactions(path, Columns())) == [("1", "a, b", 3), ("2", 'say "x"', 4)]
    write(tmp_path / "t.jsonl", '{"user": 1, "item": "a", "timestamp": 3}\n{"user": 2, "item": "b", "timestamp": 4}\n')
    assert rows_of(read_interactions(tmp_path / "t.jsonl", Columns())) == [("1", "a", 3), ("2", "b", 4)]
    pl.DataFrame({"user": [1], "item": [22], "timestamp": [3]}).write_parquet(tmp_path / "t.parquet")
    assert rows_of(read_interactions(tmp_path / "t.parquet", Columns())) == [("1", "22", 3)]


@pytest.mark.parametrize(
    "times",
    [
        ["1.5", "2.25", "10"],
        ["2024-01-02", "2024-01-10", "2024-02-01"],
        ["2024-01-02T03:04:05Z", "2024-01-02T03:04:06Z", "2024-01-02T13:00:00Z"],
        ["2024-01-02 03:04:05", "2024-01-02 03:04:06.5", "2024-01-02 13:00:00"],
    ],
)
def test_times_of_text_are_ordered_as_times(tmp_path, times):
    path = write(tmp_path / "t.csv", "user,item,timestamp\n" + "".join(f"u,i,{time}\n" for time in times))
    read = read_interactions(path, Columns())["time"]
    assert read.is_sorted() and read.n_unique() == 3


def test_times_of_a_parquet_file_may_be_dates(tmp_path):
    days = [datetime.date(2024, 1, 2), datetime.date(1969, 1, 1)]
    pl.DataFrame({"user": ["u", "u"], "item": ["a", "b"], "timestamp": days}).write_parquet(tmp_path / "t.parquet")
    assert read_interactions(tmp_path / "t.parquet", Columns())["time"].to_list() == days


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "user,itme,timestamp\nu,i,1\n", r"line 1: no column 'item'. The file has: user, itme, timestamp"),
        ("t.csv", "user,item,timestamp\n", r"no records"),
        ("t.csv", "user,item,timestamp,item\nu,i,1,j\n", r"line 1: a column name is given twice"),
        ("t.csv", "user,item,timestamp\nu,i,1\nu,,2\n", r"line 3: 'item' is missing"),
        (
            "t.csv",
            "user,item,timestamp\nu,i,1\nu,j,x\n",
            r"line 3: 'timestamp' is not a number like the first, '1': 'x'",
        ),
        (
            "t.csv",
            "user,item,timestamp\nu,i,noon\n",
            r"line 2: 'timestamp' is not a number or an ISO 8601 date: 'noon'",
        ),
        (
            "t.csv",
            "user,item,timestamp\nu,i,1\nu,i,nan\n",
            r"line 3: 'timestamp' is not a number like the first, '1': 'nan'",
        ),
        ("t.csv", "user,item,timestamp\nu,i,1,7\n", r"line 2: expected 3 fields, got 4"),
        ("t.csv", b"us\xffer,item,timestamp\nu,i,1\n", r"line 1: not UTF-8"),
        (
            "t.jsonl",
            '{"user": "u", "item": "i", "timestamp": 1}\n{"user": "u", "item": {}, "timestamp": 1}\n',
            r"line 2",
        ),
        ("t.jsonl", '{"user": "u", "item": "i"}\n', r"line 1: no 'timestamp'. Keys here: user, item"),
        ("t.jsonl", "[1, 2]\n", r"line 1: expected a JSON object"),
        ("t.parquet", "PAR1 not really", r"not a readable parquet file"),
        ("t.xls", "x", r"unknown form '.xls'"),
        ("t.csv", "", r"the file is empty"),
        ("t.jsonl", "", r"the file is empty"),
    ],
)
def test_damaged_interactions(tmp_path, name, content, message):
    path = write(tmp_path / name, content)
    with pytest.raises(UserError, match=message) as caught:
        read_interactions(path, Columns())
    assert str(path) in str(caught.value)


def test_fractional_ids_are_refused(tmp_path):
    pl.DataFrame({"user": [1.0], "item": ["a"], "timestamp": [3]}).write_parquet(tmp_path / "t.parquet")
    with pytest.raises(UserError, match=r"column 'user' holds Float64"):
        read_interactions(tmp_path / "t.parquet", Columns())


def test_one_column_cannot_play_two_roles():
    with pytest.raises(ValidationError, match=r"must be three columns, got a, a, timestamp"):
        Columns(user="a", item="a")
