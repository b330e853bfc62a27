"""Both trainers, run for real, against the best that any ranking can do, found by enumeration of every slate.

In a shop of eight items the next item is random: item x is followed by one of `NEXT[x]`, with known frequencies. No
ranking can foresee the draw, so the best expected NDCG@3 lies well below 1, and it is the same for every prompt.
"""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rl4rec.data.dataset import PreparedData, Ragged
from rl4rec.data.vocabulary import build_tokenizer
from rl4rec.model.create import create_policy
from rl4rec.model.policy import SlatePolicy
from rl4rec.params import PolicyParams
from tests.train.helpers import make_trainer, rl_params

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
    states = policy.encode([np.array([x]) for x in range(ITEMS)])
    return policy.score_candidates(states, policy.support(states.histories)).double()


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
def start(circle: PreparedData) -> SlatePolicy:
    """An untrained policy with random opinions."""
    torch.manual_seed(0)
    params = PolicyParams(n_layer=1, n_embd=16, n_head=1, dropout=0.0, max_history=4, score_temperature=0.25)
    policy, _ = create_policy(params, circle.item_ids, build_tokenizer(circle.item_ids))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return policy.train(False)


def trainer_for(algorithm: str, start: SlatePolicy, data: PreparedData, **changes: object) -> Any:
    """All weights train, on slates from the whole catalogue; the one validation keeps the last policy."""
    rl = rl_params(
        candidates={"source": "full"},
        eval_every=10_000,
        logging_steps=50,
        **{algorithm: {"temperature": 1.0, **changes}},
    )
    return make_trainer(algorithm, start, data, rl)


def assert_climbed(before: SlatePolicy, after: SlatePolicy) -> None:
    """From clearly below to the optimum: the ranking all but exactly, the sampled slates closely."""
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
def test_ppo_climbs_to_the_optimum(start: SlatePolicy, circle: PreparedData, advantage: str) -> None:
    ppo = {"batch_size": PROMPTS, "mini_batch_size": PROMPTS // 2, "learning_rate": 5e-3, "max_steps": 150}
    trainer = trainer_for("ppo", start, circle, **ppo, advantage=advantage)
    trainer.train()
    assert_climbed(start, trainer.policy)


@pytest.mark.parametrize(("iterations", "loss_type"), [(1, "grpo"), (2, "grpo"), (2, "cispo")])
def test_grpo_climbs_to_the_optimum(start: SlatePolicy, circle: PreparedData, iterations: int, loss_type: str) -> None:
    grpo = {"batch_size": PROMPTS // 2, "num_sample_generations": 8, "learning_rate": 5e-3}
    trainer = trainer_for(
        "grpo", start, circle, **grpo, num_iterations=iterations, loss_type=loss_type, max_steps=120 // iterations
    )
    trainer.train()
    assert_climbed(start, trainer.policy)


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
def test_ppo_loss_has_the_gradient_of_expected_ndcg(start: SlatePolicy, circle: PreparedData, advantage: str) -> None:
    """Of the first update, with any values. The loss is a mean over live slots, the NDCG a slate's sum."""
    slates = 1000 * PROMPTS
    ppo = {"batch_size": slates, "mini_batch_size": slates, "ppo_epochs": 1, "max_steps": 1, "advantage": advantage}
    trainer = trainer_for("ppo", start, circle, **ppo, lam=1.0, value_coef=0.0, whiten_advantages=False)
    with torch.no_grad():
        trainer.value_head.bias.copy_(torch.tensor([0.3, 0.2, 0.1]))
    rollout, _ = trainer.rollout(0, measure_kl=False)
    loss, _ = trainer.loss(rollout)
    estimate = gradient(trainer.policy, -loss * rollout.live.sum() / slates)
    assert_points_along(gradient(trainer.policy, sampled_ndcg(trainer.policy)), estimate)


def test_grpo_loss_has_the_gradient_of_expected_ndcg(start: SlatePolicy, circle: PreparedData) -> None:
    """Unscaled. The loss is a mean over slots, and a slate is part of its own group's baseline."""
    group, prompts = 4, 64 * PROMPTS
    trainer = trainer_for("grpo", start, circle, batch_size=prompts, num_sample_generations=group, max_steps=1)
    (part,), _ = trainer.rollout(0, with_reference=False)
    _, loss, _ = trainer.loss(part, None)
    estimate = gradient(trainer.policy, -loss * K * group / (group - 1))
    assert_points_along(gradient(trainer.policy, sampled_ndcg(trainer.policy)), estimate)
