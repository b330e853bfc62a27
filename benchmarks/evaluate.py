"""How fast exact full ranking is: `python benchmarks/evaluate.py`.

Users ranked per second at the size of Amazon Beauty (22,363 users, 12,101 items, width 64), in one run and in turns:

1. `product`: the matrix product that makes the scores, alone, in the block size that is fastest for it: the floor;
2. `rank`: `validate` on given user states: the product, masking and the exact ranks of the whole catalogue;
3. `validate`: the same with the policy reading the histories, as during training;
4. `read`: that reading alone;
5. `evaluate`: one fold with all protocols, sampled negatives and the top-20 lists included;
6. `sorting`: the plain way, argsort of every user's masked scores in numpy; on fewer users.

2 and 6 must give the same NDCG@10. Writes `benchmarks/results/evaluate.json`, and the ratio of 2 to 1 to `sft.json`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import numpy as np
import torch
from common import POLICY, machine, made_up_data, now, save

from rl4rec.data.prepared import IntArray, PreparedData
from rl4rec.data.vocabulary import build_tokenizer
from rl4rec.evaluation.protocols import evaluate
from rl4rec.evaluation.ranking import Scorer
from rl4rec.evaluation.validation import validate
from rl4rec.params import EvaluateParams
from rl4rec.policy_init import create_policy
from rl4rec.scoring import Factors

USERS, ROUNDS, SORTED_USERS = 22_363, 5, 1_024
BLOCKS = (32, 64, 128, 512, 4096)


def given(states: torch.Tensor, items: torch.Tensor) -> Scorer:
    """A scorer that looks its user up; the evaluator asks for the users in order."""
    place = 0

    def score(histories: Sequence[IntArray]) -> Factors:
        nonlocal place
        place = (place + len(histories)) % len(states) or len(states)
        return Factors(states[place - len(histories) : place], items)

    return score


def product(states: torch.Tensor, items: torch.Tensor, rows: int) -> None:
    buffer = states.new_empty(rows, len(items))
    for start in range(0, len(states), rows):
        block = states[start : start + rows]
        torch.mm(block, items.T, out=buffer[: len(block)])


def by_sorting(data: PreparedData, states: torch.Tensor, items: torch.Tensor) -> float:
    split, total = data.split("valid"), 0.0
    for row, target in enumerate(split.targets):
        scores = (states[row : row + 1] @ items.T)[0].numpy()
        scores[split.history[row]] = -np.inf
        rank = int(np.flatnonzero(np.argsort(-scores, kind="stable") == target)[0])
        total += 1 / np.log2(rank + 2) if rank < 10 else 0.0
    return total / len(split.targets)


def timed(work: Callable[[], object]) -> float:
    start = now()
    work()
    return now() - start


@torch.no_grad()
def main() -> None:
    torch.manual_seed(0)
    data, few, params = made_up_data(users=USERS), made_up_data(users=SORTED_USERS), EvaluateParams()
    policy, _ = create_policy(POLICY, data.item_ids, build_tokenizer(data.item_ids[:10]))
    policy.to("cuda" if torch.cuda.is_available() else "cpu").train(False)
    histories = data.split("valid").history
    users = [histories[row] for row in range(len(histories))]

    def read() -> Factors:
        parts = [policy.factors(users[start : start + 512]) for start in range(0, USERS, 512)]
        return Factors(torch.cat([part.states for part in parts]), parts[0].items)

    states, items = read()
    work: dict[str, Callable[[], object]] = {
        f"product {rows}": lambda n=rows: product(states, items, n) for rows in BLOCKS
    }
    work |= {
        "rank": lambda: validate(given(states, items), data),
        "read": read,
        "validate": lambda: validate(policy.factors, data),
        "evaluate": lambda: evaluate("made-up", policy.factors, data, params),
        "sorting": lambda: by_sorting(few, states.cpu(), items.cpu()),
    }
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(ROUNDS):
        for name, each in work.items():
            seconds[name].append(timed(each))
    ours = validate(given(states[:SORTED_USERS], items), few)["full/ndcg@10"]
    assert abs(by_sorting(few, states.cpu(), items.cpu()) - ours) < 1e-6
    median = {name: statistics.median(values) for name, values in seconds.items()}
    median["evaluate"] /= 2  # two folds
    fastest = min((name for name in median if name.startswith("product")), key=median.__getitem__)
    rate = {name: (SORTED_USERS if name == "sorting" else USERS) / value for name, value in median.items()}
    ratio = {
        "rank_vs_product": round(median["rank"] / median[fastest], 2),
        "validate_vs_read_and_product": round(median["validate"] / (median["read"] + median[fastest]), 2),
        "validate_vs_sorting": round(rate["validate"] / rate["sorting"], 1),
    }
    save(
        "evaluate",
        {
            "ratio": ratio,
            "users_per_second": {name: round(value) for name, value in rate.items()},
            "fastest_product": fastest,
            "machine": machine(),
        },
    )
    save("sft", {"ratio": {"eval_vs_gemm": ratio["rank_vs_product"]}})


if __name__ == "__main__":
    main()
