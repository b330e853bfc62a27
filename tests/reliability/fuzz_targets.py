# ruff: noqa: E501 - the targets are a table: a row a line
"""What is fuzzed: for each kind of file a real one to start from, and the code that reads it.

`attempt` is the oracle: whatever the bytes are, they are read, or refused with a `UserError` of a readable length that
leaves nothing behind. Any other exception is a fault.
"""

from __future__ import annotations

import gzip
import json
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import polars as pl
import torch

from rl4rec.data.dataset import load_prepared
from rl4rec.data.fingerprint import write_fingerprint
from rl4rec.data.ingest import ingest
from rl4rec.data.prepare import prepare
from rl4rec.errors import UserError
from rl4rec.evaluation.files import load_evaluation, load_slates
from rl4rec.model.crossfit_embeddings import FILE, CrossfitEmbeddings, load_crossfit
from rl4rec.model.load import load_policy
from rl4rec.ops.drift import measure_drift, read_evaluated, read_served
from rl4rec.ops.workspace import make_workspace as make_pipeline_workspace
from rl4rec.params import Columns, CompareParams, DataParams, MonitorParams
from rl4rec.report import compare_policies
from rl4rec.report.claims import claims
from rl4rec.report.logs import load_log
from rl4rec.serve.batch import recommend_file
from rl4rec.serve.recommender import Recommender, load_recommender
from rl4rec.settings import load_params
from tests.reliability.workspace import NUM_ITEMS, SETTINGS

ROOT = Path(__file__).parents[2]
_LONGEST = 4000  # characters of a message that a person will read
_REVIEW = '{"reviewerID": "u%d", "asin": "a%d", "unixReviewTime": %d}\n'


class Target(NamedTuple):
    """One reader."""

    file: str  # what is fuzzed, relative to the workspace
    seeds: Callable[[Path], list[bytes]]
    read: Callable[[Path], object]  # gets the workspace


def attempt(target: Target, folder: Path, data: bytes) -> UserError | None:
    """Let a reader have a file with these bytes; the refusal, or None if it was read.

    Raises:
        Exception: any other than a `UserError`; `AssertionError` if a refusal is unreadable or left something behind.
    """
    path = folder / target.file
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = path.read_bytes() if path.exists() else None
    before = set(folder.rglob("*")) | {path}
    path.write_bytes(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", ResourceWarning)
            target.read(folder)
    except UserError as error:
        assert len(str(error)) < _LONGEST, f"a message of {len(str(error))} characters"
        str(error).encode("utf-8", "backslashreplace")
        left = set(folder.rglob("*")) - before
        assert not left, f"left behind: {sorted(map(str, left))}"
        return error
    finally:
        _tidy(folder, before)
        if kept is None:
            path.unlink(missing_ok=True)
        else:
            path.write_bytes(kept)
    return None


def _tidy(folder: Path, before: set[Path]) -> None:
    for path in sorted(set(folder.rglob("*")) - before, reverse=True):
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()


# --- what the readers start from -------------------------------------------------------------------


def _own(file: str) -> Callable[[Path], list[bytes]]:
    return lambda folder: [(folder / file).read_bytes()]


def _given(*seeds: bytes | str) -> Callable[[Path], list[bytes]]:
    return lambda _: [seed.encode() if isinstance(seed, str) else seed for seed in seeds]


_CSV = (
    "user,item,timestamp\nu,a,1\nu,b,2\nv,a,3\n",
    'user,item,timestamp,x\r\nu,"a, ""b""",2024-01-02,\r\n\r\nv,b,2024-01-03T04:05:06Z,1\r\n',
    "\ufefftimestamp,user,item\n1.5,1,2\n-3e2,2,3\n",
)
_JSONL = (
    '{"user": "u", "item": "a", "timestamp": 1}\n{"user": "v", "item": "b", "timestamp": 2}\n',
    '\ufeff{"user": 1, "item": 2, "timestamp": 1.5}\r\n\r\n{"user": 3, "item": 4, "timestamp": -2.5, "more": [{}]}\r\n',
)
_YAML = (
    "data: {source: simulated, path: null}\nsft:\n  seed: 1\n  learning_rate: 8e-05\n",
    "base: &a {seed: 5}\nrl: {k: 10, grpo: {<<: *a, batch_size: 8}}\n# comment\nevaluate: {ks: [5, 10]}\n",
    "compare:\n  gate:\n    guards: {test/full/hit@10: .02}\n    candidates: [ppo]\ntracking: {enabled: off, uri: 'x'}\n",
    "a: !!int 1\nb: 2024-01-02\nc: !!binary aGk=\nd: .nan\ne: 0x1F\nf: ~\ng: 1:30\n? [h]\n: |\n  i\n",
)


def _params(_: Path) -> list[bytes]:
    return [*(text.encode() for text in _YAML), (ROOT / "params.yaml").read_bytes()]


def _delivery(folder: Path) -> list[bytes]:
    path, found = folder / "seed.parquet", []
    table = pl.DataFrame({"user": ["u", "v"], "item": ["a", "b"], "timestamp": [1, 2]})
    changes: list[dict[str, pl.Expr]] = [
        {},
        {"item": pl.col("timestamp")},
        {"timestamp": pl.col("timestamp").cast(pl.Datetime)},
    ]
    for change in changes:
        table.with_columns(**change).write_parquet(path, compression="uncompressed")
        found.append(path.read_bytes())
    path.unlink()
    return found


def _lists(column: str) -> Callable[[Path], list[bytes]]:
    def seeds(folder: Path) -> list[bytes]:
        path = folder / "seed.parquet"
        pl.DataFrame({column: [["i1", "i2"], ["i3"]]}).write_parquet(path, compression="uncompressed")
        data = path.read_bytes()
        path.unlink()
        return [data]

    return seeds


def _tables(folder: Path) -> list[bytes]:
    path = folder / "seed.safetensors"
    CrossfitEmbeddings(torch.zeros(2, 3, 2), torch.zeros(2, 3, 2), 4).save(folder / "seed")
    data = (folder / "seed" / FILE).read_bytes()
    _tidy(folder, set(folder.rglob("*")) - set((folder / "seed").rglob("*")) - {folder / "seed", path})
    return [data]


# --- the readers -----------------------------------------------------------------------------------


def _ingest(name: str) -> Callable[[Path], object]:
    return lambda folder: ingest(folder / name, folder / "store", Columns())


def _prepare(source: str, path: str) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        params = DataParams.model_validate({"source": source, "path": str(folder / path), "k_core": 1})
        return prepare(params, folder / "fresh")

    return read


@cache
def _recommender(folder: Path) -> Recommender:
    return load_recommender(folder / "models" / "sft", folder / "data" / "prepared" / "items.parquet")


def _recommend(name: str) -> Callable[[Path], object]:
    return lambda folder: recommend_file(_recommender(folder), folder / name, folder / "new" / "lists.parquet", k=3)


def _policy(folder: Path) -> object:
    policy = load_policy(folder / "models" / "sft")
    return policy.scores([torch.tensor([0]).numpy()]) if policy.num_items > 0 else None


def _prepared(folder: Path) -> object:
    data = load_prepared(folder / "data" / "prepared")
    return data.train_sequences(), data.split("test"), data.split("valid")


def _compare(folder: Path) -> object:
    params = CompareParams.model_validate(SETTINGS["compare"])
    evaluations = {
        name: load_evaluation(folder / "metrics" / f"{name}.json", folder / "ranks" / f"{name}.parquet")
        for name in ("sft", "ppo")
    }
    return compare_policies(evaluations, params, k=3)


def _slates(folder: Path) -> object:
    users = load_evaluation(folder / "metrics" / "ppo.json", folder / "ranks" / "ppo.parquet").ranks["user_row"]
    return load_slates(folder / "slates" / "ppo.parquet", users=users, num_items=NUM_ITEMS)


def _log(folder: Path) -> object:
    log = load_log(folder / "logs" / "ppo.jsonl")
    assert log is not None
    log.series("train/reward", over="samples")
    params = load_params(folder / "params.yaml").rl
    comparison = json.loads((folder / "metrics" / "comparison.json").read_text())
    return claims(comparison, log, log, params)


def _monitor(folder: Path) -> object:
    return measure_drift(
        load_prepared(folder / "data" / "prepared"),
        MonitorParams(),
        served=read_served(folder / "served.parquet"),
        evaluated=read_evaluated(folder / "metrics" / "sft.json", k=3),
        k=3,
    )


def _fingerprint(folder: Path) -> object:
    params = DataParams.model_validate({"source": "interactions", "path": str(folder / "store")})
    return write_fingerprint(params, folder / "data" / "raw.json")


TARGETS: Mapping[str, Target] = {
    "csv": Target("x.csv", _given(*_CSV), _ingest("x.csv")),
    "tsv": Target("x.tsv", _given(*(text.replace(",", "\t") for text in _CSV)), _ingest("x.tsv")),
    "csv-gzip": Target("x.csv.gz", _given(*(gzip.compress(text.encode(), mtime=0) for text in _CSV)), _ingest("x.csv.gz")),
    "jsonl": Target("x.jsonl", _given(*_JSONL), _ingest("x.jsonl")),
    "parquet": Target("x.parquet", _delivery, _ingest("x.parquet")),
    "store": Target("store/part-00001-x.csv", _given(*_CSV), _ingest("new.csv")),
    "sequences": Target("x.txt", _given("u a b c\nv a\tb\r\n", '\ufeff"u" 日本 [PAD] c\n'), _prepare("sequences", "x.txt")),
    "ratings": Target("b/ratings_Beauty.csv", _given("u,a,5.0,1\nu,b,4.0,2\nu,c,1.0,3\n"), _prepare("amazon-beauty", "b")),
    "reviews": Target("c/reviews_Beauty_5.json", _given("".join(_REVIEW % (n % 2, n, n) for n in range(8))), _prepare("amazon-beauty", "c")),
    "params": Target("fuzzed.yaml", _params, lambda folder: load_params(folder / "fuzzed.yaml")),
    "overrides": Target("changes.yaml", _params, lambda folder: make_pipeline_workspace(ROOT, folder / "space", folder / "changes.yaml")),
    "prepared-sequences": Target("data/prepared/sequences.parquet", _own("data/prepared/sequences.parquet"), _prepared),
    "prepared-items": Target("data/prepared/items.parquet", _own("data/prepared/items.parquet"), _prepared),
    "prepared-stats": Target("data/prepared/stats.json", _own("data/prepared/stats.json"), _prepared),
    "policy-config": Target("models/sft/config.json", _own("models/sft/config.json"), _policy),
    "policy-weights": Target("models/sft/model.safetensors", _own("models/sft/model.safetensors"), _policy),
    "crossfit": Target("models/crossfit/crossfit.safetensors", _tables, lambda folder: load_crossfit(folder / "models" / "crossfit", tables=2)),
    "users-jsonl": Target("users.jsonl", _given('{"history": ["i1", "x"], "exclude": []}\n{"history": null}\n'), _recommend("users.jsonl")),
    "users-parquet": Target("users.parquet", _lists("history"), _recommend("users.parquet")),
    "served": Target("served.parquet", _lists("items"), _monitor),
    "evaluated": Target("metrics/sft.json", _own("metrics/sft.json"), _monitor),
    "metrics": Target("metrics/ppo.json", _own("metrics/ppo.json"), _compare),
    "ranks": Target("ranks/ppo.parquet", _own("ranks/ppo.parquet"), _compare),
    "slates": Target("slates/ppo.parquet", _own("slates/ppo.parquet"), _slates),
    "log": Target("logs/ppo.jsonl", _own("logs/ppo.jsonl"), _log),
    "raw": Target("data/raw.json", _own("data/raw.json"), _fingerprint),
    "digests": Target("data/.digests.json", _given('{"x": {"seen": [1, 2], "sha256": "a"}}'), _fingerprint),
}  # fmt: skip
