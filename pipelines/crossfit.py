"""Stage `crossfit`: fit item embeddings that never saw RL's targets; writes models/crossfit and logs/crossfit.jsonl."""

from pathlib import Path

import rl4rec._script  # noqa: F401 - before all that starts threads
from rl4rec import api
from rl4rec._process import is_main_process
from rl4rec._stage import run_stage
from rl4rec.data.dataset import load_prepared
from rl4rec.ops.tracking import training_run
from rl4rec.params import Params

OUT = Path("models/crossfit")


def main(params: Params) -> None:
    data = load_prepared("data/prepared")
    with training_run("crossfit", params, data) as run:
        tables = api.crossfit(
            Path("models/sft"),
            data,
            params.sft,
            params.rl.crossfit,
            feedback=params.rl.feedback,
            batch_size=params.evaluate.batch_size,
            checkpoints=run.checkpoints,
            on_log=run.on_log,
        )
        if is_main_process():
            OUT.mkdir(parents=True, exist_ok=True)  # empty without split points
            if tables is not None:
                tables.save(OUT)
            run.clean_up()


if __name__ == "__main__":
    run_stage(main, distributed=True)
