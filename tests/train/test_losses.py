"""PPO's losses and the KL controllers, worked by hand."""

import math

import pytest
import torch

from rl4rec.train.losses import AdaptiveKL, clipped_policy_loss, clipped_value_loss, kl_estimate

MASK = torch.tensor([[True, True, True, False]])


def test_policy_loss_clips_only_what_would_go_further() -> None:
    ratio = torch.tensor([[1.5, 0.5, 1.1, 3.0]])
    advantages = torch.tensor([[1.0, 1.0, -2.0, 50.0]])
    loss, outside = clipped_policy_loss(ratio.log(), torch.zeros(1, 4), advantages, MASK, clip_range=0.2)
    # min(1.5, 1.2), min(.5, .8) = .5, min(-2.2, -2.2) = -2.2: mean of (1.2, .5, -2.2) is -.5/3
    assert loss.item() == pytest.approx(0.5 / 3, abs=1e-6)
    assert outside.item() == pytest.approx(2 / 3)


def test_clipped_ratios_have_no_gradient() -> None:
    log_probs = torch.tensor([[math.log(1.5), 0.0, 0.0, 0.0]], requires_grad=True)
    loss, _ = clipped_policy_loss(log_probs, torch.zeros(1, 4), torch.ones(1, 4), MASK, clip_range=0.2)
    loss.backward()
    assert log_probs.grad is not None
    assert log_probs.grad[0].tolist() == pytest.approx([0.0, -1 / 3, -1 / 3, 0.0])


def test_value_loss_takes_the_worse_of_clipped_and_plain() -> None:
    values = torch.tensor([[1.0, 0.5, 0.0, 9.0]])
    old = torch.tensor([[0.0, 0.5, 0.0, 0.0]])
    returns = torch.tensor([[1.0, 0.0, 0.5, 0.0]])
    # plain (0, .25, .25); clipped first value .2: (.64, .25, .25)
    clipped = clipped_value_loss(values, old, returns, MASK, clip_range=0.2)
    assert clipped.item() == pytest.approx(0.5 * (0.64 + 0.25 + 0.25) / 3)
    plain = clipped_value_loss(values, old, returns, MASK, clip_range=None)
    assert plain.item() == pytest.approx(0.5 * 0.5 / 3)


def test_kl_estimate_averages_to_the_kl_divergence() -> None:
    p = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    q = torch.tensor([0.4, 0.4, 0.2], dtype=torch.float64)
    expectation = (p * kl_estimate(p.log(), q.log())).sum()
    assert expectation.item() == pytest.approx((p * (p / q).log()).sum().item())
    assert (kl_estimate(p.log(), q.log()) >= 0).all()


def test_adaptive_kl_moves_towards_the_target_by_bounded_steps() -> None:
    control = AdaptiveKL(1.0, target=0.1)
    control.update(10.0)  # far above: error clipped at .2
    assert control.value == pytest.approx(1.02)
    control.update(0.09)  # 10% below
    assert control.value == pytest.approx(1.02 * 0.99)
