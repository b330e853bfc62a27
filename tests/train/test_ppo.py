"""PPO: the shared distribution, the ratio's start, learning, determinism, resuming, KL control."""

from pathlib import Path

import numpy as np
import pytest
import torch

from rl4rec.data.dataset import PreparedData
from rl4rec.metrics import slate_gains
from rl4rec.model.policy import SlatePolicy
from rl4rec.params import PPOParams, RLParams
from rl4rec.train.losses import gae, whiten
from rl4rec.train.ppo import PPOTrainer, Rollout, ppo_steps
from rl4rec.train.seeding import seed_everything
from tests.train.helpers import make_monitor, raises_interrupted, rl_params, same_weights

BASE = {
    "batch_size": 32,
    "mini_batch_size": 16,
    "ppo_epochs": 2,
    "learning_rate": 5e-3,
    "temperature": 1.0,
    "max_steps": 8,
}


@pytest.fixture
def sft_folder(tiny_policy: SlatePolicy, tmp_path: Path) -> Path:
    tiny_policy.save_pretrained(tmp_path / "sft")
    return tmp_path / "sft"


def trainer_for(
    sft: Path,
    data: PreparedData,
    rl: RLParams,
    folder: Path,
    rows: list[dict[str, float]] | None = None,
    interrupt_at: int | None = None,
) -> PPOTrainer:
    seed_everything(0)
    monitor = make_monitor(data, folder / "best", [] if rows is None else rows, interrupt_at=interrupt_at)
    return PPOTrainer(SlatePolicy.from_pretrained(sft), data, rl, monitor, folder / "ck")


@pytest.mark.parametrize("generation", ["slate", "autoregressive"])
@pytest.mark.parametrize(("source", "slates"), [("uniform", 1), ("uniform", 3), ("full", 2)])
def test_old_log_probs_are_those_of_the_sampled_slates(
    sft_folder: Path, tiny_data: PreparedData, tmp_path: Path, source: str, slates: int, generation: str
) -> None:
    rl = rl_params(candidates={"source": source, "negatives": 8}, ppo=BASE | {"num_sample_generations": slates})
    trainer = trainer_for(sft_folder, tiny_data, rl, tmp_path)
    trainer.policy.config.generation = generation
    rollout, _ = trainer.rollout(0, measure_kl=False)
    batch = trainer.prompts.visit(0, 32)
    for row in range(32):
        history = trainer.policy.pad_histories([batch.histories[row]])
        target = torch.tensor([int(batch.targets[row])])
        support = trainer.policy.support(
            history, trainer.rule.candidates(history, target, torch.tensor([int(batch.seeds[row])]))
        )
        own = trainer.policy.log_probs(history, support, rollout.slates[row].unsqueeze(0)).log_probs[0]
        assert torch.allclose(rollout.old_log_probs[row], own, atol=1e-5)
    assert rollout.old_log_probs.shape == rollout.advantages.shape == (32, slates, 3)


def test_with_dropout_the_ratio_still_starts_at_one(sft_folder: Path, tiny_data: PreparedData, tmp_path: Path) -> None:
    trainer = trainer_for(sft_folder, tiny_data, rl_params(dropout=True), tmp_path)
    for module in trainer.policy.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.3
    rollout, _ = trainer.rollout(0, measure_kl=False)
    parts = list(trainer._mini_batches(rollout))
    for number, part in enumerate(parts):
        output, values = trainer._forward(part, 0, number)
        assert output.log_probs is not None
        assert torch.equal(output.log_probs, part.old_log_probs)
        assert torch.equal(values.expand_as(part.old_values), part.old_values)
    other, _ = trainer._forward(parts[0], 1, 0)  # another step draws another mask
    assert other.log_probs is not None and not torch.allclose(other.log_probs, parts[0].old_log_probs)


def test_first_update_is_the_policy_gradient(sft_folder: Path, tiny_data: PreparedData, tmp_path: Path) -> None:
    """At ratio 1 the clipped surrogate's gradient is that of -mean over live slots of advantage x log-probability."""
    trainer = trainer_for(sft_folder, tiny_data, rl_params(ppo=BASE | {"value_coef": 0.0}), tmp_path)
    rollout, _ = trainer.rollout(0, measure_kl=False)
    loss, stats = trainer._loss(rollout, 0, 0)
    loss.backward()
    ours = {n: p.grad.clone() for n, p in trainer.policy.named_parameters() if p.grad is not None}
    assert stats["clip_fraction"] == 0.0
    trainer.policy.zero_grad()
    output, _ = trainer._forward(rollout, 0, 0)
    assert output.log_probs is not None
    live = rollout.live
    (-(rollout.advantages * output.log_probs)[live].mean()).backward()
    for name, parameter in trainer.policy.named_parameters():
        assert torch.allclose(ours[name], parameter.grad, atol=1e-6), name
    assert rollout.advantages[live].mean().item() == pytest.approx(0.0, abs=1e-5)
    assert rollout.advantages[live].var(unbiased=False).item() == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("advantage", ["gae", "bandit"])
def test_learns_and_logs(sft_folder: Path, tiny_data: PreparedData, tmp_path: Path, advantage: str) -> None:
    settings = BASE | {"batch_size": 128, "mini_batch_size": 64, "max_steps": 40, "advantage": advantage}
    rows: list[dict[str, float]] = []
    rl = rl_params(ppo=settings, eval_every=20)
    trainer_for(sft_folder, tiny_data, rl, tmp_path, rows).train(digest="d")
    train = [row for row in rows if "train/reward" in row]
    assert np.mean([row["train/reward"] for row in train[-3:]]) > 1.5 * train[0]["train/reward"]
    expected = {
        "reward", "hit_share", "no_signal_share", "kl", "entropy", "clip_fraction", "grad_norm", "loss", "value_loss",
        "explained_variance", "learning_rate", "slates_per_second", "peak_memory_mb",
    }  # fmt: skip
    assert {f"train/{name}" for name in expected} <= train[0].keys()
    assert max(row["train/explained_variance"] for row in train) > 0.05  # later, returns hardly vary
    assert rows[-1]["summary"] and rows[-1]["samples"] == 40 * 128
    assert [row["step"] for row in rows if "valid/full/ndcg@3" in row] == [0, 20, 40]
    assert (tmp_path / "best/model.safetensors").exists()


def test_several_slates_a_prompt_are_rows_of_one_batch(
    sft_folder: Path, tiny_data: PreparedData, tmp_path: Path
) -> None:
    """The loss over b prompts with g slates is the one over b * g rows, and value and gain are each slate's own."""
    trainer = trainer_for(sft_folder, tiny_data, rl_params(ppo=BASE | {"num_sample_generations": 4}), tmp_path)
    torch.nn.init.normal_(trainer.value_head.weight, std=0.1)
    rollout, stats = trainer.rollout(0, measure_kl=True)
    assert stats["kl"] == pytest.approx(0.0, abs=1e-6)
    assert len(rollout.slates.unique(dim=0)) > 1 and not torch.equal(rollout.slates[:, 0], rollout.slates[:, 1])

    def spread_out(field: torch.Tensor | None) -> torch.Tensor | None:
        if field is None or field.dim() < 3:
            return None if field is None else field.repeat_interleave(4, 0)
        return field.flatten(0, 1).unsqueeze(1)

    flat = Rollout(*map(spread_out, rollout))
    loss, _ = trainer._loss(rollout, 0, 0)
    spread, _ = trainer._loss(flat, 0, 0)
    assert loss.item() == pytest.approx(spread.item(), rel=1e-5)
    gains = slate_gains(flat.slates[:, 0], flat.targets)
    assert torch.equal(gains, flat.gains[:, 0])
    advantages, returns = gae(gains, flat.old_values[:, 0], flat.live[:, 0], gamma=1.0, lam=0.95)
    assert torch.allclose(whiten(advantages, flat.live[:, 0]), flat.advantages[:, 0], atol=1e-5)
    assert torch.allclose(returns, flat.returns[:, 0])


def test_same_seed_same_weights(sft_folder: Path, tiny_data: PreparedData, tmp_path: Path) -> None:
    for name in ("a", "b"):
        trainer_for(sft_folder, tiny_data, rl_params(ppo=BASE), tmp_path / name).train(digest="d")
    assert same_weights(tmp_path / "a/best", tmp_path / "b/best")


def test_resumed_equals_uninterrupted(sft_folder: Path, tiny_data: PreparedData, tmp_path: Path) -> None:
    rl = rl_params(ppo=BASE | {"kl_coef": 0.1, "kl_control": "adaptive"}, dropout=True)
    whole: list[dict[str, float]] = []
    resumed: list[dict[str, float]] = []
    trainer_for(sft_folder, tiny_data, rl, tmp_path / "whole", whole).train(digest="d")
    broken = trainer_for(sft_folder, tiny_data, rl, tmp_path / "cut", interrupt_at=6)
    assert raises_interrupted(lambda: broken.train(digest="d"))
    trainer_for(sft_folder, tiny_data, rl, tmp_path / "cut", resumed).train(digest="d")
    assert same_weights(tmp_path / "whole/best", tmp_path / "cut/best")
    clocks = {"seconds", "train/slates_per_second", "train/peak_memory_mb", "train_seconds", "peak_memory_mb"}
    strip = [[{k: v for k, v in row.items() if k not in clocks} for row in rows] for rows in (whole, resumed)]
    assert strip[0] == strip[1]


def test_kl_penalty_holds_the_policy_back(sft_folder: Path, tiny_data: PreparedData, tmp_path: Path) -> None:
    last = {}
    for kl_coef in (0.0, 3.0):
        rows: list[dict[str, float]] = []
        rl = rl_params(ppo=BASE | {"kl_coef": kl_coef, "max_steps": 16})
        trainer_for(sft_folder, tiny_data, rl, tmp_path / str(kl_coef), rows).train(digest="d")
        last[kl_coef] = [row["train/kl"] for row in rows if "train/kl" in row][-1]
    assert last[3.0] < last[0.0] / 2


def test_accumulated_mini_batches_make_one_update(sft_folder: Path, tiny_data: PreparedData, tmp_path: Path) -> None:
    """Two accumulated micro-batches of 16 (equal live counts aside) move the weights once a pass."""
    rl = rl_params(ppo=BASE | {"batch_size": 16, "gradient_accumulation_steps": 2, "ppo_epochs": 1, "max_steps": 1})
    trainer = trainer_for(sft_folder, tiny_data, rl, tmp_path)
    assert trainer.samples_per_step == 32
    rollout, _ = trainer.rollout(0, measure_kl=False)
    stats = trainer.update(rollout, 0)
    assert trainer.optimizer.optimizer.state[next(iter(trainer.policy.lm.parameters()))]["step"].item() == 1
    assert stats["grad_norm"] > 0


def test_length_by_steps_epochs_or_budget() -> None:
    rl = rl_params(num_slates=6400)
    base = {"batch_size": 32, "mini_batch_size": 16, "gradient_accumulation_steps": 2}  # 64 slates a step
    assert ppo_steps(rl, PPOParams(**base), prompts=100) == 100
    assert ppo_steps(rl, PPOParams(**base, num_epochs=2), prompts=160) == 5
    assert ppo_steps(rl, PPOParams(**base, num_sample_generations=4), prompts=100) == 25
    assert ppo_steps(rl, PPOParams(**base, num_sample_generations=4, num_epochs=2), prompts=160) == 5
    assert ppo_steps(rl, PPOParams(**base, max_steps=7, num_epochs=2), prompts=160) == 7
    assert ppo_steps(rl, PPOParams(**base), prompts=100, world=2) == 50
