"""How much SFT's accuracy owes to its seed: `python benchmarks/seeds.py --seeds 0 1 2`.

The `sft` and `evaluate` stages with the project's settings, once a seed, side by side with one core each. Validation
chooses the checkpoint; test is reported as it comes. Writes `benchmarks/results/sft_seeds.json`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import ROOT, finish, own_cores, pipeline_folder, save, start

from rl4rec.metrics import metric_key

KEYS = [
    metric_key(fold, protocol, metric, 10)
    for fold in ("valid", "test")
    for protocol in ("full", "sampled100")
    for metric in ("ndcg", "hit")
]


def outcome(folder: Path) -> dict[str, Any]:
    """Metrics of both folds, and what the training took."""
    metrics = json.loads((folder / "metrics" / "sft.json").read_text(encoding="utf-8"))["metrics"]
    summary = json.loads((folder / "logs" / "sft.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    found: dict[str, Any] = {"train_seconds": summary["train_seconds"], "best_step": summary["best_step"]}
    return found | {key: metrics[key] for key in KEYS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    cores, found = own_cores(), {}
    with tempfile.TemporaryDirectory() as temporary:
        folders = {seed: Path(temporary, str(seed)) for seed in arguments.seeds}
        for seed, folder in folders.items():
            data = pipeline_folder(folder, seed=seed)
        for first in range(0, len(arguments.seeds), len(cores)):
            together = arguments.seeds[first : first + len(cores)]
            for script in (["sft.py"], ["evaluate.py", "sft"]):
                command = [sys.executable, str(ROOT / "pipelines" / script[0]), *script[1:]]
                running = {
                    seed: start(command, folders[seed], core) for seed, core in zip(together, cores, strict=False)
                }
                for seed, process in running.items():
                    finish(process, folders[seed])
            for seed in together:
                found[str(seed)] = outcome(folders[seed])
                sys.stdout.write(f"seed {seed}: {json.dumps(found[str(seed)])}\n")
    columns = {key: [run[key] for run in found.values()] for key in KEYS}
    details = {
        "data_hash": data.data_hash,
        "seeds": found,
        "mean": {key: round(statistics.mean(column), 5) for key, column in columns.items()},
        "spread": {key: [min(column), max(column)] for key, column in columns.items()},
        "threads_each": 1 if len(cores) > 1 else "all",
    }
    save("sft_seeds", "study", {}, details)


if __name__ == "__main__":
    main()
