"""Both trainers, run for real, against the best that any ranking can do, found by enumeration of every slate.

In a shop of eight items the next item is random: item x is followed by one of `NEXT[x]`, with known frequencies. No
ranking can foresee the draw, so the best expected NDCG@3 lies well below 1, and it is the same for every prompt.
"""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rl4rec.data.dataset import PreparedData, Ragged
from rl4rec.data.vocabulary import build_tokenizer
from rl4rec.model.create import create_policy
from rl4rec.model.policy import SlatePolicy
from rl4rec.params import PolicyParams, RLParams
from rl4rec.train.grpo import SlateGRPOTrainer, build_grpo
from rl4rec.train.ppo import PPOTrainer
from rl4rec.train.seeding import seed_everything
from tests.train.helpers import make_monitor, rl_params

ITEMS, K = 8, 3
GAINS = [1 / math.log2(slot + 2) for slot in range(K)]
# Steps round the circle of items and how often each is taken: all items are equally popular.
STEPS = {3: 8, 1: 4, 6: 2, 4: 1}
NEXT = [{(x + step) % ITEMS: count for step, count in STEPS.items()} for x in range(ITEMS)]
PROMPTS = ITEMS * sum(STEPS.values())


def slates_without(seen: int) -> list[tuple[int, ...]]:
    """Every ordered slate that may be shown after `seen`."""
    return list(itertools.permutations([item for item in range(ITEMS) if item != seen], K))


def expected_gain(seen: int, slate: tuple[int, ...]) -> float:
    """NDCG of a slate after `seen`, on average over the next item."""
    total = sum(NEXT[seen].values())
    return sum(gain * NEXT[seen].get(item, 0) / total for gain, item in zip(GAINS, slate, strict=True))


# Prompts are equally frequent, so the mean over the items is the mean over the prompts.
OPTIMUM = sum(max(expected_gain(x, slate) for slate in slates_without(x)) for x in range(ITEMS)) / ITEMS


def scores_of(policy: SlatePolicy) -> Tensor:
    """Scores after each one-item history, (items, items), with gradients."""
    histories = policy.pad_histories([np.array([x]) for x in range(ITEMS)])
    return policy.candidate_scores(policy.prompt_states(histories), policy.support(histories)).double()


def sampled_ndcg(policy: SlatePolicy) -> Tensor:
    """Exact expected NDCG of slates drawn from the policy: the sum over slates of p(slate) x gain, with gradients."""
    scores, expected = scores_of(policy), torch.zeros((), dtype=torch.float64)
    for x in range(ITEMS):
        slates = torch.tensor(slates_without(x))
        left = scores[x].repeat(len(slates), 1)  # scores of what may still be chosen, slate by slate
        left = left.index_fill(1, torch.tensor([x]), -torch.inf)
        log_p = torch.zeros(len(slates), dtype=torch.float64)
        for chosen in slates.T.unsqueeze(-1):
            log_p = log_p + (left.gather(1, chosen) - left.logsumexp(1, keepdim=True)).squeeze(1)
            left = left.scatter(1, chosen, -torch.inf)
        gains = torch.tensor([expected_gain(x, slate) for slate in slates_without(x)], dtype=torch.float64)
        expected = expected + (log_p.exp() * gains).sum() / ITEMS
    return expected


def greedy_ndcg(policy: SlatePolicy) -> float:
    """Exact expected NDCG of the ranking that the policy recommends."""
    slates, _ = policy.recommend([np.array([x]) for x in range(ITEMS)], k=K)
    return sum(expected_gain(x, tuple(slate)) for x, slate in enumerate(slates.tolist())) / ITEMS


@pytest.fixture
def circle(tmp_path: Path) -> PreparedData:
    """A user for each time that `NEXT` counts: item and next item train, two more are held out."""
    rows = []
    for x in range(ITEMS):
        for following, count in NEXT[x].items():
            held_out = [item for item in range(ITEMS) if item not in (x, following)][:2]
            rows += [[x, following, *held_out]] * count
    return PreparedData(
        folder=tmp_path / "prepared",
        users=[f"u{row}" for row in range(len(rows))],
        item_ids=[f"i{item}" for item in range(ITEMS)],
        item_counts=np.bincount([item for row in rows for item in row[:2]], minlength=ITEMS).astype(np.int64),
        sequences=Ragged.from_rows(rows),
        stats={"data_hash": "circle", "users": len(rows), "items": ITEMS},
    )


@pytest.fixture
def tokenizer(circle: PreparedData) -> PreTrainedTokenizerBase:
    return build_tokenizer(circle.item_ids)


@pytest.fixture
def start(circle: PreparedData, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Path:
    """Folder of an untrained policy with random opinions."""
    torch.manual_seed(0)
    params = PolicyParams(n_layer=1, n_embd=16, n_head=1, dropout=0.0, max_history=4, score_temperature=0.25)
    policy, _ = create_policy(params, circle.item_ids, tokenizer)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    policy.save_pretrained(tmp_path / "start")
    return tmp_path / "start"


def settings(**changes: object) -> RLParams:
    """All weights train, on slates from the whole catalogue; the one validation keeps the last policy."""
    values: dict[str, object] = {"candidates": {"source": "full"}, "eval_every": 10_000, "logging_steps": 50}
    return rl_params(**(values | changes))


def ppo_trainer(start: Path, data: PreparedData, folder: Path, **changes: object) -> PPOTrainer:
    seed_everything(0)
    monitor = make_monitor(data, folder / "best", [])
    return PPOTrainer(
        SlatePolicy.from_pretrained(start), data, settings(ppo={"temperature": 1.0, **changes}), monitor, folder / "ck"
    )


def grpo_trainer(
    start: Path, tokenizer: PreTrainedTokenizerBase, data: PreparedData, folder: Path, **changes: object
) -> SlateGRPOTrainer:
    seed_everything(0)
    monitor = make_monitor(data, folder / "best", [])
    return build_grpo(
        start, tokenizer, data, settings(grpo={"temperature": 1.0, **changes}), monitor, checkpoints=folder / "ck"
    )


def assert_climbed(start: Path, end: Path) -> None:
    """From clearly below to the optimum: the ranking all but exactly, the sampled slates closely."""
    before, after = SlatePolicy.from_pretrained(start), SlatePolicy.from_pretrained(end)
    with torch.no_grad():
        low, high = float(sampled_ndcg(before)), float(sampled_ndcg(after))
    assert max(greedy_ndcg(before), low) < 0.6 * OPTIMUM
    assert greedy_ndcg(after) > 0.98 * OPTIMUM  # without its likeliest item a single prompt would lose 6%
    assert high > 0.85 * OPTIMUM  # cosines are bounded, so even the best policy goes on exploring


def test_optimum_ranks_by_conditional_probability() -> None:
    frequencies = sorted(STEPS.values(), reverse=True)
    best = sum(gain * count for gain, count in zip(GAINS, frequencies, strict=False)) / sum(frequencies)
    assert pytest.approx(best) == OPTIMUM


@pytest.mark.parametrize("advantage", ["gae", "bandit"])
def test_ppo_climbs_to_the_optimum(start: Path, circle: PreparedData, tmp_path: Path, advantage: str) -> None:
    ppo = {"batch_size": PROMPTS, "mini_batch_size": PROMPTS // 2, "learning_rate": 5e-3, "max_steps": 150}
    ppo_trainer(start, circle, tmp_path, **ppo, advantage=advantage).train(digest="d")
    assert_climbed(start, tmp_path / "best")


@pytest.mark.parametrize("iterations", [1, 2])
def test_grpo_climbs_to_the_optimum(
    start: Path, circle: PreparedData, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, iterations: int
) -> None:
    grpo = {"batch_size": PROMPTS // 2, "num_sample_generations": 8, "learning_rate": 5e-3, "max_steps": 120}
    trainer = grpo_trainer(start, tokenizer, circle, tmp_path, **grpo, num_iterations=iterations)
    trainer.train()
    assert_climbed(start, tmp_path / "best")


def gradient(policy: SlatePolicy, value: Tensor) -> Tensor:
    """Gradient of `value` with respect to all weights, flat."""
    policy.zero_grad()
    value.backward()
    return torch.cat([p.grad.flatten().double() for p in policy.parameters() if p.grad is not None])


def assert_points_along(exact: Tensor, estimate: Tensor) -> None:
    """The direction of `exact`, and its length."""
    assert exact.norm() > 0.1
    assert torch.cosine_similarity(estimate, exact, dim=0) > 0.95
    assert float(estimate @ exact / (exact @ exact)) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("advantage", ["gae", "bandit"])
def test_ppo_loss_has_the_gradient_of_expected_ndcg(
    start: Path, circle: PreparedData, tmp_path: Path, advantage: str
) -> None:
    """Of the first update, with any values. The loss is a mean over live slots, the NDCG a slate's sum."""
    slates = 1000 * PROMPTS
    ppo = {"batch_size": slates, "mini_batch_size": slates, "ppo_epochs": 1, "max_steps": 1, "advantage": advantage}
    trainer = ppo_trainer(start, circle, tmp_path, **ppo, lam=1.0, value_coef=0.0, whiten_advantages=False)
    with torch.no_grad():
        trainer.model.value_head.bias.copy_(torch.tensor([0.3, 0.2, 0.1]))
    rollout, _ = trainer.rollout(0, measure_kl=False)
    loss, _ = trainer._loss(rollout, 0, 0)
    estimate = gradient(trainer.policy, -loss * rollout.live.sum() / slates)
    assert_points_along(gradient(trainer.policy, sampled_ndcg(trainer.policy)), estimate)


def test_grpo_loss_has_the_gradient_of_expected_ndcg(
    start: Path, circle: PreparedData, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """With dr_grpo, unscaled. The loss is a mean over slots, and a slate is part of its own group's baseline."""
    group, prompts = 4, 64 * PROMPTS
    trainer = grpo_trainer(
        start, tokenizer, circle, tmp_path, batch_size=prompts, num_sample_generations=group, max_steps=1
    )
    policy = trainer.model
    policy.train()
    batch = trainer._generate_and_score_completions([row for row in trainer.train_dataset for _ in range(group)])
    trainer.current_gradient_accumulation_steps = 1
    loss = trainer.compute_loss(policy, batch)
    estimate = gradient(policy, -loss * K * group / (group - 1))
    assert_points_along(gradient(policy, sampled_ndcg(policy)), estimate)
