"""The losses of PPO and GRPO and the KL terms, worked by hand."""

import math

import pytest
import torch

from rl4rec.model.batch import Support
from rl4rec.train.losses import (
    AdaptiveKL,
    cispo_loss,
    clipped_surrogate,
    clipped_value_loss,
    kl_estimate,
    kl_penalty,
    masked_mean,
    target_cross_entropy,
)

MASK = torch.tensor([[True, True, True, False]])


def test_the_surrogate_clips_only_what_would_go_further() -> None:
    ratio = torch.tensor([[1.5, 0.5, 1.1, 1.5, 0.5]])
    advantages = torch.tensor([[1.0, 1.0, -2.0, -1.0, -1.0]])
    loss, outside = clipped_surrogate(ratio.log(), torch.zeros(1, 5), advantages, low=0.2, high=0.2)
    # min(1.5, 1.2), min(.5, .8) = .5, min(-2.2, -2.2), min(-1.5, -1.2), min(-.5, -.8)
    assert loss[0].tolist() == pytest.approx([-1.2, -0.5, 2.2, 1.5, 0.8], abs=1e-6)
    assert outside.tolist() == [[True, True, False, True, True]]


def test_the_surrogates_range_may_reach_further_up_than_down() -> None:
    ratio = torch.tensor([[1.5, 1.35, 0.5, 0.85]])
    advantages = torch.tensor([[1.0, 1.0, -1.0, -1.0]])
    loss, outside = clipped_surrogate(ratio.log(), torch.zeros(1, 4), advantages, low=0.1, high=0.4)
    # min(1.5, 1.4), 1.35, min(-.5, -.9), min(-.85, -.9)
    assert loss[0].tolist() == pytest.approx([-1.4, -1.35, 0.9, 0.9], abs=1e-6)
    assert outside.tolist() == [[True, False, True, True]]


def test_clipped_ratios_have_no_gradient() -> None:
    log_probs = torch.tensor([[math.log(1.5), 0.0, 0.0, 0.0]], requires_grad=True)
    loss, _ = clipped_surrogate(log_probs, torch.zeros(1, 4), torch.ones(1, 4), low=0.2, high=0.2)
    masked_mean(loss, MASK).backward()
    assert log_probs.grad is not None
    assert log_probs.grad[0].tolist() == pytest.approx([0.0, -1 / 3, -1 / 3, 0.0])


def test_cispo_bounds_the_weight_and_keeps_the_gradient() -> None:
    log_probs = torch.tensor([[0.6, 0.1, 0.2]]).log().requires_grad_()
    old = torch.tensor([[0.2, 0.1, 0.4]]).log()  # ratios 3, 1 and 1/2
    loss, outside = cispo_loss(log_probs, old, torch.tensor([[2.0, -1.0, 4.0]]), max_ratio=2.0)
    # -2 * 2 * log .6, 1 * log .1, -(1/2) * 4 * log .2
    assert loss[0].tolist() == pytest.approx([2.043302, -2.302585, 3.218876], abs=1e-5)
    assert outside.tolist() == [[True, False, False]]
    loss.sum().backward()
    assert log_probs.grad is not None
    assert log_probs.grad[0].tolist() == pytest.approx([-4.0, 1.0, -2.0], abs=1e-5)


def test_an_advantage_of_a_slate_holds_for_all_its_slots() -> None:
    log_probs, advantages = torch.zeros(1, 2, 3), torch.tensor([[[1.0], [-2.0]]])
    loss, _ = clipped_surrogate(log_probs, log_probs, advantages, low=0.2, high=0.2)
    assert loss.tolist() == [[[-1.0, -1.0, -1.0], [2.0, 2.0, 2.0]]]


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


def test_the_penalty_on_samples_of_another_policy_has_the_gradient_of_the_kl_divergence() -> None:
    """Samples of `old`, weighted by the ratio: on average over them the gradient is that of KL(p || q)."""
    logits = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    q = torch.tensor([0.4, 0.4, 0.2], dtype=torch.float64)
    log_p = torch.log_softmax(logits, 0)
    (exact,) = torch.autograd.grad((log_p.exp() * (log_p - q.log())).sum(), logits, retain_graph=True)
    (found,) = torch.autograd.grad((old * kl_penalty(log_p, old.log(), q.log())).sum(), logits, retain_graph=True)
    (plain,) = torch.autograd.grad((old * kl_estimate(log_p, q.log())).sum(), logits)
    assert torch.allclose(found, exact, atol=1e-12)
    assert not torch.allclose(plain, exact, atol=1e-3)


def test_the_supervised_term_is_the_cross_entropy_inside_the_support() -> None:
    scores = torch.tensor([[1.0, 2.0, 5.0, 9.0], [3.0, 1.0, 1.0, 1.0]]).log()
    support = Support(torch.tensor([[4, 6, 7, 8], [0, 2, 5, 9]]), torch.tensor([[True] * 3 + [False], [True] * 4]))
    loss = target_cross_entropy(scores, support, torch.tensor([7, 2]))
    assert loss.item() == pytest.approx(-(math.log(5 / 8) + math.log(1 / 6)) / 2, abs=1e-6)


def test_adaptive_kl_moves_towards_the_target_by_bounded_steps() -> None:
    control = AdaptiveKL(1.0, target=0.1)
    control.update(10.0)  # far above: error clipped at .2
    assert control.value == pytest.approx(1.02)
    control.update(0.09)  # 10% below
    assert control.value == pytest.approx(1.02 * 0.99)
