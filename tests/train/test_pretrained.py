"""The whole way from a pretrained checkpoint: item tokens, SFT, then PPO or GRPO with adapters."""

import copy
from pathlib import Path

import numpy as np
import pytest

from rl4rec.data.dataset import PreparedData
from rl4rec.model.create import create_policy
from rl4rec.model.load import load_policy, save_policy
from rl4rec.params import PolicyParams, SFTParams
from rl4rec.train.seeding import seed_everything
from rl4rec.train.sft import SFTTrainer
from rl4rec.train.trainable import without_adapters
from tests.tiny_checkpoints import text_tokenizer, write_checkpoint
from tests.train.helpers import make_run, make_trainer, rl_params, weights


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_pretrained_policy_through_sft_and_rl(
    architecture: str, algorithm: str, tiny_data: PreparedData, tmp_path: Path
) -> None:
    seed_everything(0)
    checkpoint = write_checkpoint(architecture, tmp_path / "lm")
    params = PolicyParams(init="pretrained", model_name=str(checkpoint), max_history=8)
    policy, _ = create_policy(params, tiny_data.item_ids, text_tokenizer())
    untrained = copy.deepcopy(policy)
    settings = SFTParams(num_epochs=2, batch_size=16, learning_rate=1e-2, eval_every_epochs=1, precision="fp32")
    SFTTrainer(policy, tiny_data, settings, make_run(tiny_data, [])).train()
    assert {name for name, weight in weights(policy).items() if not (weight == weights(untrained)[name]).all()}

    rows: list[dict[str, float]] = []
    rl = rl_params(trainable="lora", sft_coef=0.1)
    trainer = make_trainer(algorithm, policy, tiny_data, rl, rows)
    trainer.train()
    assert all(np.isfinite(row["train/loss"]) for row in rows if "train/loss" in row)
    save_policy(without_adapters(trainer.policy), tmp_path / algorithm)
    before, after = weights(policy), weights(load_policy(tmp_path / algorithm))
    assert before.keys() == after.keys()  # adapters are merged into plain layers
    changed = {name for name in before if not (before[name] == after[name]).all()}
    assert changed and not any("embed" in name or "wte" in name or "lm_head" in name for name in changed)
