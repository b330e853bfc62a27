"""How fast exact full ranking is: `python benchmarks/evaluate.py`.

Users ranked per second at the size of Amazon Beauty (22,363 users, 12,101 items, width 64), in one run and in turns:

1. `product n`: the matrix product that makes the scores, alone, n users at a time into one buffer; 512 are the batches
   that the evaluator is given (`evaluate.batch_size`), the fastest of all sizes is the floor for any evaluation;
2. `rank`: `validate` on given user states: the product, masking and the exact ranks of the whole catalogue;
3. `validate`: the same with the policy reading the histories, as during training;
4. `read`: that reading alone;
5. `evaluate`: one fold with all protocols, sampled negatives and the top-20 lists included;
6. `counting`, `sorting`: the plain ways in numpy, blocks of 64 users: count the items above the target; argsort.

The ranks of 2 and 6 are compared. Writes `benchmarks/results/evaluate.json`, and the ratio of 2 to 1 to `sft.json`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import numpy as np
import torch
from common import POLICY, InOrder, made_up_data, now, save

from rl4rec.data.dataset import PreparedData
from rl4rec.data.vocabulary import build_tokenizer
from rl4rec.evaluation.protocols import evaluate
from rl4rec.evaluation.ranking import ranked_fold
from rl4rec.evaluation.validation import validate
from rl4rec.model.create import create_policy
from rl4rec.model.scores import Scores
from rl4rec.params import EvaluateParams

USERS, ROUNDS, FEW_USERS = 22_363, 5, 1_024
BLOCKS = (32, 64, 128, 512, 4096)


def product(states: torch.Tensor, items: torch.Tensor, rows: int) -> None:
    buffer = states.new_empty(rows, len(items))
    for start in range(0, len(states), rows):
        block = states[start : start + rows]
        torch.mm(block, items.T, out=buffer[: len(block)])


def plain(data: PreparedData, states: torch.Tensor, items: torch.Tensor, *, sort: bool) -> np.ndarray:
    """Ranks of the targets by numpy."""
    split, ranks = data.split("valid"), []
    for start in range(0, len(split.targets), 64):
        targets = split.targets[start : start + 64]
        scores = (states[start : start + 64] @ items.T).numpy()
        for row in range(len(targets)):
            scores[row, split.history[start + row]] = -np.inf
        if sort:
            order = np.argsort(-scores, axis=1)
            ranks.append((order == targets[:, None]).argmax(1))
        else:
            ranks.append((scores > scores[np.arange(len(targets)), targets][:, None]).sum(1))
    return np.concatenate(ranks)


def timed(work: Callable[[], object]) -> float:
    start = now()
    work()
    return now() - start


@torch.no_grad()
def main() -> None:
    torch.manual_seed(0)
    data, few, params = made_up_data(users=USERS), made_up_data(users=FEW_USERS), EvaluateParams()
    policy, _ = create_policy(POLICY, data.item_ids, build_tokenizer(data.item_ids[:10]))
    policy.to("cuda" if torch.cuda.is_available() else "cpu").train(False)
    histories = data.split("valid").history
    users = [histories[row] for row in range(len(histories))]

    def read() -> Scores:
        parts = [policy.score(policy.encode(users[start : start + 512])) for start in range(0, USERS, 512)]
        return Scores(torch.cat([part.states for part in parts]), parts[0].items)

    states, items, _ = read()
    work: dict[str, Callable[[], object]] = {
        f"product {rows}": lambda n=rows: product(states, items, n) for rows in BLOCKS
    }
    work |= {
        "rank": lambda: validate(InOrder(states, items), data),
        "read": read,
        "validate": lambda: validate(policy, data),
        "evaluate": lambda: evaluate("made-up", policy, data, params),
        "counting": lambda: plain(few, states.cpu(), items.cpu(), sort=False),
        "sorting": lambda: plain(few, states.cpu(), items.cpu(), sort=True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(ROUNDS):
        for name, each in work.items():
            seconds[name].append(timed(each))
    exact = evaluate("few", InOrder(states[: len(few.users)], items), few, params).ranks["valid/full"].to_numpy()
    fresh = ~ranked_fold(few, "valid").repeated  # targets that the user has not taken before
    for sort in (False, True):
        off = np.abs(plain(few, states.cpu(), items.cpu(), sort=sort) - exact)[fresh]
        assert off.max() <= 1 and off.mean() < 0.01, "ranks differ by more than rounding"
    median = {name: statistics.median(values) for name, values in seconds.items()}
    median["evaluate"] /= 2  # two folds
    fastest = min((name for name in median if name.startswith("product")), key=median.__getitem__)
    rate = {name: (FEW_USERS if name in ("counting", "sorting") else USERS) / value for name, value in median.items()}
    ratio = {
        "rank_vs_product": round(median["rank"] / median["product 512"], 2),
        "rank_vs_fastest_product": round(median["rank"] / median[fastest], 2),
        "validate_vs_read_and_product": round(median["validate"] / (median["read"] + median[fastest]), 2),
        "rank_vs_counting": round(rate["rank"] / rate["counting"], 1),
        "rank_vs_sorting": round(rate["rank"] / rate["sorting"], 1),
    }
    per_second = {name: round(value) for name, value in rate.items()}
    save("evaluate", "evaluation", ratio, {"users_per_second": per_second, "fastest_product": fastest})
    both = {"eval_vs_gemm": ratio["rank_vs_product"], "eval_vs_fastest_gemm": ratio["rank_vs_fastest_product"]}
    save("sft", "evaluation", both, {"details": "evaluate.json"})


if __name__ == "__main__":
    main()
