"""Malformed inputs, each through the command that meets it: a message that says where and what, and nothing written."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from rl4rec.data.oddities import oddities
from tests.reliability.bad_inputs import CASES, GOOD, HEAD, PARAMS, Case, both, put, raw, settings, source
from tests.reliability.conftest import ROOT, Run, snapshot


def test_the_table_is_long_and_has_every_command() -> None:
    assert len(CASES) >= 60
    assert len({case.name for case in CASES}) == len(CASES)
    assert {
        "ingest",
        "prepare",
        "fingerprint",
        "params",
        "overrides",
        "evaluate",
        "recommend",
        "monitor",
        "compare",
    } <= {case.name.split(":")[0] for case in CASES}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_malformed_input(case: Case, workspace: Path, run: Run) -> None:
    if not any((workspace / name).exists() for name in ("changes.yaml",)):
        (workspace / "changes.yaml").write_text("{}")
    case.damage(workspace)
    before = snapshot(workspace)
    status, out, err = run(*case.command)
    message = " ".join(err.split("error: ", 1)[-1].split())
    assert status == 2, (out, err)
    for part in case.says:
        assert part in message
    assert "Traceback" not in err and "error: " in err
    assert len(message) < 2000  # not the megabytes of the input
    assert not (workspace / "executed").exists()
    assert snapshot(workspace) == before, "something was written"


@pytest.mark.parametrize("command", [("rl4rec", "check-params"), ("prepare",)], ids=" ".join)
@pytest.mark.parametrize("how", ["--debug", "RL4REC_DEBUG"])
def test_debug_shows_the_traceback(
    command: tuple[str, ...], how: str, workspace: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workspace / "params.yaml").write_text("sft: {seed: -1}")
    if how == "--debug":
        command = (command[0], how, *command[1:])
    else:
        monkeypatch.setenv(how, "1")
    status, _, err = run(*command)
    assert status == 2
    assert "Traceback" in err and "pydantic_core" in err  # the cause too, which the message hides
    assert err.splitlines()[-2].startswith("error: params.yaml: 1 invalid setting")


# --- what the system refuses -----------------------------------------------------------------------


@contextlib.contextmanager
def nobody(workspace: Path) -> Iterator[None]:
    """Without root's rights, where the tests have them."""
    if os.geteuid() != 0:
        yield
        return
    modes = {folder: folder.stat().st_mode for folder in workspace.parents}
    for folder, mode in modes.items():
        folder.chmod(mode | 0o055)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
        for folder, mode in modes.items():
            folder.chmod(mode)


RECOMMEND = ("rl4rec", "recommend", "--model", "models/sft", "--users", "users.jsonl", "--out", "new/l.parquet")
UNREADABLE = [
    (("rl4rec", "ingest", "new.csv"), "new.csv"),
    (("rl4rec", "ingest", "store/part-00000-start.parquet"), "store/part-00000-start.parquet"),
    (("rl4rec", "check-params"), "params.yaml"),
    (("prepare",), "store/part-00000-start.parquet"),
    (("fingerprint",), "store/part-00000-start.parquet"),
    (("evaluate", "sft"), "data/prepared/sequences.parquet"),
    (("evaluate", "sft"), "data/prepared/stats.json"),
    (("evaluate", "sft"), "models/sft/config.json"),
    (("evaluate", "sft"), "models/sft/model.safetensors"),
    (("compare",), "metrics/ppo.json"),
    (("compare",), "ranks/ppo.parquet"),
    (("compare",), "slates/ppo.parquet"),
    (("compare",), "logs/ppo.jsonl"),
    ((*RECOMMEND, "--k", "3"), "users.jsonl"),
    (("rl4rec", "monitor", "--served", "served.parquet", "--policy", "sft"), "served.parquet"),
    (("rl4rec", "ingest", "new.csv"), "store"),
    (("prepare",), "store"),
    (("evaluate", "sft"), "data/prepared"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("command", "name"), UNREADABLE, ids=lambda value: value if isinstance(value, str) else value[0]
)
def test_what_may_not_be_read(command: tuple[str, ...], name: str, workspace: Path, run: Run) -> None:
    for path in (workspace, *workspace.rglob("*")):
        path.chmod(0o777 if path.is_dir() else 0o666)
    (workspace / name).chmod(0)
    before = snapshot(workspace)
    with nobody(workspace):
        status, _, err = run(*command)
    assert status == 2, err
    assert "Traceback" not in err
    assert Path(name).stem in err.splitlines()[-1] and "ermission denied" in err.splitlines()[-1]
    assert snapshot(workspace) == before, "something was written"


# --- what looks odd, and is right ------------------------------------------------------------------

ODD = "ab c", 'say "x"', "naïve", "日本", "😀", "[PAD]", "100%", "a,b", "it's", "x\\y", "-1", "0"


def quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def odd_csv(end: str) -> str:
    return end.join(["user,item,timestamp", *(f"u,{quoted(item)},{n}" for n, item in enumerate(ODD)), ""])


RIGHT = {
    "plain": ("x.csv", GOOD, ["a", "b", "c"]),
    "byte order mark": ("x.csv", "\ufeff" + GOOD, ["a", "b", "c"]),
    "byte order mark, gzip": ("x.csv.gz", "\ufeff" + GOOD, ["a", "b", "c"]),
    "CRLF": ("x.csv", GOOD.replace("\n", "\r\n"), ["a", "b", "c"]),
    "CRLF and a byte order mark": ("x.tsv", "\ufeff" + GOOD.replace("\n", "\r\n").replace(",", "\t"), ["a", "b", "c"]),
    "no newline at the end": ("x.csv", GOOD.rstrip("\n"), ["a", "b", "c"]),
    "blank lines": ("x.csv", GOOD.replace("\n", "\n\n"), ["a", "b", "c"]),
    "odd ids": ("x.csv", odd_csv("\n"), list(ODD)),
    "odd ids, CRLF": ("x.csv", odd_csv("\r\n"), list(ODD)),
    "a column called line": ("x.csv", "line,user,item,timestamp\n9,u,a,1\n9,u,b,2\n9,u,c,3\n", ["a", "b", "c"]),
    "rows twice": ("x.csv", GOOD + "u,a,1\nu,a,1\n", ["a", "b", "c"]),
    "a user of one interaction": ("x.csv", GOOD + "w,a,7\n", ["a", "b", "c"]),
    "times before 1970": ("x.csv", HEAD + "u,a,-9\nu,b,-8\nu,c,0\n", ["a", "b", "c"]),
    "large times": ("x.csv", HEAD + f"u,a,{2**63 - 3}\nu,b,{2**63 - 2}\nu,c,{2**63 - 1}\n", ["a", "b", "c"]),
    "an index without a name, as pandas writes it": (
        "x.csv",
        ",user,item,timestamp\n0,u,a,1\n1,u,b,2\n2,u,c,3\n",
        ["a", "b", "c"],
    ),
    "commas at the ends": ("x.csv", "user,item,timestamp,\nu,a,1,\nu,b,2,\nu,c,3,\n", ["a", "b", "c"]),
    "unused columns of one name": ("x.csv", "x,x,user,item,timestamp\n,,u,a,1\n,,u,b,2\n,,u,c,3\n", ["a", "b", "c"]),
    "an ending in capitals": ("X.CSV", GOOD, ["a", "b", "c"]),
    "whole numbers with a decimal point": ("x.csv", HEAD + "u,a,9.0\nu,b,10.0\nu,c,11.0\n", ["a", "b", "c"]),
    "nanoseconds": (
        "x.csv",
        HEAD + "".join(f"u,{i},{1714557602123456789 + n}\n" for n, i in enumerate("abc")),
        ["a", "b", "c"],
    ),
    "instants of several zones": (
        "x.csv",
        HEAD + "u,c,2024-05-01T10:02Z\nu,a,2024-05-01T12:00:00+02:00\nu,b,2024-05-01 05:01:00.5-05\n",
        ["a", "b", "c"],
    ),
    "JSON with a byte order mark": (
        "x.jsonl",
        "\ufeff" + "".join(f'{{"user": "u", "item": "{item}", "timestamp": {n}}}\n' for n, item in enumerate("abc")),
        ["a", "b", "c"],
    ),
    "JSON with CRLF and escapes": (
        "x.jsonl",
        "".join(f'{{"user": "u", "item": "\\u65e5{n}", "timestamp": {n}}}\r\n' for n in range(3)),
        ["日0", "日1", "日2"],
    ),
}


@pytest.mark.parametrize("name", RIGHT)
def test_odd_but_right_input_is_read_right(name: str, workspace: Path, run: Run) -> None:
    file, content, items = RIGHT[name]
    both(put(file, content), source("interactions", file))(workspace)
    status, _, err = run("prepare")
    assert status == 0, err
    ids = pl.read_parquet(workspace / "data/prepared/items.parquet")["item"].to_list()
    assert sorted(ids) == sorted(items)
    rows = pl.read_parquet(workspace / "data/prepared/sequences.parquet")
    longest = rows.sort(pl.col("items").list.len())["items"][-1]
    assert [ids[number] for number in longest] == items  # u's, in the order of time


def test_gzip_is_known_by_its_content(workspace: Path, run: Run) -> None:
    both(raw("x.csv", gzip.compress(GOOD.encode())), source("interactions", "x.csv"))(workspace)
    assert run("prepare")[0] == 0
    assert pl.read_parquet(workspace / "data/prepared/items.parquet")["item"].to_list() == ["a", "b", "c"]


def test_a_folder_is_read_whole_and_what_is_not_is_named(workspace: Path, run: Run) -> None:
    head, *rows = GOOD.splitlines()
    names = ("1.csv", "B.CSV", "deep/er/3.csv", "deep/4.Csv.GZ")
    for name, row in zip(names, rows, strict=True):
        put(f"folder/{name}", f"{head}\n{row}\n")(workspace)
    text = f"{head}\n{rows[3]}\n".encode()
    (workspace / "folder/deep/4.Csv.GZ").write_bytes(gzip.compress(text))
    both(put("folder/c.csv.bz2", "x"), put("folder/deep/notes.txt", "x"), put("folder/.hidden.csv", "x"))(workspace)
    source("interactions", "folder")(workspace)
    status, _, err = run("prepare")
    assert status == 0, err
    stats = json.loads((workspace / "data/prepared/stats.json").read_text())
    assert stats["rows"]["read"] == 4
    assert [file["name"] for file in stats["files"]] == ["1.csv", "B.CSV", "deep/4.Csv.GZ", "deep/er/3.csv"]
    assert stats["files_left_out"] == ["c.csv.bz2", "deep/notes.txt"]
    assert [sentence for sentence in oddities(stats) if "not read" in sentence] == [
        "2 files of the data folder not read: c.csv.bz2, deep/notes.txt. Tables end in .csv, .tsv, .jsonl, .ndjson, "
        ".json (each also .gz) or .parquet"
    ]


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_sequences_with_odd_ids(mark: str, workspace: Path, run: Run) -> None:
    both(put("x.txt", mark + 'u "a" 日本 [PAD]\r\nv a,b "a"\r\n'), source("sequences", "x.txt"))(workspace)
    assert run("prepare").status == 0
    users = pl.read_parquet(workspace / "data/prepared/sequences.parquet")["user"].to_list()
    ids = pl.read_parquet(workspace / "data/prepared/items.parquet")["item"].to_list()
    assert (sorted(users), sorted(ids)) == (["u", "v"], sorted(['"a"', "日本", "[PAD]", "a,b"]))


def test_ratings_with_a_byte_order_mark(workspace: Path, run: Run) -> None:
    both(put("b/ratings_Beauty.csv", "\ufeffu,a,5,1\nu,b,5,2\nu,c,5,3\n"), source("amazon-beauty", "b"))(workspace)
    assert run("prepare").status == 0
    assert pl.read_parquet(workspace / "data/prepared/sequences.parquet")["user"].to_list() == ["u"]


def test_users_of_recommend_with_a_byte_order_mark(workspace: Path, run: Run) -> None:
    (workspace / "users.jsonl").write_text('\ufeff{"user": "日 本", "history": ["i1", "no \\"such\\" item"]}\r\n')
    done = run(*RECOMMEND, "--k", "3")
    assert done.status == 0, done.err
    (row,) = pl.read_parquet(workspace / "new/l.parquet").to_dicts()
    assert (row["user"], len(row["items"]), row["unknown"]) == ("日 本", 3, ['no "such" item'])


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffsft: {seed: 5}\r\n",
        "base: &a {seed: 5}\nsft: *a\n",
        "sft: {<<: {seed: 4}, seed: 5}\n",
        "sft:\n  seed: 5 # é\n",
    ],
    ids=["byte order mark, CRLF", "alias", "merge", "comment"],
)
def test_odd_but_right_settings(text: str, workspace: Path, run: Run) -> None:
    text = text.replace("base: &a {seed: 5}\nsft: *a", "sft: &a {seed: 5}\ncompare: *a")
    (workspace / "params.yaml").write_bytes(text.encode())
    done = run("rl4rec", "check-params")
    assert done.status == 0, done.err
    assert "seed: 5" in done.out


def test_what_the_table_leaves_whole_works(workspace: Path, run: Run) -> None:
    """The workspace before the damage: every command of the table does its work."""
    assert run("rl4rec", "check-params").status == 0
    settings(tracking={"enabled": False})(workspace)
    for command in (
        ("rl4rec", "ingest", "new.csv"),
        (
            "rl4rec",
            "recommend",
            "--model",
            "models/sft",
            "--users",
            "users.jsonl",
            "--out",
            "new/l.parquet",
            "--k",
            "3",
        ),
        ("evaluate", "sft"),
        ("compare",),
        ("rl4rec", "show-comparison"),
        ("fingerprint",),
        ("prepare",),
    ):
        done = run(*command)
        assert done.status == 0, (command, done.err)
    assert run("rl4rec", "monitor", "--served", "served.parquet", "--policy", "sft").status in (0, 3)
    assert (ROOT / "params.yaml").exists() and len(PARAMS) > 30
