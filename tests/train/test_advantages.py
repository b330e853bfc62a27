"""Advantages worked by hand."""

import pytest
import torch

from rl4rec.train.losses import bandit, explained_variance, gae, group_advantages, live_slots, whiten


def test_the_episode_ends_at_the_hit() -> None:
    gains = torch.tensor([[0.0, 0.5, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    assert live_slots(gains).tolist() == [[True, True, False], [True, True, True], [True, False, False]]


def test_gae_worked_by_hand() -> None:
    rewards = torch.tensor([[0.0, 0.0, 1.0]])
    values = torch.tensor([[0.5, 0.4, 0.2]])
    live = torch.ones(1, 3, dtype=torch.bool)
    # delta = (0 + .9*.4 - .5, 0 + .9*.2 - .4, 1 - .2) = (-.14, -.22, .8); gamma lam = .45
    # A3 = .8; A2 = -.22 + .45 * .8 = .14; A1 = -.14 + .45 * .14 = -.077
    advantages, returns = gae(rewards, values, live, gamma=0.9, lam=0.5)
    assert advantages[0].tolist() == pytest.approx([-0.077, 0.14, 0.8])
    assert returns[0].tolist() == pytest.approx([0.423, 0.54, 1.0])


def test_gae_stops_at_the_hit() -> None:
    rewards = torch.tensor([[0.0, 0.5, 0.0]])
    values = torch.tensor([[0.3, 0.2, 9.0]])  # the value after the hit must not leak in
    live = torch.tensor([[True, True, False]])
    advantages, returns = gae(rewards, values, live, gamma=1.0, lam=1.0)
    # Monte Carlo: .5 - .3, .5 - .2, nothing
    assert advantages[0].tolist() == pytest.approx([0.2, 0.3, 0.0])
    assert returns[0].tolist() == pytest.approx([0.5, 0.5, 0.0])


def test_bandit_gives_every_live_slot_the_whole_reward_less_the_prompts_value() -> None:
    rewards = torch.tensor([[0.0, 0.5, 0.0]])
    values = torch.tensor([[0.3, 0.2, 9.0]])
    advantages, returns = bandit(rewards, values, torch.tensor([[True, True, False]]))
    assert advantages[0].tolist() == pytest.approx([0.2, 0.2, 0.0])
    assert returns[0].tolist() == pytest.approx([0.5, 0.5, 0.0])


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        ("none", [[0.5, -0.5], [0.25, -0.25]]),
        # deviations of the groups: sqrt(.5) and sqrt(.125)
        ("group", [[0.5 / 0.707207, -0.5 / 0.707207], [0.25 / 0.353653, -0.25 / 0.353653]]),
        # of all four: mean .5, squares .25 + .25 + .0625 + .0625 = .625, a third of it has the root .456435
        ("batch", [[0.5 / 0.456535, -0.5 / 0.456535], [0.25 / 0.456535, -0.25 / 0.456535]]),
    ],
)
def test_advantages_of_a_group(scale: str, expected: list[list[float]]) -> None:
    rewards = torch.tensor([[1.0, 0.0], [0.75, 0.25]])
    found = group_advantages(rewards, scale)  # type: ignore[arg-type]
    assert found.tolist() == [pytest.approx(row, abs=1e-5) for row in expected]


def test_the_batch_may_be_that_of_all_processes() -> None:
    rewards, everywhere = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [4.0, 3.0]])
    # of all four: mean 2, squares 1 + 4 + 4 + 1 = 10, a third of it has the root 1.825742
    found = group_advantages(rewards, "batch", spread=everywhere)
    assert found[0].tolist() == pytest.approx([0.5 / 1.825842, -0.5 / 1.825842], abs=1e-5)
    assert group_advantages(rewards, "none", spread=everywhere).tolist() == [[0.5, -0.5]]


def test_a_group_without_spread_has_no_advantage() -> None:
    for scale in ("none", "group", "batch"):
        assert group_advantages(torch.tensor([[0.5, 0.5, 0.5]]), scale).tolist() == [[0.0, 0.0, 0.0]]  # type: ignore[arg-type]


def test_whitening_ignores_what_is_masked() -> None:
    values = torch.tensor([1.0, 3.0, 100.0, 5.0])
    mask = torch.tensor([True, True, False, True])
    # mean 3, variance 8/3
    expected = [-2 / (8 / 3) ** 0.5, 0.0, 0.0, 2 / (8 / 3) ** 0.5]
    assert whiten(values, mask).tolist() == pytest.approx(expected, abs=1e-5)


def test_explained_variance() -> None:
    returns = torch.tensor([0.0, 1.0, 2.0, 7.0])
    mask = torch.tensor([True, True, True, False])
    assert explained_variance(returns, returns, mask) == pytest.approx(1.0)
    assert explained_variance(torch.ones(4), returns, mask) == pytest.approx(0.0)
    # errors (0, 0, 1): variance 2/9 of 2/3
    assert explained_variance(torch.tensor([0.0, 1.0, 1.0, 0.0]), returns, mask) == pytest.approx(2 / 3)
    assert explained_variance(torch.ones(4), torch.ones(4), mask) == 0.0
