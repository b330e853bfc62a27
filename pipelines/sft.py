"""Stage `sft`: train a policy by next-item cross-entropy, RL's warm start; writes models/sft and logs/sft.jsonl."""

import json
import shutil
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from rl4rec._process import is_main_process
from rl4rec._stage import run_stage
from rl4rec.data.dataset import load_prepared
from rl4rec.evaluation.validation import validate
from rl4rec.model.create import create_policy, start_from_champion
from rl4rec.model.policy import SlatePolicy
from rl4rec.ops.tracking import stage_run
from rl4rec.params import Params
from rl4rec.train.checkpoints import run_digest, weights_digest
from rl4rec.train.log import TrainingLog
from rl4rec.train.monitor import Monitor
from rl4rec.train.seeding import seed_everything
from rl4rec.train.sft import train_sft

CHAMPION = Path("models/champion")
OUT, CHECKPOINTS, LOG = Path("models/sft"), Path("checkpoints/sft"), Path("logs/sft.jsonl")


def main(params: Params) -> None:
    data = load_prepared(Path("data/prepared"))
    seed_everything(params.sft.seed)
    policy, tokenizer = create_policy(
        params.policy, data.item_ids, PreTrainedTokenizerFast.from_pretrained(data.tokenizer_folder)
    )
    warm = params.sft.init == "champion" and start_from_champion(policy, data.item_ids, CHAMPION)

    def measure(policy: SlatePolicy) -> dict[str, float]:
        return validate(policy.factors, data, k=10, batch_size=params.evaluate.batch_size)

    with stage_run("sft", params) as run, TrainingLog(LOG, run.log_metrics) as log:
        run.log_dataset(data, context="training")
        if warm:
            run.log_params({"start": json.loads((CHAMPION / "champion.json").read_text(encoding="utf-8"))})
        monitor = Monitor(
            validate=measure if params.sft.feedback == "training" else None,
            metric="full/ndcg@10",
            report=log,
            best_folder=OUT,
            patience=params.sft.early_stopping_patience,
        )
        digest = run_digest(
            {
                "policy": params.policy.model_dump(),
                "sft": params.sft.model_dump(),
                "data": data.data_hash,
                "start": warm and weights_digest(CHAMPION / "policy"),
            }
        )
        train_sft(policy, tokenizer, data, params.sft, monitor, checkpoints=CHECKPOINTS, digest=digest)
        if is_main_process():
            tokenizer.save_pretrained(OUT)
            run.log_policy(OUT, data)
            shutil.rmtree(CHECKPOINTS)


if __name__ == "__main__":
    run_stage(main)
