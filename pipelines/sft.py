"""Stage `sft`: train a policy by next-item cross-entropy, RL's warm start; writes models/sft and logs/sft.jsonl."""

from pathlib import Path

import rl4rec._script  # noqa: F401 - before all that starts threads
from rl4rec import api
from rl4rec._stage import run_stage
from rl4rec.data.dataset import load_prepared
from rl4rec.model.create import read_champion
from rl4rec.ops.tracking import training_run
from rl4rec.params import Params

CHAMPION = Path("models/champion")


def main(params: Params) -> None:
    data = load_prepared("data/prepared")
    with training_run("sft", params, data) as run:
        if params.sft.init == "champion":
            run.tracked.log_params({"start": read_champion(CHAMPION)})
        trained = api.sft(
            data,
            params.policy,
            params.sft,
            champion=CHAMPION,
            batch_size=params.evaluate.batch_size,
            checkpoints=run.checkpoints,
            on_log=run.on_log,
        )
        run.save(trained, Path("models/sft"))


if __name__ == "__main__":
    run_stage(main, distributed=True)
