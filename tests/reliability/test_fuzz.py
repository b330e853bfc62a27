"""Inputs by the thousand: files that are almost right, against the readers' oracle and against independent readers."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from rl4rec.data.sources.interactions import read_interactions
from rl4rec.data.sources.sequences import read_sequences
from rl4rec.errors import UserError
from rl4rec.params import Columns, Params
from rl4rec.settings import load_params
from tests.reliability.fuzz_targets import TARGETS, attempt

# The same examples on every machine and in every run; `make fuzz` looks for new ones.
SAME = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    phases=(Phase.explicit, Phase.generate),
)


def edits(size: int) -> st.SearchStrategy[list[tuple[str, float, bytes]]]:
    """Damages of a file: parts overwritten, inserted, left out or given twice."""
    piece = st.one_of(
        st.binary(max_size=size), st.sampled_from([b"\0", b"\n", b'"', b",", b"\xff", b"[", b"{", b"&a "])
    )
    how = st.sampled_from(["overwrite", "insert", "drop", "repeat", "cut"])
    return st.lists(st.tuples(how, st.floats(0, 1), piece), max_size=6)


def damaged(data: bytes, changes: list[tuple[str, float, bytes]]) -> bytes:
    for how, place, piece in changes:
        at = int(place * len(data))
        match how:
            case "overwrite":
                data = data[:at] + piece + data[at + len(piece) :]
            case "insert":
                data = data[:at] + piece + data[at:]
            case "drop":
                data = data[:at] + data[at + len(piece) + 1 :]
            case "repeat":
                data = data[:at] + data[at // 2 : at] * 3 + data[at:]
            case "cut":
                data = data[:at]
    return data


@pytest.mark.parametrize("name", TARGETS)
def test_a_damaged_file_is_read_or_refused(name: str, workspace: Path) -> None:
    target = TARGETS[name]
    seeds = target.seeds(workspace)

    @SAME
    @given(st.sampled_from(seeds), edits(12))
    def check(seed: bytes, changes: list[tuple[str, float, bytes]]) -> None:
        attempt(target, workspace, damaged(seed, changes))

    attempt(target, workspace, seeds[0])
    check()


# --- right readings --------------------------------------------------------------------------------

CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
IDS = st.text(CHARACTERS, min_size=1, max_size=12)
# Of one unit: numbers that only another unit could explain are refused.
SMALL = st.integers(-(10**8), 10**8)
LARGE = st.integers(-(2**63), -(2**62)) | st.integers(2**62, 2**63 - 1)
ROWS = st.one_of(st.lists(st.tuples(IDS, IDS, times), min_size=1, max_size=12) for times in (SMALL, LARGE))


@pytest.mark.parametrize("form", ["csv", "tsv"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_what_python_writes_as_csv_is_read_the_same(tmp_path: Path, form: str, end: str, mark: str) -> None:
    @SAME
    @given(ROWS)
    def check(rows: list[tuple[str, str, int]]) -> None:
        text = io.StringIO(newline="")
        separator = "," if form == "csv" else "\t"
        writer = csv.writer(text, delimiter=separator, lineterminator=end, quoting=csv.QUOTE_ALL)
        writer.writerows([("user", "item", "timestamp"), *rows])
        path = tmp_path / f"x.{form}"
        path.write_bytes((mark + text.getvalue()).encode())
        assert read_interactions(path, Columns()).rows() == rows

    check()


@SAME
@given(ROWS, st.booleans())
def test_what_python_writes_as_json_is_read_the_same(
    tmp_path: Path, rows: list[tuple[str, str, int]], ascii_only: bool
) -> None:
    path = tmp_path / "x.jsonl"
    lines = [
        json.dumps({"user": user, "item": item, "timestamp": time}, ensure_ascii=ascii_only)
        for user, item, time in rows
    ]
    path.write_bytes("\n".join(lines).encode())
    assert read_interactions(path, Columns()).rows() == rows


@SAME
@given(st.lists(st.lists(st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S"]), min_size=1), min_size=2, max_size=6), min_size=1, max_size=6, unique_by=lambda words: words[0]))  # fmt: skip  # noqa: E501
def test_sequences_are_words(tmp_path: Path, lines: list[list[str]]) -> None:
    path = tmp_path / "x.txt"
    path.write_text("\n".join(" ".join(line) for line in lines), encoding="utf-8")
    expected = [(user, item, time) for user, *items in lines for time, item in enumerate(items)]
    assert read_sequences(path).rows() == expected


# --- settings --------------------------------------------------------------------------------------

LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["8e-05", "amazon-beauty", "../x", "test/full/ndcg@10", 10**40, -1, 0, 1, 2**31, 2**32]),
)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3), max_leaves=6)  # fmt: skip  # noqa: E501


def keys(model: type[Any], above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for name, field in model.model_fields.items():
        found.append((*above, name))
        if isinstance(field.annotation, type) and hasattr(field.annotation, "model_fields"):
            found += keys(field.annotation, (*above, name))
    return found


def test_any_value_anywhere_is_taken_or_refused_by_its_key(tmp_path: Path) -> None:
    every = keys(Params)
    taken = []

    @settings(SAME, max_examples=600)
    @given(st.sampled_from(every), st.sampled_from([0, 1, 2, 0.5, True, "x", 10**40]) | VALUES)
    def check(key: tuple[str, ...], value: object) -> None:
        nested: Any = value
        for part in reversed(key):
            nested = {part: nested}
        path = tmp_path / "params.yaml"
        path.write_text(yaml.safe_dump(nested), encoding="utf-8")
        try:
            params = load_params(path)
        except UserError as error:
            assert str(path) in str(error) and len(str(error)) < 4000
            assert key[0] in str(error) or "not valid YAML" in str(error)
            return
        taken.append(key)
        for number in _numbers(params.model_dump()):
            assert (isinstance(number, float) and math.isfinite(number)) or abs(number) < 2**32
        path.write_text(yaml.safe_dump(params.model_dump(mode="json")), encoding="utf-8")
        assert load_params(path) == params  # what is printed means the same again

    check()
    assert len(set(taken)) > 20


def _numbers(value: object) -> list[float]:
    if isinstance(value, dict):
        return [number for inner in value.values() for number in _numbers(inner)]
    if isinstance(value, list | tuple):
        return [number for inner in value for number in _numbers(inner)]
    return [value] if isinstance(value, int | float) else []


@settings(SAME, max_examples=200)
@given(st.text(st.sampled_from("ab:-,[]{}&*!?|>'\"#%@`~<= \n\t0123456789."), max_size=60))
def test_any_yaml_is_read_or_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    try:
        assert isinstance(load_params(path), Params)
    except UserError as error:
        assert str(path) in str(error)
