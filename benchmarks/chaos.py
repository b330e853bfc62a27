"""Kill stages at random moments and start them again: `make chaos`.

Each stage of a small pipeline runs once without interruption. Then, again and again, it starts from the same folder,
is killed with `kill -9` at a seeded moment (once or twice), and is started again with the same command. What it leaves
must be the same to the last bit: the prepared data, the weights, every row of the training log but for clocks, and
in MLflow each step of each series once. Writes `benchmarks/results/chaos.json`.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import multiprocessing
import os
import random
import runpy
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("prepare", "sft", "crossfit", "rl ppo", "rl grpo", "sft_continued")
CLOCKS = ("seconds", "per_second", "peak_memory_mb")
SETTINGS: dict[str, Any] = {
    "data": {
        "source": "simulated",
        "simulated": {"users": 300, "items": 60, "tastes": 3},
        "k_core": 2,
    },
    "policy": {"n_embd": 16, "max_history": 8, "dropout": 0.1},
    "sft": {"num_epochs": 12, "batch_size": 16, "eval_every_epochs": 1, "logging_steps": 2},
    "rl": {
        "k": 5,
        "crossfit": {"num_epochs": 3},
        "candidates": {"negatives": 20},
        "eval_every": 3,
        "keep": "best",
        "ppo": {"batch_size": 16, "mini_batch_size": 8, "kl_coef": 0.05, "kl_control": "adaptive", "max_steps": 40},
        "grpo": {"batch_size": 8, "num_sample_generations": 4, "num_iterations": 2, "max_steps": 60},
    },
    "evaluate": {"ks": [5], "negatives": 20},
    "compare": {
        "gate": {
            "metric": "test/full/ndcg@5",
            "guards": {"test/sampled100/ndcg@10": None, "test/full/hit@10": None, "test/full/coverage@10": None},
        }
    },
    "tracking": {"system_metrics": False},
}


def run_stage(folder: Path, stage: str, log: Path) -> None:
    """What a child process does: the stage's script, in `folder`."""
    os.chdir(folder)
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    name, *variant = stage.split()
    script = ROOT / "pipelines" / f"{name}.py"
    sys.argv = [str(script), *variant]
    os.environ["RL4REC_PIPELINE_ID"] = "chaos"
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    runpy.run_path(str(script), run_name="__main__")


def start(folder: Path, stage: str) -> Any:
    process = multiprocessing.get_context("forkserver").Process(
        target=run_stage, args=(folder, stage, folder / "output.txt")
    )
    process.start()
    return process


def finish(process: Any, folder: Path, stage: str) -> None:
    process.join()
    if process.exitcode != 0:
        raise SystemExit(f"{stage}: exit status {process.exitcode}\n{(folder / 'output.txt').read_text()[-3000:]}")


def kill(process: Any, folder: Path, stage: str, rng: random.Random, *, rows: int, seconds: float) -> str:
    """Kill the stage when it has logged a random share of its rows, or after a random time; what it was doing then."""
    name = stage.split()[-1]
    partial = folder / "logs" / f"{name}.jsonl.partial"
    at_row = rng.randint(0, rows - 1) if rows else 0
    time.sleep(rng.uniform(0, seconds) if not rows or at_row == 0 else 0)
    while process.is_alive() and at_row and _count_lines(partial) < at_row:
        time.sleep(0.001)
    time.sleep(rng.uniform(0, 0.05) if at_row else 0)
    if not process.is_alive():
        return "had finished"
    process.kill()
    process.join()
    checkpoints = sorted((folder / "checkpoints").rglob("checkpoint-*"))
    torn = [path for path in checkpoints if path.is_dir() and not (path / "manifest.json").exists()]
    return f"row {_count_lines(partial)}" + (", while it wrote a checkpoint" if torn else "")


def _count_lines(path: Path) -> int:
    try:
        return path.read_bytes().count(b"\n")
    except OSError:
        return 0


def results(folder: Path, stage: str) -> dict[str, Any]:
    """All that a stage leaves, without clocks."""
    name = stage.split()[-1]
    found: dict[str, Any] = {}
    for out in (folder / "data/prepared",) if name == "prepare" else (folder / "models" / name,):
        for path in sorted(out.rglob("*")):
            if path.is_file():
                found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    log = folder / "logs" / f"{name}.jsonl"
    if log.exists():
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        found["log"] = [{key: row[key] for key in row if not key.endswith(CLOCKS)} for row in rows]
    found["mlflow"] = series(folder, stage)
    return found


def series(folder: Path, stage: str) -> dict[str, list[tuple[int, float]]]:
    """Every series of the finished run of a stage in MLflow."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("rl4rec")
    runs = client.search_runs([experiment.experiment_id], f"attributes.run_name = '{stage.replace(' ', '-')}'")
    statuses = [run.info.status for run in runs]
    if "FINISHED" not in statuses or set(statuses) - {"FINISHED", "KILLED"}:
        raise SystemExit(f"{stage}: runs with states {statuses}")
    # one that was killed between its end and that of its process has finished, too
    run = max((run for run in runs if run.info.status == "FINISHED"), key=lambda run: int(run.info.start_time))
    return {
        name: sorted((entry.step, entry.value) for entry in client.get_metric_history(run.info.run_id, name))
        for name in run.data.metrics
        if not name.endswith(CLOCKS)
    }


def differences(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """Names of what differs; of the series in MLflow each by its own."""
    flat = [{**each, **{f"mlflow {name}": value for name, value in each["mlflow"].items()}} for each in (first, second)]
    for each in flat:
        del each["mlflow"]
    return sorted(name for name in flat[0].keys() | flat[1].keys() if flat[0].get(name) != flat[1].get(name))


def chaos(scratch: Path, *, kills: int, seed: int, stages: tuple[str, ...] = STAGES) -> Iterator[dict[str, Any]]:
    """A report for each stage, of `kills` runs that were killed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["mlflow", "rl4rec.train.grpo", "rl4rec.train.ppo", "rl4rec.evaluation.protocols", "rl4rec.data.prepare"]
    )
    rng = random.Random(seed)
    base = scratch / "base"
    base.mkdir()
    (base / "params.yaml").write_text(yaml.safe_dump(SETTINGS))
    # MLflow keeps databases open by their path: a folder's name is never used twice
    folders = (scratch / f"run-{number}" for number in itertools.count())
    for stage in STAGES:
        whole = shutil.copytree(base, next(folders))
        finish(start(whole, stage), whole, stage)
        expected = results(whole, stage)
        if stage in stages:
            again = shutil.copytree(base, next(folders))
            since = time.monotonic()
            finish(start(again, stage), again, stage)
            seconds = time.monotonic() - since
            repeated = differences(expected, results(again, stage))
            shutil.rmtree(again)
            report: dict[str, Any] = {"stage": stage, "repeated_differs": repeated, "kills": []}
            rows = len(expected.get("log", ()))
            while len(report["kills"]) < kills:
                folder = shutil.copytree(base, next(folders))
                moments = [
                    kill(start(folder, stage), folder, stage, rng, rows=rows, seconds=seconds)
                    for _ in range(rng.choice((1, 1, 2)))
                ]
                if "had finished" not in moments:
                    finish(start(folder, stage), folder, stage)
                    found = differences(expected, results(folder, stage))
                    report["kills"].append({"moments": moments, "differs": found})
                shutil.rmtree(folder)
            yield report
        shutil.rmtree(base)
        whole.rename(base)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=5, help="killed runs of each stage")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stages", nargs="*", default=list(STAGES), choices=STAGES)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "chaos.json")
    arguments = parser.parse_args()
    reports = []
    with tempfile.TemporaryDirectory() as scratch:
        for report in chaos(Path(scratch), kills=arguments.kills, seed=arguments.seed, stages=tuple(arguments.stages)):
            reports.append(report)
            bad = [entry for entry in report["kills"] if entry["differs"]]
            moments = sum(len(entry["moments"]) for entry in report["kills"])
            print(f"{report['stage']}: {moments} kills in {len(report['kills'])} runs, {len(bad)} differ", flush=True)
            for entry in bad:
                print(f"  {entry}")
    failed = sum(bool(entry["differs"]) for report in reports for entry in report["kills"])
    failed += sum(bool(report["repeated_differs"]) for report in reports)
    arguments.out.write_text(json.dumps({"seed": arguments.seed, "stages": reports}, indent=2) + "\n")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
