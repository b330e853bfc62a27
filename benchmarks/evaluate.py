"""How fast exact full ranking is: `python benchmarks/evaluate.py`.

Users ranked per second at the size of Amazon Beauty (12,101 items, width 64), made-up scores, in one run and in turns:

1. the matrix product that makes the scores, alone: the floor for any evaluation of this kind;
2. `validate`: masked ranks of the whole catalogue, the product included;
3. `evaluate` on one fold's worth of work: all protocols, the top-20 lists included;
4. the plain way: full argsort of every user's scores in numpy, masked, the product included; on fewer users.

2 and 4 must give the same NDCG@10. Writes `benchmarks/results/evaluate.json`.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from rl4rec.data.prepared import PreparedData, Ragged
from rl4rec.evaluation.protocols import evaluate
from rl4rec.evaluation.validation import validate
from rl4rec.params import EvaluateParams

RESULTS = Path(__file__).parent / "results" / "evaluate.json"
USERS, ITEMS, WIDTH, BATCH, ROUNDS = 22_363, 12_101, 64, 512, 3
SORTED_USERS = 2_048


def made_up_data(users: int) -> PreparedData:
    rng = np.random.default_rng(0)
    rows = [rng.choice(ITEMS, size=rng.integers(5, 14), replace=False) for _ in range(users)]
    sequences = Ragged.from_rows(rows)
    counts = np.bincount(sequences.drop_last(2).values, minlength=ITEMS).astype(np.int64)
    names = [str(number) for number in range(max(users, ITEMS))]
    return PreparedData(Path("made-up"), names[:users], names[:ITEMS], counts, sequences, {"data_hash": "made-up"})


def scorer_of(weights: torch.Tensor) -> Callable[..., torch.Tensor]:
    """A policy reduced to its last step: a state a user (the last item's vector) times the item matrix."""
    return lambda histories: weights[torch.tensor([int(row[-1]) for row in histories])] @ weights.T


def product_alone(data: PreparedData, weights: torch.Tensor) -> float:
    scorer, split = scorer_of(weights), data.split("valid")
    histories = [split.history[row] for row in range(len(split.targets))]
    start = time.perf_counter()
    for first in range(0, len(histories), BATCH):
        scorer(histories[first : first + BATCH])
    return time.perf_counter() - start


def by_sorting(data: PreparedData, weights: torch.Tensor) -> tuple[float, float]:
    """Seconds and NDCG@10 of the plain way."""
    scorer, split = scorer_of(weights), data.split("valid")
    start, total = time.perf_counter(), 0.0
    for row, target in enumerate(split.targets):
        scores = scorer([split.history[row]])[0].numpy()
        scores[split.history[row]] = -np.inf
        rank = int(np.flatnonzero(np.argsort(-scores, kind="stable") == target)[0])
        total += 1 / np.log2(rank + 2) if rank < 10 else 0.0
    return time.perf_counter() - start, total / len(split.targets)


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    torch.manual_seed(0)
    weights = torch.randn(ITEMS, WIDTH)
    data, few, params = made_up_data(USERS), made_up_data(SORTED_USERS), EvaluateParams()
    scorer = scorer_of(weights)
    seconds: dict[str, list[float]] = {"product": [], "validate": [], "evaluate": [], "sorting": []}
    for _ in range(ROUNDS):
        seconds["product"].append(product_alone(data, weights))
        seconds["validate"].append(timed(lambda: validate(scorer, data, batch_size=BATCH)))
        seconds["evaluate"].append(timed(lambda: evaluate("made-up", scorer, data, params)) / 2)  # two folds
        sorting, ndcg = by_sorting(few, weights)
        seconds["sorting"].append(sorting)
    assert abs(ndcg - validate(scorer, few, batch_size=BATCH)["full/ndcg@10"]) < 1e-12
    users = {name: SORTED_USERS if name == "sorting" else USERS for name in seconds}
    rate = {name: users[name] / statistics.median(values) for name, values in seconds.items()}
    result = {
        "users": USERS,
        "items": ITEMS,
        "width": WIDTH,
        "batch": BATCH,
        "users_per_second": {name: round(value) for name, value in rate.items()},
        "validate_over_product": round(rate["product"] / rate["validate"], 2),
        "validate_against_sorting": round(rate["validate"] / rate["sorting"], 1),
        "machine": {"processor": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__},
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
