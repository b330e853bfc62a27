"""The frame of all trainings: what decays, no dropout in RL, one process and several GPUs, lengths, rates."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Trainer as TransformersTrainer

from rl4rec.data.dataset import PreparedData
from rl4rec.model.create import create_policy
from rl4rec.model.policy import SlatePolicy
from rl4rec.params import PolicyParams
from rl4rec.train.loop import decay_groups
from tests.tiny_checkpoints import text_tokenizer, write_checkpoint
from tests.train.helpers import TRAINERS, make_run, make_trainer, rl_params


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_what_decays_is_what_transformers_lets_decay(
    architecture: str, tiny_data: PreparedData, tmp_path: Path
) -> None:
    checkpoint = write_checkpoint(architecture, tmp_path / "lm")
    params = PolicyParams(init="pretrained", model_name=str(checkpoint), max_history=8)
    policy, _ = create_policy(params, tiny_data.item_ids, text_tokenizer())
    next(policy.parameters()).requires_grad_(False)  # frozen: in no group
    trained = {name: weight for name, weight in policy.named_parameters() if weight.requires_grad}
    decayed, others = decay_groups(policy.named_parameters(), 0.1, 0.3)
    names = {id(weight): name for name, weight in trained.items()}
    theirs = set(TransformersTrainer.get_decay_parameter_names(None, policy)) & trained.keys()  # type: ignore[arg-type]
    assert {names[id(weight)] for weight in decayed["params"]} == theirs
    assert {names[id(weight)] for weight in others["params"]} == trained.keys() - theirs
    assert (decayed["weight_decay"], others["weight_decay"], decayed["lr"], others["lr"]) == (0.3, 0.0, 0.1, 0.1)


def test_where_only_matrices_train_there_is_one_group() -> None:
    (group,) = decay_groups([("a", torch.nn.Parameter(torch.zeros(2, 2)))], 0.1, 0.3)
    assert group["weight_decay"] == 0.3


@pytest.mark.parametrize("algorithm", ["ppo", "grpo", "sft_continued"])
def test_rl_trains_without_dropout(algorithm: str, tiny_policy: SlatePolicy, tiny_data: PreparedData) -> None:
    tiny_policy.config.lm_config |= {"resid_pdrop": 0.4, "embd_pdrop": 0.4, "attn_pdrop": 0.4}
    drops = SlatePolicy(tiny_policy.config)
    drops.load_state_dict(tiny_policy.state_dict())
    drops.train()
    assert not torch.equal(drops.scores([np.array([1])]), drops.scores([np.array([1])]))  # it does drop
    rl = rl_params(eval_every=1)
    trainer = make_trainer(algorithm, drops, tiny_data, rl)
    modes: list[bool] = []
    for module in trainer.policy.modules():
        if isinstance(module, torch.nn.Dropout):
            assert module.p == 0.4
            module.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    trainer.train()
    assert modes and not any(modes)
    plain = make_trainer(algorithm, tiny_policy, tiny_data, rl)
    plain.train()
    assert all(torch.equal(a, b) for a, b in zip(trainer.policy.parameters(), plain.policy.parameters(), strict=True))


@pytest.mark.parametrize("algorithm", ["ppo", "grpo", "sft_continued"])
def test_every_validation_happens_once(algorithm: str, tiny_policy: SlatePolicy, tiny_data: PreparedData) -> None:
    rows: list[dict[str, float]] = []
    make_trainer(algorithm, tiny_policy, tiny_data, rl_params(eval_every=3), rows).train()  # 8 steps
    assert [row["step"] for row in rows if "valid/full/ndcg@3" in row] == [0, 3, 6, 8]
    assert [row["step"] for row in rows if "train/loss" in row] == [2, 4, 6, 8]


def test_the_last_steps_are_logged_although_the_interval_is_not_over(
    tiny_policy: SlatePolicy, tiny_data: PreparedData
) -> None:
    rows: list[dict[str, float]] = []
    make_trainer("grpo", tiny_policy, tiny_data, rl_params(logging_steps=5), rows).train()
    train = [row for row in rows if "train/loss" in row]
    assert [row["step"] for row in train] == [5, 8]
    assert [row["samples"] for row in train] == [5 * 32, 8 * 32]


def test_a_row_is_the_mean_over_its_steps(tiny_policy: SlatePolicy, tiny_data: PreparedData) -> None:
    each: list[dict[str, float]] = []
    pairs: list[dict[str, float]] = []
    for every, rows in ((1, each), (2, pairs)):
        make_trainer("grpo", tiny_policy, tiny_data, rl_params(logging_steps=every), rows).train()
    rewards = [row["train/reward"] for row in each if "train/reward" in row]
    expected = [(rewards[0] + rewards[1]) / 2, (rewards[2] + rewards[3]) / 2]
    assert [row["train/reward"] for row in pairs if "train/reward" in row][:2] == pytest.approx(expected)
    rates = [row["train/learning_rate"] for row in each if "train/learning_rate" in row]
    assert rates[0] == 5e-3 and rates[-1] < 1e-3  # of the step itself: the cosine begins at the top


@pytest.mark.parametrize("algorithm", ["ppo", "grpo", "sft_continued"])
def test_a_validation_may_stop_training(algorithm: str, tiny_policy: SlatePolicy, tiny_data: PreparedData) -> None:
    rows: list[dict[str, float]] = []
    run = make_run(tiny_data, rows, on_validation=lambda step, metrics: step == 4)
    TRAINERS[algorithm](copy.deepcopy(tiny_policy), tiny_data, rl_params(), run).train()
    assert rows[-1]["summary"] and rows[-1]["steps"] == 4
