"""Time to equal accuracy against RecTools' SASRec: `python benchmarks/accuracy.py`.

Both models train on the same prepared data (`data/prepared`; made by `dvc repro prepare` if it is missing), side by
side, each with one core to itself, and are judged by the same code: NDCG@10 of the full ranking on the validation fold
after every epoch. The ratio is our training time until 99 % of RecTools' best NDCG@10 is reached, over RecTools' own
until there. RecTools gets the same size of model, its default loss (full softmax) and a time limit.

What to know when reading it: our settings were tuned on this validation fold, RecTools' were not (our learning rate,
held constant as it does; one run); it trains in float32, Lightning's default; and with `session_max_len` 20 it does
not see the start of 4 % of the histories, 11 % of the labels (50, which sees all, took 2.5 times as long an epoch).

RecTools lives in an environment of its own (`benchmarks/.venv-rectools`, made by the first run). Writes the part
`accuracy` of `benchmarks/results/sft.json`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import ROOT, InOrder, finish, own_cores, pipeline_folder, save, start

from rl4rec.data.dataset import PreparedData
from rl4rec.evaluation.validation import validate

PEER = ROOT / "benchmarks" / "peers"
VENV = ROOT / "benchmarks" / ".venv-rectools"
# Size, dropout, batch and learning rate as ours; the rest is RecTools' default.
RECTOOLS = {
    "n_blocks": 1, "n_heads": 1, "n_factors": 64, "dropout_rate": 0.35, "session_max_len": 20, "batch_size": 256,
    "lr": 2e-3, "loss": "softmax", "epochs": 100,
}  # fmt: skip

Curve = list[dict[str, float]]


def peer_python() -> Path:
    """Python of RecTools' environment."""
    done = VENV / ".installed"
    wanted = (PEER / "requirements.txt").read_text(encoding="utf-8")
    if not done.exists() or done.read_text(encoding="utf-8") != wanted:
        sys.stderr.write(f"installing RecTools into {VENV.relative_to(ROOT)}\n")
        venv.create(VENV, with_pip=True, clear=True)
        pip = [str(VENV / "bin" / "pip"), "install", "-q", "--disable-pip-version-check", "-r"]
        if subprocess.run([*pip, str(PEER / "requirements.txt")], check=False).returncode:
            raise SystemExit("RecTools could not be installed (see above): this benchmark needs a package index")
        done.write_text(wanted, encoding="utf-8")
    return VENV / "bin" / "python"


def rank_rectools(data: PreparedData, folder: Path) -> Curve:
    """Our evaluator on what RecTools left after every epoch."""
    curve = []
    for path in sorted(folder.glob("epoch-*.npz"), key=lambda p: int(p.stem.split("-")[1])):
        arrays = np.load(path)
        curve.append(
            {"epoch": int(path.stem.split("-")[1]), "seconds": float(arrays["seconds"]), **_ranked(data, arrays)}
        )
    return curve


def _ranked(data: PreparedData, arrays: Any) -> dict[str, float]:
    states, items = torch.from_numpy(arrays["states"]), torch.from_numpy(arrays["items"])
    found = validate(InOrder(states[data.split("valid").user_rows], items), data, k=10)
    return {"ndcg@10": round(found["valid/full/ndcg@10"], 5), "hit@10": round(found["valid/full/hit@10"], 5)}


def ours(folder: Path) -> Curve:
    """The curve that `pipelines/sft.py` logged."""
    rows = [json.loads(line) for line in (folder / "logs" / "sft.jsonl").read_text(encoding="utf-8").splitlines()]
    validated = [row for row in rows if "valid/full/ndcg@10" in row]
    return [
        {
            "epoch": number,
            "seconds": round(row["seconds"], 1),
            "ndcg@10": round(row["valid/full/ndcg@10"], 5),
            "hit@10": round(row["valid/full/hit@10"], 5),
        }
        for number, row in enumerate(validated, start=1)
    ]


def best(curve: Curve) -> dict[str, float]:
    return max(curve, key=lambda row: row["ndcg@10"])


def reached(curve: Curve, ndcg: float) -> dict[str, float] | None:
    """The first epoch that is at least that good."""
    return next((row for row in curve if row["ndcg@10"] >= ndcg), None)


def report(data_hash: str, own: Curve, other: Curve, threads: int) -> None:
    """Write the ratio and both curves."""
    goal = round(0.99 * best(other)["ndcg@10"], 5)
    mine, theirs = reached(own, goal), reached(other, goal)
    assert theirs is not None
    ratio = None if mine is None else round(mine["seconds"] / theirs["seconds"], 3)
    details = {
        "data_hash": data_hash,
        "metric": "validation full/ndcg@10, seen items masked, by rl4rec's evaluator",
        "goal": goal,
        "reached": {"ours": mine, "rectools": theirs},
        "best": {"ours": best(own), "rectools": best(other)},
        "rectools_still_rising": best(other) is other[-1],
        "rectools_settings": RECTOOLS,
        "curves": {"ours": own, "rectools": other},
        "threads_each": threads,
    }
    save("sft", "accuracy", {"time_to_accuracy_vs_rectools": ratio}, details)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=35.0, help="training time that RecTools gets")
    arguments = parser.parse_args()
    python, cores = peer_python(), own_cores()
    with tempfile.TemporaryDirectory() as temporary:
        mine, theirs = Path(temporary, "ours"), Path(temporary, "rectools")
        data = pipeline_folder(mine, eval_every_epochs=1, early_stopping_patience=None)
        theirs.mkdir()
        train = data.train_sequences()
        np.savez(theirs / "data.npz", values=train.values, offsets=train.offsets, items=data.num_items)
        peer = [str(python), "-W", "ignore", str(PEER / "rectools_sasrec.py"), str(theirs / "data.npz"), str(theirs)]
        first = start([sys.executable, str(ROOT / "pipelines" / "sft.py")], mine, cores[0])
        if len(cores) == 1:
            finish(first, mine)
        second = start([*peer, str(arguments.minutes), json.dumps(RECTOOLS)], theirs, cores[-1])
        finish(first, mine)
        finish(second, theirs)
        own, other = ours(mine), rank_rectools(data, theirs)
    report(data.data_hash, own, other, 1 if len(cores) > 1 else torch.get_num_threads())


if __name__ == "__main__":
    main()
