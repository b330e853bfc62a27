"""Percentile bootstrap over users (Efron & Tibshirani 1993, chapter 13), for means and paired differences."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_COUNTS_AT_ONCE = 2**22  # bounds the memory of one block of resamples

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A mean and its bootstrap interval.

    Attributes:
        mean: of the values themselves.
        lower: lower end of the percentile interval.
        upper: upper end.
    """

    mean: float
    lower: float
    upper: float


def bootstrap_mean(values: FloatArray, *, samples: int, confidence: float, seed: int) -> Interval:
    """Mean over users with its percentile interval.

    A resample of u users is a multinomial draw of how often each *distinct* value occurs; that has the same
    distribution as drawing users one by one and costs the number of distinct values instead of users. Ranking gains
    take k + 1 values and their differences at most (k + 1)^2, so ten thousand resamples take a fraction of a second.

    Args:
        values: (u,) one value a user, finite.
        samples: resamples.
        confidence: of the two-sided interval, such as .95.
        seed: of the draw.

    Raises:
        ValueError: there are no values, or one is not finite.
    """
    if values.ndim != 1 or len(values) == 0 or not np.isfinite(values).all():
        raise ValueError(f"expected a non-empty vector of finite values, got shape {values.shape}")
    distinct, counts = np.unique(values, return_counts=True)  # (d,), (d,)
    users = len(values)
    rng = np.random.Generator(np.random.PCG64(seed))
    block = max(1, _COUNTS_AT_ONCE // len(distinct))
    means = [
        rng.multinomial(users, counts / users, size=min(block, samples - start)) @ distinct / users
        for start in range(0, samples, block)
    ]
    tail = (1 - confidence) / 2
    lower, upper = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return Interval(float(values.mean()), float(lower), float(upper))


def paired_bootstrap(first: FloatArray, second: FloatArray, *, samples: int, confidence: float, seed: int) -> Interval:
    """Mean difference `first - second` over the same users, with its percentile interval.

    Args:
        first: (u,) values of one policy, a user a row.
        second: (u,) values of the other, the same users in the same order.
        samples: resamples.
        confidence: of the two-sided interval.
        seed: of the draw.

    Returns:
        The mean difference with its interval: without 0 inside, a difference that these users show.

    Raises:
        ValueError: the shapes differ, there are no users, or a value is not finite.
    """
    if first.shape != second.shape:
        raise ValueError(f"paired values need equal shapes, got {first.shape} and {second.shape}")
    return bootstrap_mean(first - second, samples=samples, confidence=confidence, seed=seed)
