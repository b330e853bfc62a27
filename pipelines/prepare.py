"""Prepare: raw interactions to sequences, splits and the item vocabulary (`data/prepared`)."""

from pathlib import Path

import rl4rec._script  # noqa: F401 - before all that starts threads
from rl4rec._stage import run_stage
from rl4rec.data.prepare import prepare
from rl4rec.ops.tracking import stage_run
from rl4rec.params import Params

OUT = Path("data/prepared")


def main(params: Params) -> None:
    with stage_run("prepare", params) as run:
        data = prepare(params.data, OUT)
        run.log_params({"data": params.data.model_dump()})
        run.log_dataset(data, context="prepare")
        run.log_metrics({f"data/{name}": float(data.stats[name]) for name in ("users", "items", "interactions")})
        run.log_artifact(OUT / "stats.json", folder="data")


if __name__ == "__main__":
    run_stage(main)
