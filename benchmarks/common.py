"""What the benchmarks share: made-up data, a clock for training steps, variants in processes of their own, results."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from transformers import GPT2Config, GPT2LMHeadModel, TrainerCallback
from transformers import Trainer as PeerTrainer

from rl4rec.data.dataset import IntArray, PreparedData, Ragged, load_prepared
from rl4rec.data.vocabulary import ITEM_OFFSET, build_tokenizer
from rl4rec.model.create import create_policy
from rl4rec.model.scores import Scores
from rl4rec.params import PolicyParams
from rl4rec.settings import load_params
from rl4rec.train.log import RunLog, peak_memory_mb
from rl4rec.train.loop import Trainer

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
ITEMS, USERS = 12_101, 6_000
POLICY = PolicyParams(n_layer=1, n_embd=64, n_head=1, dropout=0.2, max_history=50)

Numbers = dict[str, float]


def made_up_data(items: int = ITEMS, users: int = USERS) -> PreparedData:
    """Sequences as long as Beauty's (5 and more, 8.9 on average) over skewed items."""
    rng = np.random.default_rng(0)
    lengths = np.minimum(5 + rng.geometric(0.2, users) - 1, 200)
    rows = [(items * rng.random(length) ** 2).astype(np.int64) for length in lengths]
    sequences = Ragged.from_rows(rows)
    return PreparedData(
        folder=Path("made-up"),
        users=[str(user) for user in range(users)],
        item_ids=[f"i{item}" for item in range(items)],
        item_counts=np.bincount(sequences.values, minlength=items).astype(np.int64),
        sequences=sequences,
        stats={"data_hash": "made-up"},
    )


def plain_model(items: int = ITEMS) -> GPT2LMHeadModel:
    """The same architecture as `POLICY`, as transformers has it."""
    config = GPT2Config(
        vocab_size=ITEM_OFFSET + items, n_positions=128, n_embd=64, n_layer=1, n_head=1,
        resid_pdrop=0.2, embd_pdrop=0.2, attn_pdrop=0.2, bos_token_id=2, eos_token_id=3, pad_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


class StepClock(TrainerCallback):
    """Seconds of every optimizer step of a transformers Trainer."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._since = 0.0

    def on_step_begin(self, *_: object, **__: object) -> None:
        self._since = now()

    def on_step_end(self, *_: object, **__: object) -> None:
        self.seconds.append(now() - self._since)


class InOrder:
    """A policy that only looks its users up: the evaluator asks for them in order, fold after fold.

    Args:
        states: (u, d) of the users of a fold.
        items: (I, d).
    """

    def __init__(self, states: torch.Tensor, items: torch.Tensor) -> None:
        self._states, self._items, self._place = states, items, 0

    def encode(self, histories: Sequence[IntArray]) -> torch.Tensor:
        first = self._place % len(self._states)
        self._place = first + len(histories)
        return self._states[first : self._place]

    def score(self, states: torch.Tensor) -> Scores:
        return Scores(states, self._items)


def now() -> float:
    """Seconds, with all work on the device done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def silent_run() -> RunLog:
    """A run that validates nothing and reports nothing."""
    return RunLog(validate=None, metric="none")


def median_step(trainer: Trainer, *, steps: int, skip: int) -> float:
    """Median seconds of a step of ours, the first ones left out."""
    seconds = []
    for step in range(steps):
        since = now()
        trainer.train_step(step, logged=False)
        seconds.append(now() - since)
    return statistics.median(seconds[skip:])


def median_peer_step(trainer: PeerTrainer, *, skip: int) -> float:
    """Median seconds of a step of a transformers Trainer, the first ones left out."""
    clock = StepClock()
    trainer.add_callback(clock)
    trainer.train()
    return statistics.median(clock.seconds[skip:])


def run_variant(work: Callable[[Path], Numbers]) -> None:
    """In a variant's own process: do the work in a temporary folder, print its numbers and its memory as JSON."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        result = work(Path(folder))
    before = result.pop("memory_before_mb")
    result |= {"peak_memory_mb": peak_memory_mb(), "added_memory_mb": round(peak_memory_mb() - before, 1)}
    sys.stdout.write(json.dumps(result))


def medians(script: str, variants: list[str], rounds: int) -> dict[str, Numbers]:
    """Run each variant in a process of its own, in turns, so that memory is its own and noise hits all alike."""
    runs: dict[str, list[Numbers]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name in variants:
            command = [sys.executable, script, "--variant", name]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
            runs[name].append(json.loads(done.stdout))
    return {
        name: {key: round(statistics.median(run[key] for run in each), 4) for key in each[0]}
        for name, each in runs.items()
    }


def pipeline_folder(folder: Path, **sft: object) -> PreparedData:
    """A folder to run stage scripts in: the project's settings with some of `sft` changed, and its prepared data."""
    prepared = ROOT / "data" / "prepared"
    if not (prepared / "stats.json").exists():
        subprocess.run(["dvc", "repro", "prepare"], cwd=ROOT, check=True)
    settings = load_params(ROOT / "params.yaml").model_dump(mode="json")
    settings["sft"] |= sft
    settings["tracking"]["enabled"] = False
    folder.mkdir(parents=True)
    (folder / "params.yaml").write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML
    (folder / "data").mkdir()
    (folder / "data" / "prepared").symlink_to(prepared)
    return load_prepared(prepared)


def serving_workspace(folder: Path) -> PreparedData:
    """A folder to serve from: `policy/` of Beauty's size, untrained, over made-up items, and their vocabulary."""
    data = replace(made_up_data(), folder=folder / "data" / "prepared")
    data.folder.mkdir(parents=True)
    pl.DataFrame({"item": data.item_ids, "count": data.item_counts}).write_parquet(data.folder / "items.parquet")
    (folder / "params.yaml").write_text("{}", encoding="utf-8")
    torch.manual_seed(0)
    policy, _ = create_policy(POLICY, data.item_ids, build_tokenizer(data.item_ids))
    policy.save_pretrained(folder / "policy")
    return data


def start(command: list[str], folder: Path, core: int | None) -> subprocess.Popen[bytes]:
    """Start a process in a folder, with one core to itself (`core` None: with all of them)."""
    threads = {} if core is None else {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(command, cwd=folder, env=os.environ | threads, stdout=log, stderr=log)
    if core is not None:
        os.sched_setaffinity(process.pid, {core})
    return process


def finish(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Wait for a process of `start`; stop with the end of its log if it failed."""
    if process.wait():
        raise SystemExit(f"{folder.name} failed:\n{(folder / 'log').read_text(encoding='utf-8')[-3000:]}")


def own_cores() -> list[int | None]:
    """Cores to start processes on, each its own; [None] where that cannot be chosen or there is one only."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return list(cores) if len(cores) > 1 else [None]


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    found: dict[str, object] = {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if torch.cuda.is_available():
        found["device"] = torch.cuda.get_device_name()
    return found


def save(name: str, part: str, ratio: Mapping[str, float | None], details: Mapping[str, Any]) -> None:
    """Replace one part of `results/<name>.json` (`results/gpu-<name>.json` on CUDA), and print its ratios.

    The file's `ratio` has the ratios of all its parts; each part keeps its own, with the machine it ran on.
    """
    path = RESULTS / (f"gpu-{name}.json" if torch.cuda.is_available() else f"{name}.json")
    parts = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    parts.pop("ratio", None)
    parts[part] = {"ratio": dict(ratio), **details, "machine": machine()}
    together = {key: value for each in parts.values() for key, value in each["ratio"].items()}
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps({"ratio": together, **parts}, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps(dict(ratio), indent=2) + "\n")
