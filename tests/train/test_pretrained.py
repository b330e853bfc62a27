"""The whole way from a pretrained checkpoint: item tokens, SFT, then PPO or GRPO with adapters."""

from pathlib import Path

import numpy as np
import pytest

from rl4rec.data.dataset import PreparedData
from rl4rec.model.create import create_policy
from rl4rec.model.policy import SlatePolicy
from rl4rec.params import PolicyParams, SFTParams
from rl4rec.train.grpo import train_grpo
from rl4rec.train.ppo import PPOTrainer
from rl4rec.train.seeding import seed_everything
from rl4rec.train.sft import train_sft
from tests.tiny_checkpoints import text_tokenizer, write_checkpoint
from tests.train.helpers import make_monitor, rl_params, weights


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_pretrained_policy_through_sft_and_rl(
    architecture: str, algorithm: str, tiny_data: PreparedData, tmp_path: Path
) -> None:
    seed_everything(0)
    checkpoint = write_checkpoint(architecture, tmp_path / "lm")
    params = PolicyParams(init="pretrained", model_name=str(checkpoint), max_history=8)
    policy, tokenizer = create_policy(params, tiny_data.item_ids, text_tokenizer())
    sft, out = tmp_path / "sft", tmp_path / algorithm
    settings = SFTParams(num_epochs=2, batch_size=16, learning_rate=1e-2, eval_every_epochs=1, precision="fp32")
    monitor = make_monitor(tiny_data, sft, [])
    train_sft(policy, tokenizer, tiny_data, settings, monitor, checkpoints=tmp_path / "ck", digest="d")

    rl = rl_params(trainable="lora", sft_coef=0.1)
    rows: list[dict[str, float]] = []
    monitor = make_monitor(tiny_data, out, rows)
    if algorithm == "ppo":
        PPOTrainer(SlatePolicy.from_pretrained(sft), tiny_data, rl, monitor, tmp_path / "rl").train(digest="d")
    else:
        train_grpo(sft, tokenizer, tiny_data, rl, monitor, checkpoints=tmp_path / "rl", digest="d")
    assert all(np.isfinite(row["train/loss"]) for row in rows if "train/loss" in row)
    before, after = weights(sft), weights(out)
    assert before.keys() == after.keys()  # adapters are merged into plain layers
    changed = {name for name in before if not (before[name] == after[name]).all()}
    assert changed and not any("embed" in name or "wte" in name or "lm_head" in name for name in changed)
