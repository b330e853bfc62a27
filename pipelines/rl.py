"""Stage `rl`: fine-tune the SFT policy on the metric with PPO or GRPO; writes models/<algorithm> and its log."""

import shutil
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from rl4rec._process import is_main_process
from rl4rec._stage import run_variant_stage
from rl4rec.data.dataset import load_prepared
from rl4rec.errors import UserError
from rl4rec.evaluation.validation import validate
from rl4rec.model.crossfit_embeddings import load_leave_out
from rl4rec.model.policy import SlatePolicy, SlatePolicyConfig
from rl4rec.ops.tracking import stage_run
from rl4rec.params import ALGORITHMS, Params, UpdateParams
from rl4rec.train.checkpoints import run_digest, weights_digest
from rl4rec.train.grpo import train_grpo
from rl4rec.train.log import TrainingLog
from rl4rec.train.monitor import Monitor
from rl4rec.train.ppo import PPOTrainer
from rl4rec.train.prompts import check_slate_fits
from rl4rec.train.rewards import GainsFunction
from rl4rec.train.seeding import seed_everything

START, CROSSFIT = Path("models/sft"), Path("models/crossfit")


def main(params: Params, algorithm: str) -> None:
    rl, data = params.rl, load_prepared(Path("data/prepared"))
    out, checkpoints = Path("models") / algorithm, Path("checkpoints") / algorithm
    section: UpdateParams = getattr(rl, algorithm)
    shared = rl.model_dump(exclude=set(ALGORITHMS))
    leave_out = load_leave_out(CROSSFIT, tables=rl.crossfit.split_points)
    origin = {"start": weights_digest(START), "leave_out": leave_out and leave_out.digest()}
    own, source = own_reward() if rl.reward_type == "custom" else (None, None)
    rewarded = {} if source is None else {"reward": source.read_text(encoding="utf-8")}  # another reward, another run
    digest = run_digest({"rl": shared, algorithm: section.model_dump(), **origin, **rewarded})
    config = SlatePolicyConfig.from_pretrained(START)
    check_slate_fits(
        data, k=rl.k, max_history=config.max_history, mask_seen=config.mask_seen, latest=rl.feedback == "latest"
    )
    tokenizer = PreTrainedTokenizerFast.from_pretrained(START)

    def measure(policy: SlatePolicy) -> dict[str, float]:
        return validate(policy.factors, data, k=rl.k, batch_size=params.evaluate.batch_size)

    with (
        stage_run("rl", params, name=f"rl-{algorithm}") as run,
        TrainingLog(Path(f"logs/{algorithm}.jsonl"), run.log_metrics) as log,
    ):
        run.log_dataset(data, context="training")
        if source is not None:
            run.log_artifact(source, folder="reward")
        monitor = Monitor(
            validate=measure if rl.feedback == "training" else None,
            metric=f"full/ndcg@{rl.k}",
            report=log,
            best_folder=out,
            keep_last=rl.keep == "last",
            section=f"rl.{algorithm}",
            max_kl=rl.max_kl,
        )
        seed_everything(section.seed)
        if algorithm == "ppo":
            policy = SlatePolicy.from_pretrained(START)
            trainer = PPOTrainer(policy, data, rl, monitor, checkpoints, leave_out=leave_out, own_reward=own)
            trainer.train(digest=digest)
        else:
            train_grpo(
                START,
                tokenizer,
                data,
                rl,
                monitor,
                checkpoints=checkpoints,
                digest=digest,
                leave_out=leave_out,
                own_reward=own,
            )
        if is_main_process():
            tokenizer.save_pretrained(out)
            run.log_policy(out, data)
            shutil.rmtree(checkpoints)


def own_reward() -> tuple[GainsFunction, Path]:
    """The function of pipelines/reward.py, and where the file is."""
    try:
        import reward

        return reward.gains, Path(reward.__file__)
    except Exception as error:  # whatever the user's module raises
        what = f"{type(error).__name__}: {error}"
        raise UserError(f"pipelines/reward.py: cannot be read as a module with `gains` ({what})") from error


if __name__ == "__main__":
    run_variant_stage(main, ("ppo", "grpo"))
