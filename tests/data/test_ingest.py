"""The raw store: what is new is added once, in one piece; what is damaged leaves no trace."""

import fcntl
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from rl4rec.data.fingerprint import describe_files
from rl4rec.data.ingest import ingest
from rl4rec.data.prepare import prepare
from rl4rec.data.raw import raw_files, read_raw
from rl4rec.errors import UserError
from rl4rec.params import Columns, DataParams

COLUMNS = Columns(user="customer", item="sku", timestamp="at")


def delivery(path: Path, *rows: tuple[str, str, object]) -> Path:
    lines = ["customer,sku,at", *(",".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def content(store: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in store.iterdir()}


def test_what_is_new_becomes_a_part_and_earlier_parts_stay_as_they_are(tmp_path: Path) -> None:
    store = tmp_path / "store"
    first = ingest(delivery(tmp_path / "a.csv", ("u", "x", 1), ("u", "y", 2), ("u", "x", 1)), store, COLUMNS)
    assert (first.added, first.known) == (2, 1)
    before = content(store)
    second = ingest(delivery(tmp_path / "b.csv", ("u", "y", 2), ("u", "x", 3), ("v", "y", 2)), store, COLUMNS)
    assert (second.added, second.known) == (2, 1)
    assert before.items() <= content(store).items()
    assert [path.name[:10] for path in raw_files(DataParams(source="interactions", path=str(store)), fetch=False)] == [
        "part-00000", "part-00001"
    ]  # fmt: skip
    params = DataParams(source="interactions", path=str(store), columns=COLUMNS)
    rows = read_raw(params, raw_files(params, fetch=False)).rows()
    assert rows == [("u", "x", 1), ("u", "y", 2), ("u", "x", 3), ("v", "y", 2)]


def test_the_same_delivery_again_changes_nothing(tmp_path: Path) -> None:
    file = delivery(tmp_path / "a.csv", ("u", "x", 1))
    ingest(file, tmp_path / "store", COLUMNS)
    before = content(tmp_path / "store")
    again = ingest(file, tmp_path / "store", COLUMNS)
    assert (again.part, again.added, again.known) == (None, 0, 1)
    assert content(tmp_path / "store") == before


def test_ids_with_commas_and_leading_zeros_survive(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"customer": "0,1", "sku": "007", "at": 5}) + "\n")
    ingest(file, tmp_path / "store", COLUMNS)
    assert ingest(file, tmp_path / "store", COLUMNS).added == 0
    params = DataParams(source="interactions", path=str(tmp_path / "store"), columns=COLUMNS)
    assert read_raw(params, raw_files(params, fetch=False)).rows() == [("0,1", "007", 5)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("customer,sku\nu,x\n", "no column 'at'"),
        ("customer,sku,at\nu,x,\n", "line 2"),
        ("customer,sku,at\nu,x,soon\n", "at"),
        ("", "a.csv"),
    ],
)
def test_a_damaged_delivery_leaves_no_trace(tmp_path: Path, text: str, message: str) -> None:
    store = tmp_path / "store"
    ingest(delivery(tmp_path / "ok.csv", ("u", "x", 1)), store, COLUMNS)
    before = content(store)
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        ingest(tmp_path / "a.csv", store, COLUMNS)
    assert content(store) == before


def test_times_of_another_kind_are_refused(tmp_path: Path) -> None:
    ingest(delivery(tmp_path / "a.csv", ("u", "x", 1)), tmp_path / "store", COLUMNS)
    message = r"b\.csv: column 'at' holds dates such as 2024-05-01, but that of .*part-00000.* numbers such as 1"
    with pytest.raises(UserError, match=message):
        ingest(delivery(tmp_path / "b.csv", ("u", "y", "2024-05-01")), tmp_path / "store", COLUMNS)
    assert len(content(tmp_path / "store")) == 1
    delivery(tmp_path / "store" / "z.csv", ("u", "y", "2024-05-01"))  # put there by hand
    params = DataParams(source="interactions", path=str(tmp_path / "store"), columns=COLUMNS)
    with pytest.raises(UserError, match="times must be of one kind"):
        read_raw(params, raw_files(params, fetch=False))


def test_one_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    new = delivery(tmp_path / "a.csv", ("u", "x", 1))
    folder = os.open(tmp_path / "store", os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    try:
        with pytest.raises(UserError, match="another ingestion is under way"):
            ingest(new, tmp_path / "store", COLUMNS)
    finally:
        os.close(folder)  # as when its holder dies
    assert ingest(new, tmp_path / "store", COLUMNS).added == 1


def test_a_file_is_no_store(tmp_path: Path) -> None:
    file = delivery(tmp_path / "a.csv", ("u", "x", 1))
    with pytest.raises(UserError, match="is a file, and a store of interactions is a folder"):
        ingest(file, file, COLUMNS)


def test_a_store_prepares_as_one_file_with_the_same_rows_would(tmp_path: Path) -> None:
    rows = [(f"u{user}", f"i{(user + step) % 5}", 10 * step + user) for step in range(6) for user in range(8)]
    store = tmp_path / "store"
    for number in range(0, len(rows), 17):
        ingest(delivery(tmp_path / f"{number}.csv", *rows[number : number + 17]), store, COLUMNS)
    settings = {"source": "interactions", "columns": COLUMNS, "k_core": 2}
    whole = delivery(tmp_path / "whole.csv", *rows)
    one = prepare(DataParams(**settings, path=str(whole)), tmp_path / "one")
    many = prepare(DataParams(**settings, path=str(store)), tmp_path / "many")
    assert one.data_hash == many.data_hash
    assert len(describe_files(raw_files(DataParams(**settings, path=str(store)), fetch=False))) == 3


def test_an_empty_folder_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no tables in the folder .* rl4rec ingest FILE"):
        raw_files(DataParams(source="interactions", path=str(tmp_path)), fetch=False)


def test_the_command(tmp_path: Path) -> None:
    columns = {"user": "customer", "item": "sku", "timestamp": "at"}
    params = {"data": {"source": "interactions", "path": "store", "columns": columns}}
    (tmp_path / "params.yaml").write_text(json.dumps(params))
    file = delivery(tmp_path / "a.csv", ("u", "x", 1))

    def run() -> str:
        command = [
            sys.executable,
            "-c",
            "from rl4rec.cli import main; main()",
            "ingest",
            str(file),
            "--root",
            str(tmp_path),
        ]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert "1 interactions added (0 left out: known, or twice)" in run()
    assert "nothing new, all 1 interactions are in the store" in run()
    assert pl.read_parquet(next((tmp_path / "store").glob("part-*"))).columns == ["customer", "sku", "at"]
