"""When does RL help, and is it RL that helps? `make study`: PPO, GRPO and the control over seeds and settings.

Every run has the project's settings with the changes of `SETTINGS`. It starts from the SFT policy and the cross-fitted
embeddings of `dvc repro`, or, if its setting changes what these depend on, from its own. The last policy of each run
is kept (`rl.keep`); test is reported as it comes. Runs go side by side, one core each, in `.study/`, and those that are
done are not repeated. Writes `metrics/study.json` and the tables of `docs/PPO_vs_GRPO.md`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import yaml
from common import ROOT, finish, own_cores, start

from rl4rec._io import write_json
from rl4rec.algorithms import get_policy
from rl4rec.data.dataset import load_prepared
from rl4rec.evaluation.compare import paired_differences, per_user_gains
from rl4rec.evaluation.files import load_evaluation
from rl4rec.ops.workspace import merge_settings
from rl4rec.report.study import study_tables
from rl4rec.settings import load_params

Changes = dict[str, Any]
ALGORITHMS = ("grpo", "ppo", "sft_continued")
FOLDER = ROOT / ".study"
EARLIER = FOLDER / "one_step_back.txt"  # made by `one_step_back`
# Changes of params.yaml, by the seed of RL.
SETTINGS: dict[str, Callable[[int], Changes]] = {
    "default": lambda _: {},
    "ranking": lambda _: dict(yaml.safe_load((ROOT / "ranking.yaml").read_text(encoding="utf-8"))),
    "memorised": lambda _: {"rl": {"crossfit": {"split_points": 0}}},
    "small_batch": lambda _: {
        "rl": {
            "num_slates": 10_000,
            "eval_every": 125,
            "ppo": {"batch_size": 16, "mini_batch_size": 4},
            "grpo": {"batch_size": 4, "num_sample_generations": 4},
        }
    },
    "other_warm_starts": lambda seed: {"sft": {"seed": seed + 1}, "rl": {"crossfit": {"seed": seed + 1}}},
    "one_step_back": lambda _: {"data": {"source": "sequences", "path": f"../{EARLIER.name}", "k_core": 1}},
}
GENERATIONS = (2, 4, 8, 16)  # of which the peak memory is measured
DOCUMENT = ROOT / "docs" / "PPO_vs_GRPO.md"
MARKS = "<!-- made by `make study` -->\n", "<!-- end -->"
BOOTSTRAP = {"samples": 10_000, "confidence": 0.95, "seed": 0}


def origin() -> str:
    """Digest of what a run depends on besides its settings: the code its stages list in dvc.yaml, data and start."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    code = {
        dep
        for name, stage in stages.items()
        if name != "compare"
        for dep in stage.get("do", stage)["deps"]
        if dep.endswith(".py")
    }
    files = [
        *(ROOT / name for name in code),
        *ROOT.glob("models/sft/*.safetensors"),
        *ROOT.glob("data/prepared/*.parquet"),
    ]
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(files))).hexdigest()


ORIGIN = origin()
PROJECT: Changes = load_params(ROOT / "params.yaml").model_dump(
    mode="json", include={"data", "policy", "sft", "rl", "evaluate"}
) | {"tracking": {"enabled": False}}


class Cores:
    """Lends each job a core of its own."""

    def __init__(self) -> None:
        self._free: Queue[int | None] = Queue()
        for core in own_cores():
            self._free.put(core)
        self.count = self._free.qsize()

    @contextmanager
    def one(self) -> Iterator[int | None]:
        core = self._free.get()
        try:
            yield core
        finally:
            self._free.put(core)


def settings(changes: Changes) -> Changes:
    """The settings that a run depends on."""
    return merge_settings(PROJECT, changes)


def base_folder(params: Changes) -> Path:
    """Where the prepared data, the SFT policy and its cross-fitted embeddings for these settings are."""
    own = [settings({}), params]
    if params["rl"]["crossfit"]["split_points"] == 0:  # needs no embeddings
        own[1] = merge_settings(params, {"rl": {"crossfit": own[0]["rl"]["crossfit"]}})
    keys = [json.dumps([each["data"], each["policy"], each["sft"], each["rl"]["crossfit"]]) for each in own]
    return ROOT if keys[0] == keys[1] else FOLDER / f"base-{hashlib.sha256(keys[1].encode()).hexdigest()[:8]}"


def run(
    folder: Path, params: Changes, scripts: Iterable[list[str]], *, linked: Iterable[str], base: Path, core: int | None
) -> None:
    """Run stages in a folder that borrows `linked` from another, unless the very same were run there before."""
    wanted, done = json.dumps([params, ORIGIN]), folder / "done.json"
    if done.exists() and done.read_text(encoding="utf-8") == wanted:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in linked:
        link = folder / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(base / name)
    (folder / "params.yaml").write_text(json.dumps(params), encoding="utf-8")  # JSON is YAML
    for script, *arguments in scripts:
        finish(start([sys.executable, str(ROOT / "pipelines" / script), *arguments], folder, core), folder)
    done.write_text(wanted, encoding="utf-8")


def make_base(folder: Path, params: Changes, core: int | None) -> None:
    """Data, SFT policy and cross-fitted embeddings of settings that differ in them from the project's."""
    scripts, linked = [["sft.py"], ["crossfit.py"], ["evaluate.py", "sft"]], ["data/prepared"]
    if params["data"] != settings({})["data"]:
        scripts, linked = [["fingerprint.py"], ["prepare.py"], *scripts], []
    run(folder, params, scripts, linked=linked, base=ROOT, core=core)


def train(folder: Path, params: Changes, algorithm: str, core: int | None) -> None:
    """One training run and its evaluation."""
    script, *variant = str(get_policy(algorithm).stage).split("@")
    stage = [f"{script}.py", *variant]
    linked = ("data/prepared", "models/sft", "models/crossfit")
    run(folder, params, [stage, ["evaluate.py", algorithm]], linked=linked, base=base_folder(params), core=core)


def one_step_back() -> None:
    """The project's sequences without everyone's last item: the same protocol, one step earlier."""
    data = load_prepared(ROOT / "data" / "prepared")
    lines = [
        " ".join([user, *(data.item_ids[item] for item in data.sequences[row][:-1])])
        for row, user in enumerate(data.users)
    ]
    FOLDER.mkdir(exist_ok=True)
    EARLIER.write_text("\n".join(lines) + "\n", encoding="utf-8")


def run_of(setting: str, algorithm: str, seed: int) -> tuple[Path, Changes]:
    """Folder and settings of one training run."""
    changes = merge_settings(SETTINGS[setting](seed), {"rl": {algorithm: {"seed": seed}}})
    return FOLDER / f"{setting}-{algorithm}-{seed}", settings(changes)


def memory_run(generations: int) -> tuple[Path, Changes]:
    """Folder and settings of a short GRPO run, of which the peak memory is wanted."""
    grpo = {"num_sample_generations": generations, "max_steps": 10}
    return FOLDER / f"generations-{generations}", settings({"rl": {"eval_every": 10, "grpo": grpo}})


def gains(folder: Path, policy: str) -> dict[str, Any]:
    """Per-user values of every metric."""
    found = load_evaluation(folder / "metrics" / f"{policy}.json", folder / "ranks" / f"{policy}.parquet")
    return dict(per_user_gains(policy, found, k=10))


def differences(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Mean paired difference of each metric, relative change and interval."""
    return paired_differences(first, second, BOOTSTRAP, "ci95")


def summary(folder: Path, algorithm: str) -> dict[str, Any]:
    """What the training log ends with."""
    last = json.loads((folder / "logs" / f"{algorithm}.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    return {key: last[key] for key in ("steps", "samples", "best_step", "train_seconds", "peak_memory_mb")}


def means(values: dict[str, Any]) -> dict[str, float]:
    return {key: round(float(users.mean()), 5) for key, users in values.items()}


def over_seeds(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Per-user values, mean over the seeds."""
    return {key: np.mean([each[key] for each in runs], 0) for key in runs[0]}


def collect(setting: str, seeds: list[int]) -> dict[str, Any]:
    """The figures of one setting."""
    runs = {(a, seed): gains(run_of(setting, a, seed)[0], a) for a in ALGORITHMS for seed in seeds}
    starts = {seed: gains(base_folder(run_of(setting, "grpo", seed)[1]), "sft") for seed in seeds}
    mean = {a: over_seeds([runs[a, seed] for seed in seeds]) for a in ALGORITHMS}
    mean["sft"] = over_seeds(list(starts.values()))
    each = {
        f"{a}-{seed}": {
            **means(values),
            **summary(run_of(setting, a, seed)[0], a),
            "vs_sft": differences(values, starts[seed]),
        }
        for (a, seed), values in runs.items()
    }
    pairs = [(a, "sft") for a in ALGORITHMS] + [(a, "sft_continued") for a in ("grpo", "ppo")] + [("grpo", "ppo")]
    compared = {f"{first}_vs_{second}": differences(mean[first], mean[second]) for first, second in pairs}
    return {"changes": SETTINGS[setting](0), "seeds": seeds, "sft": means(mean["sft"]), "runs": each, **compared}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    arguments = parser.parse_args()
    if "one_step_back" in arguments.settings:
        one_step_back()
    jobs = [(*run_of(s, a, seed), a) for s in arguments.settings for seed in arguments.seeds for a in ALGORITHMS]
    jobs += [(*memory_run(n), "grpo") for n in GENERATIONS]
    bases = {base_folder(params): params for _, params, _ in jobs}
    bases.pop(ROOT, None)
    cores = Cores()

    def base(job: tuple[Path, Changes]) -> None:
        with cores.one() as core:
            make_base(*job, core)
        print(f"{job[0].name}: ready", flush=True)

    def work(job: tuple[Path, Changes, str]) -> None:
        with cores.one() as core:
            train(*job, core)
        print(f"{job[0].name}: done", flush=True)

    with ThreadPoolExecutor(cores.count) as pool:
        list(pool.map(base, bases.items()))
        list(pool.map(work, jobs))
    result = {"settings": {setting: collect(setting, arguments.seeds) for setting in arguments.settings}}
    result["memory_by_generations_mb"] = {
        str(n): summary(memory_run(n)[0], "grpo")["peak_memory_mb"] for n in GENERATIONS
    }
    write_json(ROOT / "metrics" / "study.json", result)
    before, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    DOCUMENT.write_text(f"{before}{MARKS[0]}\n{study_tables(result)}\n{MARKS[1]}{after}", encoding="utf-8")


if __name__ == "__main__":
    os.chdir(ROOT)
    main()
