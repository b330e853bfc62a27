"""PPO: the shared distribution, the ratio's start, mini-batches, learning, determinism, resuming, KL control."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rl4rec.data.dataset import PreparedData
from rl4rec.metrics import slate_gains
from rl4rec.model.batch import place_parts
from rl4rec.model.policy import SlatePolicy
from rl4rec.params import PPOParams
from rl4rec.train.losses import gae, live_slots, whiten
from rl4rec.train.ppo import Rollout
from tests.train.helpers import make_trainer, measured, raises_interrupted, rl_params, same_weights

BASE = {
    "batch_size": 32,
    "mini_batch_size": 16,
    "ppo_epochs": 2,
    "learning_rate": 5e-3,
    "temperature": 1.0,
    "max_steps": 8,
}


@pytest.mark.parametrize("generation", ["slate", "autoregressive"])
@pytest.mark.parametrize(("source", "slates"), [("uniform", 1), ("uniform", 3), ("full", 2)])
def test_old_log_probs_are_those_of_the_sampled_slates(
    tiny_policy: SlatePolicy, tiny_data: PreparedData, source: str, slates: int, generation: str
) -> None:
    rl = rl_params(candidates={"source": source, "negatives": 8}, ppo=BASE | {"num_sample_generations": slates})
    tiny_policy.config.generation = generation
    trainer = make_trainer("ppo", tiny_policy, tiny_data, rl)
    rollout, _ = trainer.rollout(0, measure_kl=False)
    batch, policy = trainer.prompts.visit(0, 32), trainer.policy
    for row in range(32):
        history = policy.pad_histories([batch.histories[row]])
        target, seed = torch.tensor([int(batch.targets[row])]), torch.tensor([int(batch.seeds[row])])
        support = policy.support(history, trainer.candidates.candidates(history, target, seed))
        own, _ = policy.log_probs(policy.encode(history), support, rollout.slates[row].unsqueeze(0))
        assert torch.allclose(rollout.old_log_probs[row], own[0], atol=1e-5)
    assert rollout.old_log_probs.shape == rollout.advantages.shape == (32, slates, 3)


def test_slates_are_drawn_and_judged_at_the_temperature(tiny_policy: SlatePolicy, tiny_data: PreparedData) -> None:
    """All but frozen, every slate is the ranking, and its probability 1."""
    rl = rl_params(candidates={"source": "full"}, ppo=BASE | {"temperature": 1e-6, "num_sample_generations": 2})
    trainer = make_trainer("ppo", tiny_policy, tiny_data, rl)
    rollout, _ = trainer.rollout(0, measure_kl=False)
    histories = trainer.prompts.visit(0, 32).histories
    ranked, _ = tiny_policy.recommend(histories, k=3)
    assert torch.equal(rollout.slates, ranked.unsqueeze(1).expand(-1, 2, -1))
    assert rollout.old_log_probs.min() > -0.1
    _, stats = trainer.loss(rollout)
    assert stats["clip_fraction"] == 0.0 and stats["entropy"] < 0.1


def test_the_ratio_starts_at_one_although_the_policy_has_dropout(
    tiny_policy: SlatePolicy, tiny_data: PreparedData
) -> None:
    for module in tiny_policy.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.3
    trainer = make_trainer("ppo", tiny_policy.train(), tiny_data, rl_params())
    trainer.value_head.bias.data.fill_(0.2)
    rollout, _ = trainer.rollout(0, measure_kl=False)
    for rows in trainer.mini_batches(0, 0):
        part = rollout[rows]
        states = trainer.policy.encode(part.prompts.histories)
        again, _ = trainer.policy.log_probs(states, part.support, part.slates)
        assert again.requires_grad
        assert torch.allclose(again, part.old_log_probs, atol=1e-6)
        values = trainer.value_head(states.vectors).unsqueeze(1).expand_as(part.old_values)
        assert torch.allclose(values, part.old_values, atol=1e-6)


def test_first_update_is_the_policy_gradient(tiny_policy: SlatePolicy, tiny_data: PreparedData) -> None:
    """At ratio 1 the clipped surrogate's gradient is that of -mean over live slots of advantage x log-probability."""
    trainer = make_trainer("ppo", tiny_policy, tiny_data, rl_params(ppo=BASE | {"value_coef": 0.0}))
    rollout, _ = trainer.rollout(0, measure_kl=False)
    loss, stats = trainer.loss(rollout)
    loss.backward()
    ours = {n: p.grad.clone() for n, p in trainer.policy.named_parameters() if p.grad is not None}
    assert stats["clip_fraction"] == 0.0
    trainer.policy.zero_grad()
    states = trainer.policy.encode(rollout.prompts.histories)
    log_probs, _ = trainer.policy.log_probs(states, rollout.support, rollout.slates)
    live = rollout.live
    (-(rollout.advantages * log_probs)[live].mean()).backward()
    for name, parameter in trainer.policy.named_parameters():
        assert torch.allclose(ours[name], parameter.grad, atol=1e-6), name
    assert rollout.advantages[live].mean().item() == pytest.approx(0.0, abs=1e-5)
    assert rollout.advantages[live].var(unbiased=False).item() == pytest.approx(1.0, abs=1e-3)


def test_supervised_term_is_the_mean_cross_entropy_of_the_targets(
    tiny_policy: SlatePolicy, tiny_data: PreparedData
) -> None:
    trainer = make_trainer("ppo", tiny_policy, tiny_data, rl_params(sft_coef=0.3, candidates={"source": "full"}))
    rollout, _ = trainer.rollout(0, measure_kl=False)
    (rows,) = place_parts([torch.arange(3, 19)], trainer.accelerator.device)
    with_term, stats = trainer.loss(rollout[rows])
    trainer.rl = rl_params(sft_coef=0.0)
    without, _ = trainer.loss(rollout[rows])
    prompts = trainer.prompts.visit(3, 16)
    scores = tiny_policy.scores(prompts.histories)
    for row, history in enumerate(prompts.histories):
        scores[row, torch.from_numpy(history)] = -torch.inf
    expected = -torch.log_softmax(scores, 1)[torch.arange(16), torch.from_numpy(prompts.targets)].mean().item()
    assert stats["target_loss"].item() == pytest.approx(expected, abs=1e-4)
    assert (with_term - without).item() == pytest.approx(0.3 * expected, abs=1e-4)


@pytest.mark.parametrize("advantage", ["gae", "bandit"])
def test_learns_and_logs(tiny_policy: SlatePolicy, tiny_data: PreparedData, advantage: str) -> None:
    settings = BASE | {"batch_size": 128, "mini_batch_size": 64, "max_steps": 40, "advantage": advantage}
    rows: list[dict[str, float]] = []
    rl = rl_params(ppo=settings, eval_every=20)
    make_trainer("ppo", tiny_policy, tiny_data, rl, rows).train()
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


def test_several_slates_a_prompt_are_rows_of_one_batch(tiny_policy: SlatePolicy, tiny_data: PreparedData) -> None:
    """The loss over b prompts with g slates is the one over b * g rows, and value and gain are each slate's own."""
    trainer = make_trainer("ppo", tiny_policy, tiny_data, rl_params(ppo=BASE | {"num_sample_generations": 4}))
    torch.nn.init.normal_(trainer.value_head.weight, std=0.1)
    rollout, stats = trainer.rollout(0, measure_kl=True)
    assert stats["kl"].item() == pytest.approx(0.0, abs=1e-6)
    assert len(rollout.slates.unique(dim=0)) > 1 and not torch.equal(rollout.slates[:, 0], rollout.slates[:, 1])

    rows = torch.arange(32).repeat_interleave(4)
    tensors = {name: field for name, field in vars(rollout).items() if isinstance(field, torch.Tensor)}
    spread_out = {name: field.flatten(0, 1).unsqueeze(1) for name, field in tensors.items()}
    flat = Rollout(rollout.prompts[rows], rollout.support[rows], **spread_out)
    loss, _ = trainer.loss(rollout)
    spread, _ = trainer.loss(flat)
    assert loss.item() == pytest.approx(spread.item(), rel=1e-5)
    gains = slate_gains(flat.slates[:, 0], flat.prompts.targets)
    assert torch.equal(live_slots(gains), flat.live[:, 0])
    advantages, returns = gae(gains, flat.old_values[:, 0], flat.live[:, 0], gamma=1.0, lam=0.95)
    assert torch.allclose(whiten(advantages, flat.live[:, 0]), flat.advantages[:, 0], atol=1e-5)
    assert torch.allclose(returns, flat.returns[:, 0])


def test_same_seed_same_weights(tiny_policy: SlatePolicy, tiny_data: PreparedData) -> None:
    ends = []
    for seed in (0, 0, 1):
        trainer = make_trainer("ppo", tiny_policy, tiny_data, rl_params(ppo=BASE | {"seed": seed}))
        trainer.train()
        ends.append(trainer.policy)
    assert same_weights(ends[0], ends[1]) and not same_weights(ends[0], ends[2])


def test_resumed_equals_uninterrupted(tiny_policy: SlatePolicy, tiny_data: PreparedData, tmp_path: Path) -> None:
    rl = rl_params(ppo=BASE | {"kl_coef": 0.1, "kl_control": "adaptive"})
    whole: list[dict[str, float]] = []
    resumed: list[dict[str, float]] = []
    reference = make_trainer("ppo", tiny_policy, tiny_data, rl, whole)
    reference.train()
    broken = make_trainer("ppo", tiny_policy, tiny_data, rl, interrupt_at=6)
    assert raises_interrupted(lambda: broken.train(checkpoints=tmp_path, digest="d"))
    again = make_trainer("ppo", tiny_policy, tiny_data, rl, resumed)
    again.train(checkpoints=tmp_path, digest="d")
    assert same_weights(reference.policy, again.policy)
    assert reference.kl_control.value == again.kl_control.value != 0.1
    assert measured(whole) == measured(resumed)


def test_kl_penalty_holds_the_policy_back(tiny_policy: SlatePolicy, tiny_data: PreparedData) -> None:
    last = {}
    for kl_coef in (0.0, 3.0):
        rows: list[dict[str, float]] = []
        rl = rl_params(ppo=BASE | {"kl_coef": kl_coef, "max_steps": 16})
        make_trainer("ppo", tiny_policy, tiny_data, rl, rows).train()
        last[kl_coef] = [row["train/kl"] for row in rows if "train/kl" in row][-1]
    assert last[3.0] < last[0.0] / 2


def test_accumulated_mini_batches_make_one_update(tiny_policy: SlatePolicy, tiny_data: PreparedData) -> None:
    """Two accumulated micro-batches of 16 (equal live counts aside) move the weights once a pass."""
    rl = rl_params(ppo=BASE | {"batch_size": 16, "gradient_accumulation_steps": 2, "ppo_epochs": 1, "max_steps": 1})
    trainer = make_trainer("ppo", tiny_policy, tiny_data, rl)
    assert trainer.samples_per_step == 32
    rollout, _ = trainer.rollout(0, measure_kl=False)
    stats = trainer.update_on(rollout, 0)
    assert trainer.optimizer.state[next(iter(trainer.policy.lm.parameters()))]["step"].item() == 1
    assert stats["grad_norm"] > 0


def test_a_pass_visits_every_prompt_once_in_an_order_of_its_own(
    tiny_policy: SlatePolicy, tiny_data: PreparedData
) -> None:
    trainer = make_trainer("ppo", tiny_policy, tiny_data, rl_params(ppo=BASE))

    def order(step: int, epoch: int) -> list[int]:
        return [row for rows in trainer.mini_batches(step, epoch) for row in rows.host.tolist()]

    orders = [order(step, epoch) for step, epoch in ((0, 0), (0, 1), (1, 0))]
    assert all(sorted(order) == list(range(32)) and order != list(range(32)) for order in orders)
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert [len(rows.host) for rows in trainer.mini_batches(0, 0)] == [16, 16]
    assert order(0, 1) == orders[1]  # and always the same


def test_processes_shuffle_their_prompts_together(tiny_policy: SlatePolicy, tiny_data: PreparedData) -> None:
    """Their mini-batches are those of one process; process r has every other prompt from r on."""
    trainer = make_trainer("ppo", tiny_policy, tiny_data, rl_params(ppo=BASE))
    alone, parts = trainer.mini_batches(3, 1), []
    for rank in (0, 1):
        trainer.accelerator = SimpleNamespace(process_index=rank, num_processes=2, device=torch.device("cpu"))
        parts.append([[2 * row + rank for row in rows.host.tolist()] for rows in trainer.mini_batches(3, 1)])
    for whole, first, second in zip(alone, *parts, strict=True):
        assert sorted(whole.host.tolist()) == sorted(first + second)
    assert [len(rows) for rows in parts[0]] != [8, 8]  # they have different numbers of them


def test_length_by_steps_epochs_or_budget() -> None:
    rl = rl_params(num_slates=6400)
    base = {"batch_size": 32, "mini_batch_size": 16, "gradient_accumulation_steps": 2}  # 64 slates a step
    assert rl.count_steps(PPOParams(**base), prompts=100) == 100
    assert rl.count_steps(PPOParams(**base, num_epochs=2), prompts=160) == 5
    assert rl.count_steps(PPOParams(**base, num_sample_generations=4), prompts=100) == 25
    assert rl.count_steps(PPOParams(**base, num_sample_generations=4, num_epochs=2), prompts=160) == 5
    assert rl.count_steps(PPOParams(**base, max_steps=7), prompts=160) == 7
