"""The whole step: from files to the prepared folder."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from rl4rec.data import prepare as prepare_module
from rl4rec.data.dataset import load_prepared
from rl4rec.data.fingerprint import write_fingerprint
from rl4rec.data.prepare import prepare
from rl4rec.errors import UserError
from rl4rec.params import DataParams

ROOT = Path(__file__).parents[2]

# user, item, time; with k_core 2: "once" and item "rare" fall, user "two" keeps two items.
ROWS = [
    ("zoe", "milk", 3), ("zoe", "eggs", 2), ("zoe", "bread", 1), ("zoe", "bread", 1),
    ("adam", "eggs", 1), ("adam", "milk", 1), ("adam", "rare", 2), ("adam", "bread", 9),
    ("two", "milk", 5), ("two", "bread", 6),
    ("once", "milk", 1),
]  # fmt: skip


def as_csv(path: Path, rows: list[tuple[str, str, int]], **settings: object) -> DataParams:
    path.write_text("user,item,timestamp\n" + "".join(f"{u},{i},{t}\n" for u, i, t in rows))
    return DataParams(source="interactions", path=str(path), k_core=2, **settings)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_worked_by_hand(tmp_path):
    data = prepare(as_csv(tmp_path / "rows.csv", ROWS, ties="item"), tmp_path / "out")
    assert data.item_ids == ["bread", "eggs", "milk"]
    # Users by their sequence: zoe bread eggs milk, adam eggs milk (equal times: by item) bread, two milk bread.
    assert data.users == ["zoe", "adam", "two"]
    assert [data.sequences[row].tolist() for row in range(3)] == [[0, 1, 2], [1, 2, 0], [2, 0]]
    # Training part: bread (zoe), eggs (adam), milk and bread (two, who has fewer than three).
    assert data.item_counts.tolist() == [2, 1, 1]
    stats = data.stats
    assert (stats["users"], stats["items"], stats["interactions"]) == (3, 3, 8)
    assert stats["length"] == {"min": 2, "median": 3.0, "mean": 2.6667, "max": 3}
    assert stats["density"] == pytest.approx(8 / 9)
    assert stats["rows"] == {"read": 11, "dropped_duplicates": 1, "dropped_k_core": 2, "k_core_rounds": 1}
    assert stats["files"][0]["name"] == "rows.csv"
    assert stats["files"][0]["bytes"] == (tmp_path / "rows.csv").stat().st_size
    assert data.oracle("test") is None
    assert pl.read_parquet_schema(tmp_path / "out" / "sequences.parquet") == {
        "user": pl.String,
        "items": pl.List(pl.Int32),
        "before_valid": pl.Int32,
        "before_test": pl.Int32,
    }


def test_the_order_of_the_rows_does_not_matter(tmp_path):
    prepare(as_csv(tmp_path / "rows.csv", ROWS), tmp_path / "a")
    for seed in range(5):
        shuffled = random.Random(seed).sample(ROWS, len(ROWS))
        prepare(as_csv(tmp_path / "rows.csv", shuffled), tmp_path / "b")
        first, second = contents(tmp_path / "a"), contents(tmp_path / "b")
        assert first.pop("stats.json") != second.pop("stats.json"), "the digest of the file is another"
        assert first == second


def test_sequence_files_are_filtered_too(tmp_path):
    (tmp_path / "mine.txt").write_text("u1 a b c\nu2 b a c x\nu3 c b a\n")
    data = prepare(DataParams(source="sequences", path=str(tmp_path / "mine.txt"), k_core=3), tmp_path / "out")
    assert data.item_ids == ["a", "b", "c"]
    assert data.users == ["u1", "u2", "u3"]


def test_users_are_in_sequence_order_beyond_one_byte(tmp_path):
    # Numbers 255, 256 and 1 must be in the order of numbers, not of their little-endian bytes.
    lines = [f"u{n} {a:03d} {b:03d} {c:03d}" for n, (a, b, c) in enumerate([(256, 0, 1), (255, 1, 2), (1, 299, 0)])]
    lines.append("all " + " ".join(f"{n:03d}" for n in range(300)))
    (tmp_path / "mine.txt").write_text("\n".join(lines))
    data = prepare(DataParams(source="sequences", path=str(tmp_path / "mine.txt"), k_core=1), tmp_path / "out")
    assert data.users == ["all", "u2", "u1", "u0"]


def test_nothing_left(tmp_path):
    params = as_csv(tmp_path / "rows.csv", ROWS)
    with pytest.raises(
        UserError, match=r"data.k_core: nothing is left of 11 interactions \(4 users, 4 items\).*needs 7"
    ):
        prepare(params.model_copy(update={"k_core": 7}), tmp_path / "out")
    with pytest.raises(UserError, match="no user has three"):
        prepare(as_csv(tmp_path / "rows.csv", [*ROWS[8:10], ("x", "milk", 1), ("x", "bread", 2)]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_failure_leaves_the_earlier_data_whole(tmp_path, monkeypatch):
    params = as_csv(tmp_path / "rows.csv", ROWS)
    prepare(params, tmp_path / "out")
    before = contents(tmp_path)

    def fail(_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(prepare_module, "build_tokenizer", fail)
    with pytest.raises(OSError, match="no space"):
        prepare(params, tmp_path / "out")
    assert contents(tmp_path) == before


def test_no_file(tmp_path):
    params = DataParams(source="sequences", path=str(tmp_path / "absent.txt"))
    with pytest.raises(UserError, match=r"data.path: no such file: .*absent.txt"):
        prepare(params, tmp_path / "out")


# --- the real data -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def beauty() -> Path:
    home = os.environ.get("RL4REC_DATA_HOME", "")
    if not (Path(home) / "sequential_data.txt").is_file() or not (Path(home) / "ratings_Beauty_5.csv.gz").is_file():
        pytest.skip("RL4REC_DATA_HOME does not hold both layouts of Amazon Beauty")
    return Path(home)


def test_both_layouts_of_beauty_are_one_data_set(beauty, tmp_path):
    layouts = ("ratings_Beauty_5.csv.gz", "sequential_data.txt")
    ratings, sequences = (prepare(DataParams(path=str(beauty / name)), tmp_path / name) for name in layouts)
    for data in (ratings, sequences):
        assert (len(data.users), data.num_items, len(data.sequences.values)) == (22_363, 12_101, 198_502)
    assert ratings.item_ids == sequences.item_ids
    assert (ratings.sequences.values == sequences.sequences.values).all()
    assert (ratings.sequences.offsets == sequences.sequences.offsets).all()
    assert ratings.data_hash == sequences.data_hash
    # Against the file itself, read in the plainest way.
    names = json.loads((beauty / "item_asin.json").read_text())
    lines = (beauty / "sequential_data.txt").read_text().splitlines()
    expected = sorted([names[item] for item in line.split()[1:]] for line in lines)
    got = [[ratings.item_ids[item] for item in ratings.sequences[row]] for row in range(len(ratings.users))]
    assert got == expected


# --- fingerprint and scripts -------------------------------------------------------------------------


def test_fingerprint_follows_the_content_and_names_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = Path("data/raw.json")
    params = as_csv(tmp_path / "rows.csv", ROWS)
    write_fingerprint(params, out)
    first = out.read_text()
    assert str(tmp_path) not in first
    assert json.loads(first)["files"][0]["name"] == "rows.csv"
    write_fingerprint(params, out)
    assert out.read_text() == first
    as_csv(tmp_path / "rows.csv", ROWS[::-1])
    write_fingerprint(params, out)
    assert out.read_text() != first


def test_fingerprint_without_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_fingerprint(DataParams(source="simulated"), Path("data/raw.json"))
    assert json.loads(Path("data/raw.json").read_text()) == {"source": "simulated", "files": []}


def test_recorded_fingerprint_stays_where_the_raw_data_is_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RL4REC_DATA_HOME", raising=False)
    params = DataParams.model_validate({"download": {"enabled": False}})
    out = Path("raw.json")
    with pytest.raises(UserError, match="Amazon Beauty is not here"):
        write_fingerprint(params, out)
    recorded = '{"source": "amazon-beauty", "files": [{"name": "ratings_Beauty.csv"}]}'
    out.write_text(recorded)
    write_fingerprint(params, out)
    assert out.read_text() == recorded


def test_scripts_run_in_a_workspace(tmp_path):
    (tmp_path / "params.yaml").write_text(
        "data: {source: simulated, simulated: {users: 60, items: 30}}\ntracking: {enabled: false}\n"
    )
    for script in ("fingerprint", "prepare"):
        command = [sys.executable, str(ROOT / "pipelines" / f"{script}.py")]
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
        )
        assert done.returncode == 0, done.stderr
    assert load_prepared(tmp_path / "data" / "prepared").oracle("valid") is not None
    assert (tmp_path / "data" / "raw.json").is_file()
