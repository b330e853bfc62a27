"""Are the served rankings those that were evaluated? `python benchmarks/served_ranks.py [--policy grpo] [--root .]`.

For every test user of a workspace that has run the pipeline: the whole catalogue as `Recommender` ranks it for the raw
item ids of the history, which is what serving and `rl4rec recommend` answer with, against the target's rank in
`ranks/<policy>.parquet`. The evaluator counts equal scores against the target and a list has them in some order, so
that such users are counted apart (`tied`); `rounding` are those that differ by scores within 1e-5 of the target's, as
other batches give; `different` must be none. Writes `benchmarks/results/served_ranks.json` (or `--out`).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
from common import RESULTS

from rl4rec.algorithms import SHOWN
from rl4rec.data.dataset import load_prepared
from rl4rec.evaluation.ranking import ranked_fold
from rl4rec.serve.recommender import Recommendation, load_recommender

AT_ONCE = 256  # users


def compare(answer: Recommendation, target: str, rank: int, last: int, repeated: bool) -> str:
    """How the target's place in a ranking of all items agrees with its rank in the evaluation."""
    if target not in answer.items:  # seen before, so never shown; the evaluator puts it last
        return "never_shown" if repeated and rank == last else "different"
    place, scores = answer.items.index(target), np.array(answer.scores)
    if place == rank:
        return "equal"
    if np.sum(scores >= scores[place]) - 1 == rank:
        return "tied"
    low, high = sorted((place, rank))
    within = np.abs(scores[low : high + 1] - scores[place]).max() <= 1e-5 * max(1.0, abs(scores[place]))
    return "rounding" if within else "different"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--policy", default=SHOWN)
    parser.add_argument("--root", type=Path, default=Path())
    parser.add_argument("--out", type=Path, default=RESULTS / "served_ranks.json")
    args = parser.parse_args()
    data = load_prepared(args.root / "data" / "prepared")
    recommender = load_recommender(args.root / "models" / args.policy, data.folder / "items.parquet")
    fold = ranked_fold(data, "test")
    ranks = pl.read_parquet(args.root / "ranks" / f"{args.policy}.parquet")
    if ranks["user_row"].to_list() != fold.user_rows.tolist():
        raise SystemExit(f"ranks/{args.policy}.parquet is of other users: run `dvc repro evaluate@{args.policy}`")
    found: Counter[str] = Counter()
    for start in range(0, len(fold.targets), AT_ONCE):
        rows = range(start, min(start + AT_ONCE, len(fold.targets)))
        histories = [[data.item_ids[item] for item in fold.history[row]] for row in rows]
        for row, answer in zip(rows, recommender.recommend(histories, k=data.num_items), strict=True):
            target, rank = data.item_ids[fold.targets[row]], ranks["test/full"][row]
            found[compare(answer, target, rank, data.num_items - 1, bool(fold.repeated[row]))] += 1
    kinds = ("equal", "tied", "rounding", "never_shown", "different")
    result = {"policy": args.policy, "data_hash": data.data_hash, "users": len(fold.targets)}
    text = json.dumps(result | {kind: found[kind] for kind in kinds}, indent=2) + "\n"
    args.out.write_text(text, encoding="utf-8")
    sys.stdout.write(text)
    sys.exit(int(found["different"] > 0))


if __name__ == "__main__":
    main()
