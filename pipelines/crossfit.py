"""Stage `crossfit`: item embeddings that never saw RL's targets; writes models/crossfit and logs/crossfit."""

import shutil
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from rl4rec._process import is_main_process
from rl4rec._stage import run_stage
from rl4rec.data.dataset import PreparedData, load_prepared
from rl4rec.evaluation.validation import validate
from rl4rec.ops.tracking import stage_run
from rl4rec.params import Params
from rl4rec.train.checkpoints import run_digest, weights_digest
from rl4rec.train.crossfit import fit_leave_out
from rl4rec.train.log import TrainingLog
from rl4rec.train.monitor import Monitor

START, OUT, CHECKPOINTS, LOGS = Path("models/sft"), Path("models/crossfit"), Path("checkpoints/crossfit"), Path("logs")


def main(params: Params) -> None:
    data, crossfit, feedback = load_prepared(Path("data/prepared")), params.rl.crossfit, params.rl.feedback
    settings = {"crossfit": crossfit.model_dump(), "feedback": feedback, "sft": params.sft.model_dump()}
    digest = run_digest(settings | {"start": weights_digest(START), "data": data.data_hash})
    with stage_run("crossfit", params) as run, TrainingLog(LOGS / "crossfit.jsonl", run.log_metrics) as log:
        run.log_dataset(data, context="training")

        def make_monitor(earlier: PreparedData, table: int, best: Path) -> Monitor:
            return Monitor(
                validate=lambda p: validate(p.factors, earlier, k=10, batch_size=params.evaluate.batch_size),
                metric="full/ndcg@10",
                report=lambda row: log({"table": table, **row}),
                best_folder=best,
                keep_last=True,  # the fold that is measured is what RL will be rewarded for: nothing is chosen by it
            )

        leave_out = fit_leave_out(
            START,
            PreTrainedTokenizerFast.from_pretrained(START),
            data,
            params.sft,
            crossfit,
            latest=feedback == "latest",
            make_monitor=make_monitor,
            checkpoints=CHECKPOINTS,
            digest=digest,
        )
        if is_main_process():
            OUT.mkdir(parents=True, exist_ok=True)
            if leave_out is not None:
                leave_out.save(OUT)
            shutil.rmtree(CHECKPOINTS, ignore_errors=True)


if __name__ == "__main__":
    run_stage(main)
