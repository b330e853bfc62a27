"""Both estimators against the exact gradient of the expected NDCG, by enumeration of every slate."""

import itertools
import math

import torch

from rl4rec.metrics import slate_gains
from rl4rec.model.slates import sample_slates, slate_log_probs
from rl4rec.train.losses import gae, live_slots

ITEMS, K, TARGET, SAMPLES = 5, 3, 2, 60_000
SUPPORT = torch.ones(1, ITEMS, dtype=torch.bool)


def exact_gradient(scores: torch.Tensor) -> torch.Tensor:
    """Gradient of sum over slates of p(slate) x NDCG(slate), p from the definition."""
    expected = torch.zeros((), dtype=torch.float64)
    for slate in itertools.permutations(range(ITEMS), K):
        log_p, left = torch.zeros((), dtype=torch.float64), list(range(ITEMS))
        for item in slate:
            log_p = log_p + scores[0, item] - torch.logsumexp(scores[0, left], 0)
            left.remove(item)
        if TARGET in slate:
            expected = expected + log_p.exp() / math.log2(slate.index(TARGET) + 2)
    (gradient,) = torch.autograd.grad(expected, scores)
    return gradient[0]


def estimates(weights_of: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Exact gradient, and one estimate of it a slate, (n, items)."""
    torch.manual_seed(0)
    scores = torch.randn(1, ITEMS, dtype=torch.float64, requires_grad=True)
    slates = sample_slates(scores, SUPPORT, num_slates=SAMPLES, k=K)
    gains = slate_gains(slates[0], torch.tensor(TARGET)).double()  # (n, k)
    match weights_of:
        case "grpo":  # slates in groups of 4, reward less the group's mean; n / (n - 1) undoes the shared baseline
            rewards = gains.sum(-1).view(-1, 4)
            weights = ((rewards - rewards.mean(1, keepdim=True)) * 4 / 3).view(-1, 1).expand(-1, K)
        case _:  # PPO: return to go less a per-slot baseline, up to the hit
            live = live_slots(gains)
            values = torch.tensor([[0.3, 0.2, 0.1]], dtype=torch.float64).expand(SAMPLES, -1)
            weights, _ = gae(gains, values, live, gamma=1.0, lam=1.0)
    # one copy of the scores a slate, so that every slate has its own gradient
    copies = scores.detach().repeat(SAMPLES, 1).requires_grad_()
    log_probs = slate_log_probs(copies, SUPPORT.expand(SAMPLES, -1), slates.transpose(0, 1)).log_probs[:, 0]
    (own,) = torch.autograd.grad((weights * log_probs).sum(), copies)
    return exact_gradient(scores), own


def assert_unbiased(exact: torch.Tensor, own: torch.Tensor) -> None:
    error = own.std(0) / SAMPLES**0.5
    assert (exact.abs() > 10 * error).sum() >= 3  # the test can tell the gradient from nothing
    assert ((own.mean(0) - exact).abs() < 4.5 * error + 1e-6).all()


def test_grpo_estimates_the_gradient_of_expected_ndcg_without_bias() -> None:
    assert_unbiased(*estimates("grpo"))


def test_ppo_estimates_the_gradient_of_expected_ndcg_without_bias() -> None:
    assert_unbiased(*estimates("ppo"))


def test_ending_the_episode_at_the_hit_takes_variance_away() -> None:
    exact, own = estimates("ppo")
    torch.manual_seed(0)
    scores = torch.randn(1, ITEMS, dtype=torch.float64)
    slates = sample_slates(scores, SUPPORT, num_slates=SAMPLES, k=K)
    gains = slate_gains(slates[0], torch.tensor(TARGET)).double()
    values = torch.tensor([[0.3, 0.2, 0.1]], dtype=torch.float64).expand(SAMPLES, -1)
    weights = gains.flip(-1).cumsum(-1).flip(-1) - values  # no end of the episode: the baseline acts after the hit
    copies = scores.repeat(SAMPLES, 1).requires_grad_()
    log_probs = slate_log_probs(copies, SUPPORT.expand(SAMPLES, -1), slates.transpose(0, 1)).log_probs[:, 0]
    (plain,) = torch.autograd.grad((weights * log_probs).sum(), copies)
    assert_unbiased(exact, plain)
    assert own.var(0).sum() < plain.var(0).sum()
