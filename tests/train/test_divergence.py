"""A run that diverges stops, says why, and leaves what was good."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rl4rec.data.dataset import PreparedData
from rl4rec.errors import UserError
from rl4rec.model.policy import SlatePolicy
from rl4rec.params import GRPOParams, PPOParams, SFTParams
from rl4rec.train.checkpoints import MODEL, latest_checkpoint
from rl4rec.train.log import RunLog
from rl4rec.train.seeding import seed_everything
from rl4rec.train.sft import SFTTrainer
from tests.train.helpers import TRAINERS, rl_params

pytestmark = pytest.mark.parametrize("tiny_policy", ["dot"], indirect=True)


def make_run(rows: list[dict[str, float]], section: str, max_kl: float | None = None) -> RunLog:
    return RunLog(
        validate=lambda policy: {"valid/full/ndcg@3": 0.5},
        metric="valid/full/ndcg@3",
        on_log=rows.append,
        section=section,
        max_kl=max_kl,
    )


def test_a_row_that_is_not_finite_stops_training(tiny_policy: SlatePolicy) -> None:
    rows: list[dict[str, float]] = []
    watch = make_run(rows, "rl.ppo", max_kl=5.0)
    watch.log({"train/loss": 1.0, "train/kl": 4.9}, step=1, samples=1)
    with pytest.raises(UserError, match=r"diverged at step 2: train/reward is nan. Lower rl.ppo.learning_rate, raise"):
        watch.log({"train/loss": 1.0, "train/reward": float("nan")}, step=2, samples=2)
    with pytest.raises(UserError, match="train/grad_norm is inf"):
        watch.log({"train/grad_norm": float("inf")}, step=3, samples=3)
    with pytest.raises(UserError, match=r"train/kl is 5.5, above rl.max_kl \\(5\\)".replace("\\\\", "\\")):
        watch.log({"train/kl": 5.5}, step=4, samples=4)
    assert len(rows) == 4  # what stopped it is in the log
    make_run(rows, "rl.ppo").log({"train/kl": 5.5}, step=4, samples=4)  # no limit


def test_a_policy_that_is_not_finite_is_neither_kept_nor_saved(tiny_policy: SlatePolicy, tmp_path: Path) -> None:
    watch = make_run([], "sft")
    watch.validate(tiny_policy, step=1, samples=1)
    good = {name: weight.detach().clone() for name, weight in tiny_policy.named_parameters()}
    with torch.no_grad():
        next(tiny_policy.parameters())[0, 0] = torch.nan
    for act in (watch.validate, lambda policy, **at: watch.save_state(tmp_path, policy, step=at["step"])):
        with pytest.raises(UserError, match=r"step 2: the weights lm.transformer.wte.weight are not finite. Lower sft"):
            act(tiny_policy, step=2, samples=2)
    assert not list(tmp_path.glob("*.safetensors"))
    watch.finish(tiny_policy, step=2, samples=2)
    assert all(torch.equal(weight, good[name]) for name, weight in tiny_policy.named_parameters())


@pytest.mark.parametrize("algorithm", ["sft", "ppo", "grpo", "sft_continued"])
def test_each_trainer_stops_within_a_logging_interval_and_keeps_its_last_good_checkpoint(
    algorithm: str, tiny_policy: SlatePolicy, tiny_data: PreparedData, tmp_path: Path
) -> None:
    rows: list[dict[str, float]] = []
    steps = 40
    section = algorithm if algorithm == "sft" else f"rl.{algorithm}"
    watch = make_run(rows, section)

    def on_log(row: dict[str, float]) -> None:
        rows.append(row)
        if row["step"] == 6 and "train/loss" in row:  # what an overflow leaves behind
            trained = [p for p in tiny_policy.parameters() if p.requires_grad]
            with torch.no_grad():
                trained[-1].fill_(torch.nan)

    watch._on_log = on_log
    seed_everything(0)
    if algorithm == "sft":
        params = SFTParams(max_steps=steps, batch_size=16, logging_steps=2, eval_every_epochs=1, warmup_steps=0)
        trainer = SFTTrainer(tiny_policy, tiny_data, params, watch)
    else:
        rl = rl_params(
            eval_every=4,
            logging_steps=2,
            ppo=PPOParams(batch_size=32, mini_batch_size=16, max_steps=steps),
            grpo=GRPOParams(batch_size=8, num_sample_generations=4, max_steps=steps),
        )
        trainer = TRAINERS[algorithm](tiny_policy, tiny_data, rl, watch)
    with pytest.raises(UserError, match=rf"diverged at step 8: .*Lower {section}.learning_rate"):
        trainer.train(checkpoints=tmp_path, digest="d")
    assert rows[-1]["step"] == 8  # what stopped it is in the log
    last = latest_checkpoint(tmp_path, "d")
    assert last is not None and last.name == "checkpoint-4"
    for file in (MODEL, "best.safetensors"):
        kept = load_file(last / file)
        assert kept and all(torch.isfinite(weight).all() for weight in kept.values())
