"""How time and memory of a GRPO step grow with its sizes: `python benchmarks/rl_scaling.py`.

One size at a time is changed from 64 prompts x 16 slates of 10 among 501 candidates of 12,101 items. Each point runs in
a process of its own, so that its memory is its own. Writes `benchmarks/results/rl_scaling.json` and the figure
`docs/figures/rl_scaling.png`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import numpy as np
from common import ITEMS, POLICY, ROOT, Numbers, made_up_data, median_step, medians, run_variant, save, silent_run
from rl import SLATE, rl_settings

from rl4rec.data.vocabulary import build_tokenizer
from rl4rec.model.create import create_policy
from rl4rec.params import CandidateParams, GRPOParams
from rl4rec.train.grpo import GRPOTrainer
from rl4rec.train.log import peak_memory_mb

START = {"generations": 16, "slots": SLATE, "negatives": 500, "items": ITEMS, "prompts": 64}
SIZES = {
    "generations": [4, 16, 64, 256],
    "slots": [5, 10, 20, 50],
    "negatives": [100, 500, 2000, 8000],
    "items": [3000, 12101, 48000, 192000],
    "prompts": [16, 64, 256, 1024],
}
LABELS = {"slots": "slate length", "items": "catalogue", "generations": "slates per prompt"}


def variant(axis: str, size: int) -> Numbers:
    sizes = START | {axis: size}
    data = made_up_data(sizes["items"])
    tokenizer = build_tokenizer(data.item_ids)
    policy, _ = create_policy(POLICY, data.item_ids, tokenizer)
    before = peak_memory_mb()
    rl = rl_settings(
        k=sizes["slots"],
        candidates=CandidateParams(negatives=sizes["negatives"]),
        grpo=GRPOParams(batch_size=sizes["prompts"], num_sample_generations=sizes["generations"]),
    )
    trainer = GRPOTrainer(policy, data, rl, silent_run())
    return {"seconds": median_step(trainer, steps=8, skip=3), "memory_before_mb": before}


def growth(points: dict[int, Numbers], key: str) -> float:
    """Exponent of growth over the last two points: 1 is linear, 2 quadratic."""
    (small, first), (large, second) = sorted(points.items())[-2:]
    return round(float(np.log(second[key] / first[key]) / np.log(large / small)), 2)


def plot(found: dict[str, dict[int, Numbers]], path: Path) -> None:
    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, rows = pyplot.subplots(2, len(found), figsize=(3 * len(found), 5), sharey="row", layout="constrained")
    for column, (axis, points) in enumerate(found.items()):
        sizes = sorted(points)
        for row, (key, label) in zip(
            rows, (("seconds", "seconds per step"), ("added_memory_mb", "added memory, MB")), strict=True
        ):
            row[column].loglog(sizes, [points[size][key] for size in sizes], "o-")
            row[column].grid(alpha=0.3)
            row[column].set_xticks(sizes, map(str, sizes))
            row[column].yaxis.set_major_formatter("{x:g}")
            row[column].minorticks_off()
            row[column].set_xlabel(LABELS.get(axis, axis))
            if not column:
                row[column].set_ylabel(label)
    figure.suptitle("A GRPO step: rollout, reward, update (two CPU cores)")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.variant:
        axis, size = arguments.variant.split("=")
        run_variant(lambda _: variant(axis, int(size)))
        return
    names = [f"{axis}={size}" for axis, sizes in SIZES.items() for size in sizes]
    measured = medians(__file__, names, arguments.rounds)
    found = {axis: {size: measured[f"{axis}={size}"] for size in sizes} for axis, sizes in SIZES.items()}
    exponents = {
        f"{axis}_{key}": growth(points, key) for axis, points in found.items() for key in ("seconds", "added_memory_mb")
    }
    save("rl_scaling", "step", {}, {"growth_exponent": exponents, "points": found, "rounds": arguments.rounds})
    plot(found, ROOT / "docs" / "figures" / "rl_scaling.png")


if __name__ == "__main__":
    main()
