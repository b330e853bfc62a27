"""What the order at equal times and the kind of split are worth: the simulated shop, `python benchmarks/order.py`.

1. Noise: baskets of random items, one time per basket. There is nothing to learn, so what a policy finds is a leak.
2. The shop with baskets: its own order, a drawn order, and the order by item id.
3. The shop with new items: leave-one-out against one cut in time for all users.

Each line is trained with the settings of demo.yaml, over several seeds of data and training. Writes
`benchmarks/results/order.json`, from which docs/protocols.md has its table.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from common import RESULTS, ROOT

import rl4rec
from rl4rec._io import read_yaml, write_json
from rl4rec.data.dataset import PreparedData
from rl4rec.model.ranking import PopularityPolicy
from rl4rec.params import DataParams, Params, SimulatedShop
from rl4rec.settings import validate_settings

KEY = "test/full/ndcg@10"
USERS, BASKETS, BASKET_SIZE, ITEMS = 400, 3, 4, 60
SHOP_BASKET, NEW_ITEMS = 4.0, 0.3


def write_noise(path: Path, seed: int) -> None:
    """Baskets of random items as a table."""
    rng = np.random.default_rng(seed)
    rows = [
        (f"u{user:03}", f"i{item:03}", place // BASKET_SIZE)
        for user in range(USERS)
        for place, item in enumerate(rng.choice(ITEMS, BASKETS * BASKET_SIZE, replace=False))
    ]
    pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row").write_csv(path)


def measure(data: PreparedData, params: Params, seed: int) -> dict[str, float]:
    """Test NDCG@10 on the whole catalogue of popularity, SFT and, where it is known, the true distribution."""
    warm = rl4rec.sft(data, params.policy, params.sft.model_copy(update={"seed": seed}))
    popularity = PopularityPolicy(data.item_counts)
    found = {
        "popularity": rl4rec.evaluate("popularity", popularity, data, params.evaluate).metrics[KEY],
        "sft": rl4rec.evaluate("sft", warm.policy, data, params.evaluate).metrics[KEY],
    }
    oracle = rl4rec.evaluate_oracle(data, params.evaluate)
    return found if oracle is None else found | {"oracle": oracle.metrics[KEY]}


def lines(seed: int, scratch: Path) -> dict[str, dict[str, DataParams]]:
    """The data of each line, by experiment and name."""
    table = scratch / f"noise-{seed}.csv"
    write_noise(table, seed)
    baskets = SimulatedShop(basket_size=SHOP_BASKET, seed=seed)
    changing = SimulatedShop(new_items=NEW_ITEMS, seed=seed)
    orders = ("row", "hash", "item")
    return {
        "noise": {ties: DataParams(source="interactions", path=str(table), ties=ties) for ties in orders},
        "baskets": {ties: DataParams(source="simulated", ties=ties, simulated=baskets) for ties in orders},
        "split": {
            split: DataParams(source="simulated", split=split, simulated=changing) for split in ("last_item", "time")
        },
    }


def describe(data: PreparedData) -> dict[str, float]:
    """What is odd about the targets: shares of the test fold."""
    test, stats = data.stats["held_out"]["test"], data.stats
    return {
        "test_users": test["users"],
        "tied_neighbours": stats["ties"]["tied_neighbours"],
        "cold_targets": test["cold_targets"] / test["users"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    seeds = range(parser.parse_args().seeds)
    params = validate_settings(read_yaml(ROOT / "demo.yaml"), "demo.yaml", Params)
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for seed in seeds:
            for experiment, each in lines(seed, Path(scratch)).items():
                for name, settings in each.items():
                    data = rl4rec.prepare(settings, Path(scratch, "prepared"))
                    row = measure(data, params, seed) | describe(data)
                    found.setdefault(experiment, {}).setdefault(name, []).append(row)
                    print(seed, experiment, name, row, flush=True)
    result: dict[str, Any] = {"key": KEY, "seeds": len(seeds)}
    for experiment, names in found.items():
        result[experiment] = {name: _summary(rows) for name, rows in names.items()}
    write_json(RESULTS / "order.json", result)


def _summary(rows: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Mean and standard deviation over seeds."""
    return {
        key: {
            "mean": round(statistics.mean(row[key] for row in rows), 6),
            "sd": round(statistics.stdev(row[key] for row in rows), 6),
        }
        for key in rows[0]
    }


if __name__ == "__main__":
    main()
