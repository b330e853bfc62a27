"""Stage `sft_continued`: the control, GRPO's updates as cross-entropy; writes models/sft_continued and its log."""

import shutil
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from rl4rec._process import is_main_process
from rl4rec._stage import run_stage
from rl4rec.data.dataset import load_prepared
from rl4rec.evaluation.validation import validate
from rl4rec.model.crossfit_embeddings import load_leave_out
from rl4rec.model.policy import SlatePolicy
from rl4rec.ops.tracking import stage_run
from rl4rec.params import ALGORITHMS, Params
from rl4rec.train.checkpoints import run_digest, weights_digest
from rl4rec.train.continued import ContinuedSFTTrainer
from rl4rec.train.log import TrainingLog
from rl4rec.train.monitor import Monitor
from rl4rec.train.seeding import seed_everything

START, CROSSFIT, OUT = Path("models/sft"), Path("models/crossfit"), Path("models/sft_continued")
CHECKPOINTS, LOG = Path("checkpoints/sft_continued"), Path("logs/sft_continued.jsonl")


def main(params: Params) -> None:
    rl, data = params.rl, load_prepared(Path("data/prepared"))
    leave_out = load_leave_out(CROSSFIT, tables=rl.crossfit.split_points)
    origin = {"start": weights_digest(START), "leave_out": leave_out and leave_out.digest()}
    shared = rl.model_dump(exclude=set(ALGORITHMS) - {"grpo", "sft_continued"})
    digest = run_digest({"rl": shared, **origin})

    def measure(policy: SlatePolicy) -> dict[str, float]:
        return validate(policy.factors, data, k=rl.k, batch_size=params.evaluate.batch_size)

    with stage_run("sft_continued", params) as run, TrainingLog(LOG, run.log_metrics) as log:
        run.log_dataset(data, context="training")
        monitor = Monitor(
            validate=measure if rl.feedback == "training" else None,
            metric=f"full/ndcg@{rl.k}",
            report=log,
            best_folder=OUT,
            keep_last=rl.keep == "last",
            section="rl.sft_continued",
        )
        seed_everything(rl.sft_continued.seed)
        policy = SlatePolicy.from_pretrained(START)
        ContinuedSFTTrainer(policy, data, rl, monitor, CHECKPOINTS, leave_out=leave_out).train(digest=digest)
        if is_main_process():
            PreTrainedTokenizerFast.from_pretrained(START).save_pretrained(OUT)
            run.log_policy(OUT, data)
            shutil.rmtree(CHECKPOINTS)


if __name__ == "__main__":
    run_stage(main)
