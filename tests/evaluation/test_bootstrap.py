"""The bootstrap against full enumeration, theory, and a small simulation of its coverage."""

import itertools
import time

import numpy as np
import pytest

from rl4rec.evaluation import bootstrap as statistics
from rl4rec.evaluation.bootstrap import bootstrap_mean, paired_bootstrap


def enumerated_quantile(values: list[float], q: float) -> float:
    """Quantile of the mean over all n^n equally likely resamples."""
    means = sorted(sum(draw) / len(values) for draw in itertools.product(values, repeat=len(values)))
    return means[int(q * len(means))]


@pytest.mark.parametrize("values", [[0.0, 0.0, 1.0], [0.0, 0.3, 0.9, 2.0], [1.0, 1.0, 5.0, -2.0, 0.5]])
@pytest.mark.parametrize("confidence", [0.5, 0.9])
def test_interval_equals_full_enumeration(values: list[float], confidence: float) -> None:
    tail = (1 - confidence) / 2
    found = bootstrap_mean(np.array(values), samples=200_000, confidence=confidence, seed=3)
    near = [enumerated_quantile(values, tail + shift) for shift in (-0.004, 0.004)]
    assert near[0] - 1e-9 <= found.lower <= near[1] + 1e-9
    near = [enumerated_quantile(values, 1 - tail + shift) for shift in (-0.004, 0.004)]
    assert near[0] - 1e-9 <= found.upper <= near[1] + 1e-9
    assert found.mean == pytest.approx(sum(values) / len(values))


def test_paired_differences_not_the_two_spreads() -> None:
    # b varies wildly but a is always b + 1 (or + 2 for half): the paired interval is about 1.5 +- 1.96 * .5 / 10.
    b = np.linspace(-100, 100, 100)
    a = b + np.tile([1.0, 2.0], 50)
    found = paired_bootstrap(a, b, samples=20_000, confidence=0.95, seed=0)
    assert found.mean == pytest.approx(1.5)
    assert (found.lower, found.upper) == pytest.approx((1.402, 1.598), abs=0.012)
    mirrored = paired_bootstrap(b, a, samples=20_000, confidence=0.95, seed=0)
    assert mirrored.mean == -found.mean


def test_a_large_sample_agrees_with_the_normal_interval() -> None:
    # 4,000 users, 1,000 hits: standard error sqrt(.25 * .75 / 4000) = .0068465, times 1.96 = .013419.
    values = np.repeat([1.0, 0.0], [1000, 3000])
    found = bootstrap_mean(values, samples=50_000, confidence=0.95, seed=1)
    assert (found.lower, found.upper) == pytest.approx((0.236581, 0.263419), abs=4e-4)


def test_intervals_cover_the_truth() -> None:
    # Differences of two hit indicators with true mean .1; nominal 90 %, 400 data sets, 3 standard errors: 4.5 points.
    rng = np.random.default_rng(7)
    covered = 0
    for seed in range(400):
        a, b = (rng.random(150) < 0.4).astype(float), (rng.random(150) < 0.3).astype(float)
        found = paired_bootstrap(a, b, samples=1000, confidence=0.9, seed=seed)
        covered += found.lower <= 0.1 <= found.upper
    assert 0.855 <= covered / 400 <= 0.945


def test_blocks_of_resamples_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=50)
    whole = bootstrap_mean(values, samples=1000, confidence=0.95, seed=5)
    monkeypatch.setattr(statistics, "_COUNTS_AT_ONCE", 50 * 300)  # 300 + 300 + 300 + 100
    assert bootstrap_mean(values, samples=1000, confidence=0.95, seed=5) == whole


def test_same_seed_same_interval() -> None:
    values = np.random.default_rng(0).normal(size=3000)
    first = bootstrap_mean(values, samples=2000, confidence=0.95, seed=5)
    assert first == bootstrap_mean(values, samples=2000, confidence=0.95, seed=5)
    assert first != bootstrap_mean(values, samples=2000, confidence=0.95, seed=6)
    assert first.upper - first.lower == pytest.approx(2 * 1.96 / np.sqrt(3000), rel=0.08)


def test_one_constant_value_has_no_spread() -> None:
    found = bootstrap_mean(np.full(10, 0.25), samples=100, confidence=0.95, seed=0)
    assert (found.mean, found.lower, found.upper) == (0.25, 0.25, 0.25)


def test_ten_thousand_resamples_of_beautys_users_take_seconds() -> None:
    rng = np.random.default_rng(0)
    gains = np.array([*(1 / np.log2(np.arange(10) + 2)), 0.0])
    a, b = gains[rng.integers(0, 11, 22_363)], gains[rng.integers(0, 11, 22_363)]
    start = time.perf_counter()
    paired_bootstrap(a, b, samples=10_000, confidence=0.95, seed=0)
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("values", [[], [1.0, np.nan], [np.inf]])
def test_bad_values_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        bootstrap_mean(np.array(values), samples=100, confidence=0.95, seed=0)


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="equal shapes"):
        paired_bootstrap(np.zeros(3), np.zeros(4), samples=100, confidence=0.95, seed=0)
