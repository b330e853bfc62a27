"""Advantages worked by hand."""

import pytest
import torch

from rl4rec.train.losses import bandit, explained_variance, gae, live_slots, whiten


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
