"""Lists for a file of users: every form, errors that name the file, nothing half-written."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from rl4rec.errors import UserError
from rl4rec.model.policy import SlatePolicy
from rl4rec.serve import batch as batch_scoring
from rl4rec.serve.batch import recommend_file
from rl4rec.serve.recommender import Recommender

NAMES = [f"i{item}" for item in range(24)]


@pytest.fixture
def recommender(tiny_policy: SlatePolicy) -> Recommender:
    return Recommender(tiny_policy, NAMES, np.arange(24)[::-1].copy())


def histories(users: int) -> list[list[str]]:
    return [[NAMES[(3 * row + step) % 24] for step in range(row % 4)] for row in range(users)]


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_a_list_for_every_user_in_order(
    recommender: Recommender, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_scoring, "_AT_ONCE", 5)
    users = [f"u{row}" for row in range(13)]
    table = pl.DataFrame({"user": users, "history": histories(13), "exclude": [["i9", "?"]] * 13})
    source = tmp_path / f"users.{form}"
    table.write_parquet(source) if form == "parquet" else table.write_ndjson(source)
    assert recommend_file(recommender, source, tmp_path / "new" / "lists.parquet", k=4) == 13
    found = pl.read_parquet(tmp_path / "new" / "lists.parquet")
    assert found.columns == ["user", "items", "scores", "unknown"]
    assert found["user"].to_list() == users
    expected = recommender.recommend(histories(13), k=4, exclude=[["i9", "?"]] * 13)
    assert found["items"].to_list() == [answer.items for answer in expected]
    assert found["unknown"].to_list() == [["?"]] * 13
    assert np.allclose(found["scores"].to_list(), [answer.scores for answer in expected])


def test_missing_histories_are_empty_ones(recommender: Recommender, tmp_path: Path) -> None:
    pl.DataFrame({"history": [None, ["i3"]], "exclude": [["i0"], None]}).write_parquet(tmp_path / "u.parquet")
    recommend_file(recommender, tmp_path / "u.parquet", tmp_path / "o.parquet", k=2)
    assert pl.read_parquet(tmp_path / "o.parquet")["items"][0].to_list() == ["i1", "i2"]  # by popularity, without i0


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_whole_numbers_are_ids(tiny_policy: SlatePolicy, tmp_path: Path, form: str) -> None:
    recommender = Recommender(tiny_policy, [str(item) for item in range(24)], np.arange(24))
    table, source = pl.DataFrame({"history": [[3, 4], []], "exclude": [[5], [99]]}), tmp_path / f"users.{form}"
    table.write_parquet(source) if form == "parquet" else table.write_ndjson(source)
    recommend_file(recommender, source, tmp_path / "lists.parquet", k=4)
    found = pl.read_parquet(tmp_path / "lists.parquet")
    expected = recommender.recommend([["3", "4"], []], k=4, exclude=[["5"], ["99"]])
    assert found["items"].to_list() == [answer.items for answer in expected]
    assert found["unknown"].to_list() == [[], ["99"]]


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ({"items": [["i1"]]}, "u.parquet", "no column 'history'. The file has: items"),
        (
            {"history": [[0.5]]},
            "u.parquet",
            r"'history' must hold lists of item ids \(text or whole.*, but it holds List",
        ),
        ({"history": [[True]]}, "u.parquet", r"but it holds List\(Boolean\)"),
        ({"history": [1, 2]}, "u.parquet", "but it holds Int64"),
        ({"history": ["i1 i2"]}, "u.parquet", "must hold lists of item ids"),
        ({"history": [["i1"]], "exclude": [1]}, "u.parquet", "column 'exclude' must hold lists"),
        ({"history": [["i1"]], "scores": [1.0]}, "u.parquet", "column 'scores' would be overwritten"),
        ({"history": []}, "u.parquet", "no users"),
        ({"history": [["i1"]]}, "u.csv", "unknown form '.csv'. Expected .parquet or .jsonl"),
        (b"not parquet", "u.parquet", "not a readable parquet file"),
        (b"{broken", "u.jsonl", "cannot be read"),
        (None, "u.parquet", "no such file"),
    ],
)
def test_bad_files_are_named_and_nothing_is_written(
    recommender: Recommender, tmp_path: Path, content: object, name: str, message: str
) -> None:
    source = tmp_path / name
    if isinstance(content, dict):
        pl.DataFrame(
            content, schema_overrides={"history": pl.List(pl.String)} if content == {"history": []} else None
        ).write_parquet(source)
    elif isinstance(content, bytes):
        source.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        recommend_file(recommender, source, tmp_path / "out.parquet", k=2)
    assert str(source) in str(error.value)
    assert {path.name for path in tmp_path.iterdir()} <= {name}


def test_a_failure_in_the_middle_leaves_the_earlier_file_as_it_was(
    recommender: Recommender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_scoring, "_AT_ONCE", 2)
    (tmp_path / "out.parquet").write_text("earlier")
    pl.DataFrame({"history": [["i1"]] * 4 + [["x"] * 100_001]}).write_parquet(tmp_path / "u.parquet")
    with pytest.raises(UserError, match="at most 100000 item ids"):
        recommend_file(recommender, tmp_path / "u.parquet", tmp_path / "out.parquet", k=2)
    assert (tmp_path / "out.parquet").read_text() == "earlier"
    assert {path.name for path in tmp_path.iterdir()} == {"out.parquet", "u.parquet"}


def test_k_out_of_range(recommender: Recommender, tmp_path: Path) -> None:
    pl.DataFrame({"history": [["i1"]]}).write_parquet(tmp_path / "u.parquet")
    with pytest.raises(UserError, match="k must be a whole number from 1 to 24"):
        recommend_file(recommender, tmp_path / "u.parquet", tmp_path / "out.parquet", k=25)
