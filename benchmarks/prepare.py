"""How fast `prepare` is and how much memory it takes: `python benchmarks/prepare.py`.

1. 198,502 made-up interactions (the size of Amazon Beauty): `prepare` against pandas doing the same steps (read,
   sort, drop duplicates, 5-core, number, write parquet), in turns, in one process; checked to give equal sequences.
2. 20 million interactions in a process of its own: seconds and peak resident memory.

Writes `benchmarks/results/prepare.json`.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl

from rl4rec.data.prepare import prepare
from rl4rec.params import DataParams

RESULTS = Path(__file__).parent / "results" / "prepare.json"
BEAUTY = (198_502, 22_363, 12_101)
LARGE = (20_000_000, 2_000_000, 400_000)
K_CORE = 5


def made_up_file(path: Path, rows: int, users: int, items: int) -> None:
    """Interactions with skewed popularity and activity, in random order, `user,item,timestamp`."""
    rng = np.random.default_rng(0)
    frame = pl.DataFrame(
        {
            "user": (users * rng.random(rows) ** 1.3).astype(np.int64),
            "item": (items * rng.random(rows) ** 2).astype(np.int64),
            "timestamp": rng.integers(1_300_000_000, 1_400_000_000, rows),
        }
    )
    texts = (pl.format("{}{}", pl.lit(mark), pl.col(name).cast(pl.String).str.zfill(10)).alias(name)
             for name, mark in (("user", "A"), ("item", "B")))  # fmt: skip
    frame.with_columns(*texts).write_csv(path)


def with_pandas(path: Path, out: Path) -> pd.DataFrame:
    """The same steps in pandas."""
    rows = pd.read_csv(path, dtype={"user": "string", "item": "string", "timestamp": "int64"})
    rows = rows.sort_values(["user", "timestamp", "item"]).drop_duplicates()
    before = -1
    while before != len(rows):
        before = len(rows)
        rows = rows[rows.groupby("user")["user"].transform("size") >= K_CORE]
        rows = rows[rows.groupby("item")["item"].transform("size") >= K_CORE]
    rows["item"] = rows["item"].astype("category").cat.codes.astype("int32")
    sequences = rows.groupby("user", sort=False)["item"].agg(list)
    frame = sequences.rename("items").reset_index().sort_values("items", ignore_index=True)
    frame.to_parquet(out)
    return frame


def beauty_sized(folder: Path, repeats: int) -> dict[str, float]:
    path = folder / "small.csv"
    made_up_file(path, *BEAUTY)
    params = DataParams(source="interactions", path=str(path), k_core=K_CORE, ties="item")
    ours, theirs = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        data = prepare(params, folder / "small")
        ours.append(time.perf_counter() - start)
        start = time.perf_counter()
        frame = with_pandas(path, folder / "small.parquet")
        theirs.append(time.perf_counter() - start)
    lengths = frame["items"].str.len()
    assert np.array_equal(np.concatenate(frame["items"].to_list()), data.sequences.values)
    assert np.array_equal(lengths.to_numpy(), data.sequences.lengths)
    prepare_s, pandas_s = statistics.median(ours), statistics.median(theirs)
    return {
        "rows": BEAUTY[0],
        "prepare_s": round(prepare_s, 3),
        "pandas_s": round(pandas_s, 3),
        "pandas_over_prepare": round(pandas_s / prepare_s, 2),
    }


def large(folder: Path) -> dict[str, float]:
    path = folder / "large.csv"
    made_up_file(path, *LARGE)
    command = [sys.executable, __file__, "--child", str(path), str(folder / "large")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return {"rows": LARGE[0], "file_mb": round(path.stat().st_size / 1e6)} | json.loads(done.stdout.splitlines()[-1])


def child(path: Path, out: Path) -> None:
    start = time.perf_counter()
    data = prepare(DataParams(source="interactions", path=str(path), k_core=K_CORE), out)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # GB, Linux counts in kB
    report = {"prepare_s": round(seconds, 1), "peak_gb": round(peak, 2), "kept": len(data.sequences.values)}
    sys.stdout.write(json.dumps(report | {"users": len(data.users), "items": data.num_items}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--child", nargs=2, type=Path, metavar=("FILE", "OUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(*arguments.child)
        return
    with tempfile.TemporaryDirectory() as folder:
        result = {
            "machine": {"cpus": pl.thread_pool_size(), "python": platform.python_version(), "polars": pl.__version__},
            "beauty_sized": beauty_sized(Path(folder), arguments.repeats),
            "large": large(Path(folder)),
        }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(RESULTS.read_text())


if __name__ == "__main__":
    main()
