"""GRPO: the shared distribution, a step's gradient, updates, accumulation, scaling, CISPO, KL, learning, resuming."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from rl4rec.data.dataset import PreparedData
from rl4rec.metrics import slate_gains
from rl4rec.model.policy import SlatePolicy
from rl4rec.params import GRPOParams
from rl4rec.train.grpo import GRPOTrainer
from tests.train.helpers import make_trainer, measured, raises_interrupted, rl_params, same_weights

BASE = {"batch_size": 8, "num_sample_generations": 4, "learning_rate": 5e-3, "temperature": 1.0, "max_steps": 8}


def log_probs_of(trainer: GRPOTrainer, part: object) -> Tensor:
    """Of a part's slates under the policy as it is, with gradients."""
    states = trainer.policy.encode(part.prompts.histories)
    return trainer.policy.log_probs(states, part.support, part.slates).log_probs


def gradients(policy: SlatePolicy) -> dict[str, Tensor]:
    return {name: weight.grad.clone() for name, weight in policy.named_parameters() if weight.grad is not None}


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys() and max(float(each.abs().max()) for each in theirs.values()) > 1e-3
    for name, gradient in ours.items():
        assert torch.allclose(gradient, theirs[name], atol=1e-6), name


def assert_equally_trained(one: SlatePolicy, two: SlatePolicy) -> None:
    """But for the keys' bias: attention ignores it, so that Adam scales up its rounding."""
    for (name, weight), other in zip(one.named_parameters(), two.parameters(), strict=True):
        apart = (weight - other).abs().detach()
        if name.endswith("c_attn.bias"):
            apart[16:32] = 0.0
        assert apart.max() < 2e-5, name


@pytest.mark.parametrize("generation", ["slate", "autoregressive"])
@pytest.mark.parametrize("source", ["uniform", "popularity", "full"])
def test_recomputed_log_probs_are_those_of_the_sampled_slates(
    tiny_policy: SlatePolicy, tiny_data: PreparedData, source: str, generation: str
) -> None:
    """Of a part in the middle of a rollout, after its slates: each row equals the policy's own, alone."""
    rl = rl_params(
        candidates={"source": source, "negatives": 8},
        grpo=BASE | {"batch_size": 2, "gradient_accumulation_steps": 3, "temperature": 0.7},
    )
    tiny_policy.config.generation = generation
    trainer = make_trainer("grpo", tiny_policy, tiny_data, rl)
    parts, _ = trainer.rollout(1, with_reference=True)
    assert [len(part.prompts) for part in parts] == [2, 2, 2]
    log_probs, _, _ = trainer.loss(parts[1], None)
    assert log_probs.shape == (2, 4, 3) and log_probs.requires_grad
    assert torch.allclose(log_probs, parts[1].reference, atol=1e-6)

    prompts, policy = trainer.prompts.visit(6 + 2, 2), trainer.policy  # six prompts a step, two a part
    for row in range(2):
        history = policy.pad_histories([prompts.histories[row]])
        target, seed = torch.tensor([int(prompts.targets[row])]), torch.tensor([int(prompts.seeds[row])])
        support = policy.support(history, trainer.candidates.candidates(history, target, seed))
        slates = parts[1].slates[row].unsqueeze(0)
        assert support.mask[0, support.positions(slates).flatten()].all()
        own, _ = policy.log_probs(policy.encode(history), support, slates, temperature=0.7)
        assert torch.allclose(log_probs[row], own[0], atol=1e-5)
    rewards = slate_gains(parts[1].slates, torch.from_numpy(prompts.targets).unsqueeze(1)).sum(-1)
    assert torch.allclose(parts[1].advantages, rewards - rewards.mean(1, keepdim=True), atol=1e-6)


def test_slates_are_drawn_at_the_temperature(tiny_policy: SlatePolicy, tiny_data: PreparedData) -> None:
    """All but frozen, every slate is the ranking."""
    rl = rl_params(candidates={"source": "full"}, grpo=BASE | {"temperature": 1e-6})
    (part,), _ = make_trainer("grpo", tiny_policy, tiny_data, rl).rollout(0, with_reference=False)
    items = part.prompts.histories.items
    ranked, _ = tiny_policy.recommend([row[row >= 0].numpy() for row in items], k=3)
    assert torch.equal(part.slates, ranked.unsqueeze(1).expand(-1, 4, -1))


@pytest.mark.parametrize("loss_type", ["grpo", "cispo"])
def test_gradient_of_a_step_is_the_policy_gradient(
    tiny_policy: SlatePolicy, tiny_data: PreparedData, loss_type: str
) -> None:
    """The gradient of -(1 / nk) sum of advantage times log-probability, of both losses: no ratio has left 1."""
    rl = rl_params(sft_coef=0.3, grpo=BASE | {"loss_type": loss_type})
    trainer = make_trainer("grpo", tiny_policy, tiny_data, rl)
    (part,), _ = trainer.rollout(0, with_reference=False)
    _, loss, stats = trainer.loss(part, None)
    loss.backward()
    ours = gradients(trainer.policy)
    assert stats["clip_fraction"] == 0.0 and "kl" not in stats
    trainer.policy.zero_grad()

    states = trainer.policy.encode(part.prompts.histories)
    scores = states.vectors @ trainer.policy.item_vectors().T
    open_ = torch.zeros(8, 24, dtype=torch.bool)
    for row in range(8):
        open_[row, part.support.items[row][part.support.mask[row]]] = True
    log_q = torch.log_softmax(scores.masked_fill(~open_, -torch.inf), 1)
    supervised = -log_q[torch.arange(8), part.prompts.targets].mean()
    assert stats["target_loss"].item() == pytest.approx(supervised.item(), abs=1e-5)
    policy_loss = -(part.advantages.unsqueeze(-1) * log_probs_of(trainer, part)).sum() / (8 * 4 * 3)
    (policy_loss + 0.3 * supervised).backward()
    assert_same(ours, gradients(trainer.policy))


@pytest.mark.parametrize("loss_type", ["grpo", "cispo"])
def test_every_update_after_the_first_has_ratios_to_the_policy_that_sampled(
    tiny_policy: SlatePolicy, tiny_data: PreparedData, loss_type: str
) -> None:
    """Three updates on one rollout, against the same ones written out, with bounds that are reached."""
    bounds = {"clip_range": 0.02, "clip_range_high": 0.05, "cispo_max_ratio": 1.03, "loss_type": loss_type}
    rl = rl_params(grpo=BASE | {"num_iterations": 3, "learning_rate": 2e-3} | bounds)
    trainer, plain = (make_trainer("grpo", tiny_policy, tiny_data, rl) for _ in range(2))
    stats = trainer.train_step(0, logged=False)
    assert 0.1 < float(stats["clip_fraction"]) < 0.9

    (part,), _ = plain.rollout(0, with_reference=False)
    old, advantages = log_probs_of(plain, part).detach(), part.advantages.unsqueeze(-1)
    for _ in range(3):
        now = log_probs_of(plain, part)
        ratio = (now - old).exp()
        if loss_type == "cispo":
            followed = advantages * now * torch.where(ratio > 1.03, torch.tensor(1.03), ratio).detach()
        else:
            raised = torch.where(ratio < 0.98, torch.tensor(0.98), ratio)
            bounded = torch.where(ratio > 1.05, torch.tensor(1.05), raised)
            followed = torch.where(ratio * advantages < bounded * advantages, ratio * advantages, bounded * advantages)
        (-followed.sum() / (8 * 4 * 3)).backward()
        plain.update()
    assert_equally_trained(trainer.policy, plain.policy)
    assert trainer.optimizer.state[next(iter(trainer.policy.parameters()))]["step"].item() == 3


@pytest.mark.parametrize("scale", ["none", "group", "batch"])
def test_accumulated_parts_are_one_batch(tiny_policy: SlatePolicy, tiny_data: PreparedData, scale: str) -> None:
    shared = BASE | {"scale_rewards": scale, "num_iterations": 2, "entropy_coef": 0.05, "kl_coef": 0.1}
    ends, numbers = [], []
    for size, accumulated in ((8, 1), (2, 4)):
        rl = rl_params(sft_coef=0.2, grpo=shared | {"batch_size": size, "gradient_accumulation_steps": accumulated})
        trainer = make_trainer("grpo", tiny_policy, tiny_data, rl)
        assert trainer.samples_per_step == 32
        numbers.append({name: float(value) for name, value in trainer.train_step(0, logged=True).items()})
        ends.append(trainer.policy)
    assert numbers[0] == pytest.approx(numbers[1], rel=1e-3, abs=1e-6)
    assert_equally_trained(*ends)


@pytest.mark.parametrize("scale", ["none", "group", "batch"])
def test_advantages_are_scaled_over_the_whole_rollout(
    tiny_policy: SlatePolicy, tiny_data: PreparedData, scale: str
) -> None:
    rl = rl_params(
        reward_type="hit",
        grpo=BASE | {"batch_size": 4, "gradient_accumulation_steps": 2, "scale_rewards": scale},
    )
    trainer = make_trainer("grpo", tiny_policy, tiny_data, rl)
    parts, _ = trainer.rollout(0, with_reference=False)
    hits = [
        [float(target in slate) for slate in group]
        for part in parts
        for group, target in zip(part.slates.tolist(), part.prompts.targets.tolist(), strict=True)
    ]
    everything = np.std([hit for group in hits for hit in group], ddof=1)
    assert everything > 0
    for group, found in zip(hits, torch.cat([part.advantages for part in parts]).tolist(), strict=True):
        divisor = {"none": 1.0, "group": np.std(group, ddof=1) + 1e-4, "batch": everything + 1e-4}[scale]
        assert found == pytest.approx([(hit - sum(group) / 4) / divisor for hit in group], abs=1e-5)


def test_an_entropy_bonus_is_the_mean_entropy_of_the_slots(tiny_policy: SlatePolicy, tiny_data: PreparedData) -> None:
    trainer = make_trainer("grpo", tiny_policy, tiny_data, rl_params(grpo=BASE | {"entropy_coef": 0.5}))
    (part,), _ = trainer.rollout(0, with_reference=False)
    _, loss, stats = trainer.loss(part, None)
    # the surrogate alone is -mean(advantage), and advantages of a group sum to 0
    assert stats["loss"].item() == pytest.approx(0.0, abs=1e-6)
    assert loss.item() == pytest.approx(-0.5 * stats["entropy"].item(), abs=1e-5)
    assert 0 < stats["entropy"].item() < math.log(9)  # nine candidates


def test_learns_and_logs(tiny_policy: SlatePolicy, tiny_data: PreparedData) -> None:
    grpo = GRPOParams(batch_size=16, num_sample_generations=8, learning_rate=1e-2, temperature=1.0, max_steps=40)
    rows: list[dict[str, float]] = []
    make_trainer("grpo", tiny_policy, tiny_data, rl_params(grpo=grpo, eval_every=20), rows).train()
    train = [row for row in rows if "train/reward" in row]
    assert np.mean([row["train/reward"] for row in train[-3:]]) > 1.3 * train[0]["train/reward"]
    expected = {
        "reward", "hit_share", "no_signal_share", "kl", "entropy", "clip_fraction", "grad_norm", "loss",
        "learning_rate", "slates_per_second", "peak_memory_mb",
    }  # fmt: skip
    assert {f"train/{name}" for name in expected} <= train[0].keys()
    assert train[0]["train/kl"] < train[-1]["train/kl"]
    assert rows[-1]["summary"] and rows[-1]["samples"] == 40 * 128
    assert [row["step"] for row in rows if "valid/full/ndcg@3" in row] == [0, 20, 40]


def test_kl_penalty_holds_the_policy_back(tiny_policy: SlatePolicy, tiny_data: PreparedData) -> None:
    last = {}
    for kl_coef in (0.0, 5.0):
        rows: list[dict[str, float]] = []
        grpo = {"batch_size": 16, "num_sample_generations": 8, "learning_rate": 1e-2, "max_steps": 12}
        rl = rl_params(grpo=BASE | grpo | {"kl_coef": kl_coef})
        make_trainer("grpo", tiny_policy, tiny_data, rl, rows).train()
        last[kl_coef] = [row["train/kl"] for row in rows if "train/kl" in row][-1]
    assert last[5.0] < last[0.0] / 2


def test_same_seed_same_weights(tiny_policy: SlatePolicy, tiny_data: PreparedData) -> None:
    ends = []
    for seed in (0, 0, 1):
        trainer = make_trainer("grpo", tiny_policy, tiny_data, rl_params(grpo=BASE | {"seed": seed}))
        trainer.train()
        ends.append(trainer.policy)
    assert same_weights(ends[0], ends[1]) and not same_weights(ends[0], ends[2])


def test_resumed_equals_uninterrupted(tiny_policy: SlatePolicy, tiny_data: PreparedData, tmp_path: Path) -> None:
    rl = rl_params(grpo=BASE | {"num_iterations": 2, "kl_coef": 0.1})
    whole: list[dict[str, float]] = []
    resumed: list[dict[str, float]] = []
    reference = make_trainer("grpo", tiny_policy, tiny_data, rl, whole)
    reference.train()
    broken = make_trainer("grpo", tiny_policy, tiny_data, rl, interrupt_at=6)
    assert raises_interrupted(lambda: broken.train(checkpoints=tmp_path, digest="d"))
    again = make_trainer("grpo", tiny_policy, tiny_data, rl, resumed)
    again.train(checkpoints=tmp_path, digest="d")
    assert same_weights(reference.policy, again.policy)
    assert measured(whole) == measured(resumed)


def test_length_by_steps_epochs_or_budget() -> None:
    rl = rl_params(num_slates=6400)
    base = {"batch_size": 8, "num_sample_generations": 4, "gradient_accumulation_steps": 2}  # 64 slates a step
    assert rl.count_steps(GRPOParams(**base), prompts=100) == 100
    assert rl.count_steps(GRPOParams(**base, num_iterations=3), prompts=100) == 100  # a step is a rollout
    assert rl.count_steps(GRPOParams(**base, num_epochs=2), prompts=160) == 20  # 320 prompts, 16 a step
    assert rl.count_steps(GRPOParams(**base, max_steps=7), prompts=160) == 7
