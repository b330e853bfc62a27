"""Stage `rl`: fine-tune the SFT policy on the metric; writes models/<algorithm> and logs/<algorithm>.jsonl."""

from pathlib import Path

import rl4rec._script  # noqa: F401 - before all that starts threads
from rl4rec import api
from rl4rec._stage import run_variant_stage
from rl4rec.algorithms import rl_algorithms
from rl4rec.data.dataset import load_prepared
from rl4rec.errors import UserError
from rl4rec.model.crossfit_embeddings import load_crossfit
from rl4rec.ops.tracking import training_run
from rl4rec.params import Params
from rl4rec.train.rewards import GainsFunction


def main(params: Params, algorithm: str) -> None:
    data, rl = load_prepared("data/prepared"), params.rl
    own, source = own_reward() if rl.reward_type == "custom" else (None, None)
    with training_run("rl", params, data, variant=algorithm) as run:
        if source is not None:
            run.tracked.log_artifact(source, folder="reward")
        trained = api.fine_tune(
            algorithm,
            Path("models/sft"),
            data,
            rl,
            crossfit=load_crossfit(Path("models/crossfit"), tables=rl.crossfit.split_points),
            own_reward=own,
            reward_source="" if source is None else source.read_text(encoding="utf-8"),
            batch_size=params.evaluate.batch_size,
            checkpoints=run.checkpoints,
            on_log=run.on_log,
        )
        run.save(trained, Path("models", algorithm))


def own_reward() -> tuple[GainsFunction, Path]:
    """The function of pipelines/reward.py, and where the file is."""
    try:
        import reward

        return reward.gains, Path(reward.__file__)
    except Exception as error:  # whatever the user's module raises
        what = f"{type(error).__name__}: {error}"
        raise UserError(f"pipelines/reward.py: cannot be read as a module with `gains` ({what})") from error


if __name__ == "__main__":
    run_variant_stage(main, [policy.key for policy in rl_algorithms()], distributed=True)
