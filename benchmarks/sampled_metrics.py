"""Why the sampled metrics are several times the full ones: test ranks of the last `dvc repro`, taken apart.

A user's target has r items above it among the N unseen ones. Of n negatives drawn from these N without repeats, the
number above the target is hypergeometric (N, r, n), so the expected sampled metric follows from the full rank alone:
E[NDCG@k] = sum over j < k of P(j above) / log2(j + 2). The sum over users must come out as what was measured with one
draw of negatives. Needs `ranks/` and `data/prepared`; `python benchmarks/sampled_metrics.py` writes
`benchmarks/results/sampled_metrics.json`, from which docs/protocols.md has its tables.
"""

from __future__ import annotations

import argparse
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from common import RESULTS, ROOT
from scipy.stats import hypergeom

from rl4rec._io import write_json
from rl4rec.algorithms import evaluated_keys
from rl4rec.data.dataset import load_prepared

K, NEGATIVES = 10, 100
EDGES = (0, 10, 100, 500, 1200, 2400)  # of the full rank, from the top
EXAMPLES = (0, 9, 30, 120, 400, 1200, 2400, 6000)

Floats = npt.NDArray[np.float64]


def expected_ndcg(above: npt.NDArray[np.int64], unseen: npt.NDArray[np.int64]) -> Floats:
    """E[NDCG@K among 1 + NEGATIVES] of targets with `above` of `unseen` other items above them, (u,)."""
    return sum((hypergeom.pmf(j, unseen, above, NEGATIVES) / math.log2(j + 2) for j in range(K)), np.zeros(len(above)))


def gains(ranks: npt.NDArray[Any]) -> Floats:
    """NDCG@K of each 0-based rank, (u,)."""
    return np.where(ranks < K, 1 / np.log2(ranks + 2.0), 0.0)


def taken_apart(full: npt.NDArray[Any], sampled: npt.NDArray[Any], unseen: npt.NDArray[np.int64]) -> dict[str, Any]:
    """What each group of users, by full rank, has of both metrics."""
    expected, users = expected_ndcg(full.astype(np.int64), unseen), len(full)
    bands = []
    for low, high in pairwise((*EDGES, int(unseen.max()) + 1)):
        inside = (full >= low) & (full < high)
        share = {"users": inside, "full": gains(full) * inside, "sampled": gains(sampled) * inside}
        bands.append(
            {"from": low, "to": high} | {key: round(float(part.sum() / users), 4) for key, part in share.items()}
        )
    return {
        "full_ndcg@10": round(float(gains(full).mean()), 4),
        "sampled_ndcg@10": round(float(gains(sampled).mean()), 4),
        "sampled_ndcg@10_expected": round(float(expected.mean()), 4),
        "median_full_rank": float(np.median(full)),
        "bands": bands,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=ROOT, help="where `dvc repro` ran (default: this checkout)")
    root = parser.parse_args().root
    data = load_prepared(root / "data/prepared")
    result: dict[str, Any] = {"items": data.num_items, "negatives": NEGATIVES, "k": K, "policies": {}}
    for policy in evaluated_keys():
        ranks = pl.read_parquet(root / f"ranks/{policy}.parquet")
        own = data.sequences.take(ranks["user_row"].to_numpy()).distinct(data.num_items)
        columns = (ranks["test/full"].to_numpy(), ranks[f"test/sampled{NEGATIVES}"].to_numpy())
        result["policies"][policy] = taken_apart(*columns, data.num_items - own.lengths)
    unseen = np.full(
        len(EXAMPLES), data.num_items - 9
    )  # of a user with nine distinct items, as Beauty's have on average
    typical = expected_ndcg(np.array(EXAMPLES), unseen)
    result["typical_user"] = {
        "unseen": int(unseen[0]),
        "expected": {str(rank): round(float(value), 4) for rank, value in zip(EXAMPLES, typical, strict=True)},
    }
    write_json(RESULTS / "sampled_metrics.json", result)


if __name__ == "__main__":
    main()
