"""Stage `sft_continued`: the control, GRPO's updates as cross-entropy; writes models/sft_continued and its log."""

from pathlib import Path

import rl4rec._script  # noqa: F401 - before all that starts threads
from rl4rec import api
from rl4rec._stage import run_stage
from rl4rec.data.dataset import load_prepared
from rl4rec.model.crossfit_embeddings import load_crossfit
from rl4rec.ops.tracking import training_run
from rl4rec.params import Params


def main(params: Params) -> None:
    data, rl = load_prepared("data/prepared"), params.rl
    with training_run("sft_continued", params, data) as run:
        trained = api.continue_sft(
            Path("models/sft"),
            data,
            rl,
            crossfit=load_crossfit(Path("models/crossfit"), tables=rl.crossfit.split_points),
            batch_size=params.evaluate.batch_size,
            checkpoints=run.checkpoints,
            on_log=run.on_log,
        )
        run.save(trained, Path("models/sft_continued"))


if __name__ == "__main__":
    run_stage(main, distributed=True)
