"""A run that diverges stops, says why, and leaves what was good."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from rl4rec.data.dataset import PreparedData
from rl4rec.errors import UserError
from rl4rec.model.policy import SlatePolicy
from rl4rec.params import GRPOParams, PPOParams, SFTParams
from rl4rec.train.checkpoints import latest_checkpoint
from rl4rec.train.grpo import train_grpo
from rl4rec.train.monitor import Monitor
from rl4rec.train.ppo import PPOTrainer
from rl4rec.train.seeding import seed_everything
from rl4rec.train.sft import train_sft
from tests.train.helpers import rl_params

pytestmark = pytest.mark.parametrize("tiny_policy", ["dot"], indirect=True)


def monitor(folder: Path, rows: list[dict[str, float]], section: str, max_kl: float | None = None) -> Monitor:
    return Monitor(
        validate=lambda policy: {"full/ndcg@3": 0.5},
        metric="full/ndcg@3",
        report=lambda row: rows.append(dict(row)),
        best_folder=folder / "best",
        keep_last=True,
        section=section,
        max_kl=max_kl,
    )


def test_a_row_that_is_not_finite_stops_training(tiny_policy: SlatePolicy, tmp_path: Path) -> None:
    rows: list[dict[str, float]] = []
    watch = monitor(tmp_path, rows, "rl.ppo", max_kl=5.0)
    watch.log({"train/loss": 1.0, "train/kl": 4.9}, step=1, samples=1)
    with pytest.raises(UserError, match=r"diverged at step 2: train/reward is nan. Lower rl.ppo.learning_rate, raise"):
        watch.log({"train/loss": 1.0, "train/reward": float("nan")}, step=2, samples=2)
    with pytest.raises(UserError, match="train/grad_norm is inf"):
        watch.log({"train/grad_norm": float("inf")}, step=3, samples=3)
    with pytest.raises(UserError, match=r"train/kl is 5.5, above rl.max_kl \\(5\\)".replace("\\\\", "\\")):
        watch.log({"train/kl": 5.5}, step=4, samples=4)
    assert len(rows) == 4  # what stopped it is in the log
    monitor(tmp_path, rows, "rl.ppo").log({"train/kl": 5.5}, step=4, samples=4)  # no limit


def test_a_policy_that_is_not_finite_is_neither_kept_nor_saved(tiny_policy: SlatePolicy, tmp_path: Path) -> None:
    watch = monitor(tmp_path, [], "sft")
    watch.validate(tiny_policy, step=1, samples=1)
    good = (tmp_path / "best/model.safetensors").read_bytes()
    with torch.no_grad():
        next(tiny_policy.parameters())[0, 0] = torch.nan
    for act in (watch.validate, lambda policy, **at: watch.save_state(tmp_path, policy, step=at["step"])):
        with pytest.raises(UserError, match=r"step 2: the weights lm.transformer.wte.weight are not finite. Lower sft"):
            act(tiny_policy, step=2, samples=2)
    assert (tmp_path / "best/model.safetensors").read_bytes() == good


@pytest.mark.parametrize("algorithm", ["sft", "ppo", "grpo"])
def test_each_trainer_stops_within_a_logging_interval_and_keeps_its_last_good_checkpoint(
    algorithm: str,
    tiny_policy: SlatePolicy,
    tiny_data: PreparedData,
    tiny_tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
) -> None:
    rows: list[dict[str, float]] = []
    checkpoints = tmp_path / "ck"
    steps = 40

    def report(row: dict[str, float]) -> None:
        rows.append(row)
        if row["step"] == 6 and "train/loss" in row:  # what an overflow leaves behind
            trained = [p for p in live[0].parameters() if p.requires_grad]
            with torch.no_grad():
                trained[-1].fill_(torch.nan)

    tiny_policy.save_pretrained(tmp_path / "sft")
    live: list[SlatePolicy] = []
    section = algorithm if algorithm == "sft" else f"rl.{algorithm}"
    watch = monitor(tmp_path, rows, section)
    watch._report = lambda row: report(dict(row))
    keep = watch.validate

    def validate(policy: SlatePolicy, **rest: object) -> bool:
        live[:] = [policy]
        return keep(policy, **rest)  # type: ignore[arg-type]

    watch.validate = validate  # type: ignore[method-assign,assignment]
    seed_everything(0)
    with pytest.raises(UserError, match=rf"diverged at step 8: .*Lower {section}.learning_rate"):
        if algorithm == "sft":
            params = SFTParams(max_steps=steps, batch_size=16, logging_steps=2, eval_every_epochs=1, warmup_steps=0)
            live.append(tiny_policy)
            train_sft(tiny_policy, tiny_tokenizer, tiny_data, params, watch, checkpoints=checkpoints, digest="d")
        else:
            rl = rl_params(
                eval_every=4,
                logging_steps=2,
                ppo=PPOParams(batch_size=32, mini_batch_size=16, max_steps=steps),
                grpo=GRPOParams(batch_size=8, num_sample_generations=4, max_steps=steps),
            )
            if algorithm == "ppo":
                policy = SlatePolicy.from_pretrained(tmp_path / "sft")
                PPOTrainer(policy, tiny_data, rl, watch, checkpoints).train(digest="d")
            else:
                train_grpo(tmp_path / "sft", tiny_tokenizer, tiny_data, rl, watch, checkpoints=checkpoints, digest="d")
    last = latest_checkpoint(checkpoints, "d")
    assert last is not None and last.name == "checkpoint-4"
    kept = SlatePolicy.from_pretrained(tmp_path / "best")
    assert all(torch.isfinite(weight).all() for weight in kept.parameters())
