"""Speed and memory of an SFT step: `python benchmarks/sft.py`.

- Against TRL's SFTTrainer on the same model (GPT-2 of one layer, width 64) and the same made-up data of Amazon Beauty's
  size (12,101 items): in its default precision (bfloat16 autocast) and in float32; the ratio is to the faster of these.
  Ours runs as it comes (bfloat16 products where the machine has them) and in float32. Memory is what training adds to
  the loaded process.
- How a step grows with the catalogue (12 thousand to a million items, full and sampled softmax) and with the width.

Each variant runs in a process of its own, in turns; medians over rounds. Writes `benchmarks/results/sft.json` and
`docs/figures/sft_growth.png`.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import torch
from common import (
    ITEMS,
    POLICY,
    Numbers,
    made_up_data,
    median_peer_step,
    median_step,
    medians,
    plain_model,
    run_variant,
    save,
    silent_run,
)
from datasets import Dataset
from trl import SFTConfig
from trl import SFTTrainer as StockSFTTrainer

from rl4rec.data.dataset import IntArray
from rl4rec.data.vocabulary import ITEM_OFFSET, build_tokenizer
from rl4rec.model.create import create_policy
from rl4rec.params import SFTParams
from rl4rec.train.log import peak_memory_mb
from rl4rec.train.sft import SFTTrainer, cut_windows

FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "sft_growth.png"
SFT = SFTParams(batch_size=256)
CATALOGUES = (12_101, 100_000, 1_000_000)
WIDTHS = (64, 128, 256, 512)


def tokens_per_step(windows: list[IntArray]) -> float:
    """Positions that a step predicts."""
    return float(SFT.batch_size * np.mean([len(window) - 1 for window in windows]))


def ours(
    _: Path,
    *,
    items: int = ITEMS,
    width: int = 64,
    softmax: str = "full",
    steps: int = 24,
    precision: str = "auto",
) -> Numbers:
    data = made_up_data(items)
    tokenizer = build_tokenizer(data.item_ids[:10])  # a policy from scratch takes its special tokens only
    before = peak_memory_mb()
    policy, _ = create_policy(POLICY.model_copy(update={"n_embd": width}), data.item_ids, tokenizer)
    changes = {"max_steps": steps, "softmax": softmax, "precision": precision}
    trainer = SFTTrainer(policy, data, SFT.model_copy(update=changes), silent_run())
    seconds = median_step(trainer, steps=steps, skip=steps // 4)
    tokens = tokens_per_step(trainer.windows)
    return {"tokens_per_s": tokens / seconds, "step_s": seconds, "memory_before_mb": before}


def trl(folder: Path, *, bf16: bool | None = None) -> Numbers:
    data = made_up_data()
    tokenizer = build_tokenizer(data.item_ids)
    before = peak_memory_mb()
    windows = cut_windows(data.train_sequences(), POLICY.max_history + 1)
    np.random.default_rng(0).shuffle(windows)
    rows = [(window + ITEM_OFFSET).tolist() for window in windows]
    arguments = SFTConfig(
        output_dir=str(folder), per_device_train_batch_size=256, max_steps=8, learning_rate=2e-3, bf16=bf16,
        use_cpu=not torch.cuda.is_available(),
        activation_checkpointing=False, report_to="none", save_strategy="no", disable_tqdm=True, max_length=64,
        logging_strategy="no",
    )  # fmt: skip
    trainer = StockSFTTrainer(
        model=plain_model(), args=arguments, train_dataset=Dataset.from_dict({"input_ids": rows}),
        processing_class=tokenizer,
    )  # fmt: skip
    seconds = median_peer_step(trainer, skip=2)
    return {"tokens_per_s": tokens_per_step(windows) / seconds, "step_s": seconds, "memory_before_mb": before}


def grown(name: str, folder: Path) -> Numbers:
    """Our step at `items:width:softmax`."""
    items, width, softmax = name.split(":")
    return ours(folder, items=int(items), width=int(width), softmax=softmax, steps=5 if int(items) > 500_000 else 10)


def plot(growth: dict[str, Numbers]) -> None:
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for softmax, marker in (("full", "o"), ("sampled", "s")):
        times = [growth[f"{items}:64:{softmax}"]["step_s"] for items in CATALOGUES]
        left.plot(CATALOGUES, times, marker=marker, label=f"{softmax} softmax")
        times = [growth[f"{ITEMS}:{width}:{softmax}"]["step_s"] for width in WIDTHS]
        right.plot(WIDTHS, times, marker=marker, label=f"{softmax} softmax")
    left.set(xscale="log", yscale="log", xlabel="items in the catalogue (width 64)", ylabel="seconds per step")
    right.set(xscale="log", yscale="log", xlabel="width (12,101 items)", xticks=WIDTHS, xticklabels=WIDTHS)
    right.minorticks_off()
    for axes in (left, right):
        axes.grid(alpha=0.3, which="both")
        axes.legend(frameon=False)
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.variant:
        named = {
            "ours": ours,
            "ours fp32": partial(ours, precision="fp32"),
            "trl": trl,
            "trl fp32": partial(trl, bf16=False),
        }
        run_variant(lambda folder: named.get(arguments.variant, lambda f: grown(arguments.variant, f))(folder))
        return
    step = medians(__file__, ["ours", "ours fp32", "trl", "trl fp32"], arguments.rounds)
    peer = max(step["trl"], step["trl fp32"], key=lambda numbers: numbers["tokens_per_s"])
    grid = {f"{items}:64:{softmax}" for items in CATALOGUES for softmax in ("full", "sampled")}
    grid |= {f"{ITEMS}:{width}:{softmax}" for width in WIDTHS for softmax in ("full", "sampled")}
    growth = medians(__file__, sorted(grid), 1)
    plot(growth)
    largest = growth[f"{CATALOGUES[-1]}:64:sampled"]
    ratio = {
        "tokens_per_s_vs_plain": round(step["ours"]["tokens_per_s"] / peer["tokens_per_s"], 2),
        "memory_vs_plain": round(step["ours"]["added_memory_mb"] / peer["added_memory_mb"], 3),
        "fp32_tokens_per_s_vs_plain_fp32": round(
            step["ours fp32"]["tokens_per_s"] / step["trl fp32"]["tokens_per_s"], 2
        ),
    }
    details = {
        "variants": step,
        "growth_by_items_width_softmax": growth,
        "peak_memory_gb_at_a_million_items": round(largest["peak_memory_mb"] / 1024, 2),
        "rounds": arguments.rounds,
    }
    save("sft", "step", ratio, details)


if __name__ == "__main__":
    main()
