"""When does RL help, and is it RL that helps? `make study`: PPO, GRPO and the control over seeds and settings.

Every run starts from the one SFT policy of `dvc repro`, with the project's settings and the changes of `SETTINGS`.
The last policy of each run is kept (`rl.keep`); test is reported as it comes. Runs go side by side, one core each, in
`.study/`, and those that are done are not repeated. Writes `metrics/study.json` and the table of `docs/PPO_vs_GRPO.md`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import torch
import yaml
from common import ROOT, finish, own_cores, start

from rl4rec.evaluation.files import load_evaluation, write_json
from rl4rec.metrics import rank_gains
from rl4rec.params import load_params
from rl4rec.report.study import study_tables
from rl4rec.statistics import paired_bootstrap
from rl4rec.workspace import merge_settings

ALGORITHMS = ("grpo", "ppo", "sft_continued")
FOLDER = ROOT / ".study"
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "ranking": yaml.safe_load((ROOT / "ranking.yaml").read_text(encoding="utf-8"))["rl"],
    "memorised": {"crossfit": {"split_points": 0}},
    "small_batch": {
        "num_slates": 10_000,
        "eval_every": 125,
        "ppo": {"batch_size": 16, "mini_batch_size": 4},
        "grpo": {"batch_size": 4, "num_sample_generations": 4},
    },
}
# What a run depends on besides its settings.
ORIGIN = [
    hashlib.sha256(b"".join(path.read_bytes() for path in sorted(ROOT.glob(pattern)))).hexdigest()
    for pattern in (
        "rl4rec/**/*.py",
        "pipelines/*.py",
        "models/sft/*.safetensors",
        "models/crossfit/*",
        "data/prepared/*.parquet",
    )
]
GENERATIONS = (2, 4, 8, 16)  # of which the peak memory is measured
DOCUMENT = ROOT / "docs" / "PPO_vs_GRPO.md"
MARKS = "<!-- made by `make study` -->\n", "<!-- end -->"
METRICS = [(f"{fold}.{protocol}.{name}@10", f"{fold}_{column}", name)
           for fold in ("valid", "test") for protocol, column in (("full", "full"), ("sampled100", "sampled"))
           for name in ("ndcg", "hit")]  # fmt: skip


def run(setting: str, algorithm: str, seed: int, core: int | None) -> Path:
    """Train and evaluate one run; its folder."""
    folder = FOLDER / f"{setting}-{algorithm}-{seed}"
    params = load_params(ROOT / "params.yaml").model_dump(mode="json")
    if setting in SETTINGS:
        params["rl"] = merge_settings(params["rl"], SETTINGS[setting])
    else:  # `generations-8`
        changes = {"num_sample_generations": int(setting.partition("-")[2]), "max_steps": 10}
        params["rl"] = merge_settings(params["rl"], {"eval_every": 10, "grpo": changes})
    params["rl"][algorithm]["seed"] = seed
    params["tracking"]["enabled"] = False
    wanted = json.dumps([params, *ORIGIN])
    done = folder / "done.json"
    if done.exists() and done.read_text(encoding="utf-8") == wanted:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("data/prepared", "models/sft", "models/crossfit"):
        link = folder / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(ROOT / name)
    (folder / "params.yaml").write_text(json.dumps(params), encoding="utf-8")  # JSON is YAML
    stage = ["sft_continued.py"] if algorithm == "sft_continued" else ["rl.py", algorithm]
    for script, *arguments in (stage, ["evaluate.py", algorithm]):
        finish(start([sys.executable, str(ROOT / "pipelines" / script), *arguments], folder, core), folder)
    done.write_text(wanted, encoding="utf-8")
    return folder


def gains(folder: Path, policy: str) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
    """Per-user values of every metric."""
    found = load_evaluation(folder / "metrics" / f"{policy}.json", folder / "ranks" / f"{policy}.parquet")
    return {
        key: rank_gains(torch.from_numpy(found.ranks[column].to_numpy().copy()), k=10, metric=name).numpy()
        for key, column, name in METRICS
    }


def differences(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Mean paired difference of each metric, relative change and interval."""
    rows = {}
    for key in first:
        found = paired_bootstrap(first[key], second[key], samples=10_000, confidence=0.95, seed=0)
        rows[key] = {
            "delta": round(found.mean, 5),
            "relative": round(found.mean / second[key].mean(), 4),
            "ci95": [round(found.lower, 5), round(found.upper, 5)],
        }
    return rows


def summary(folder: Path, algorithm: str) -> dict[str, Any]:
    """What the training log ends with."""
    last = json.loads((folder / "logs" / f"{algorithm}.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    return {key: last[key] for key in ("steps", "samples", "best_step", "train_seconds", "peak_memory_mb")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    arguments = parser.parse_args()
    cores: Queue[int | None] = Queue()
    for core in own_cores():
        cores.put(core)

    def work(job: tuple[str, str, int]) -> tuple[tuple[str, str, int], Path]:
        core = cores.get()
        try:
            folder = run(*job, core)
        finally:
            cores.put(core)
        sys.stdout.write(f"{' '.join(map(str, job))}: done\n")
        sys.stdout.flush()
        return job, folder

    jobs = [(s, a, seed) for s in arguments.settings for seed in arguments.seeds for a in ALGORITHMS]
    jobs += [(f"generations-{n}", "grpo", 0) for n in GENERATIONS]
    with ThreadPoolExecutor(cores.qsize()) as pool:
        folders = dict(pool.map(work, jobs))
    sft = gains(ROOT, "sft")
    result: dict[str, Any] = {"seeds": arguments.seeds, "settings": {}}
    for setting in arguments.settings:
        runs = {(a, seed): gains(folders[setting, a, seed], a) for a in ALGORITHMS for seed in arguments.seeds}
        means = {
            a: {key: np.mean([runs[a, seed][key] for seed in arguments.seeds], 0) for key in sft} for a in ALGORITHMS
        }
        pairs = {f"{a}_vs_sft": differences(means[a], sft) for a in ALGORITHMS}
        pairs |= {f"{a}_vs_sft_continued": differences(means[a], means["sft_continued"]) for a in ("grpo", "ppo")}
        pairs["grpo_vs_ppo"] = differences(means["grpo"], means["ppo"])
        each = {
            f"{a}-{seed}": {
                **{key: round(float(values.mean()), 5) for key, values in runs[a, seed].items()},
                **summary(folders[setting, a, seed], a),
                "vs_sft": differences(runs[a, seed], sft),
            }
            for a in ALGORITHMS
            for seed in arguments.seeds
        }
        result["settings"][setting] = {"changes": SETTINGS[setting], "runs": each, **pairs}
    result["sft"] = {key: round(float(values.mean()), 5) for key, values in sft.items()}
    result["memory_by_generations_mb"] = {
        str(n): summary(folders[f"generations-{n}", "grpo", 0], "grpo")["peak_memory_mb"] for n in GENERATIONS
    }
    write_json(ROOT / "metrics" / "study.json", result)
    before, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    DOCUMENT.write_text(f"{before}{MARKS[0]}\n{study_tables(result)}\n{MARKS[1]}{after}", encoding="utf-8")


if __name__ == "__main__":
    os.chdir(ROOT)
    main()
