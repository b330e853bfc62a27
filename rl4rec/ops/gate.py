"""The promotion decision: a pure function of what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rl4rec.evaluation.bootstrap import FloatArray, paired_bootstrap
from rl4rec.params import CompareParams, GateParams


@dataclass(frozen=True)
class Measured:
    """One policy: per-user values of the accuracy metrics, and plain values of the others, by key."""

    users: Mapping[str, FloatArray]  # (u,) each, the same users in the same order for both policies
    values: Mapping[str, float]


@dataclass(frozen=True)
class Check:
    """One condition of the gate. Changes are relative to the champion's value."""

    metric: str
    champion: float
    candidate: float
    change: float
    lower: float  # of the interval; the change itself for metrics without one
    upper: float
    required: float  # what `lower` must exceed
    passed: bool

    def __str__(self) -> str:
        interval = "" if self.lower == self.upper else f" [{self.lower:+.2%}, {self.upper:+.2%}]"
        return (
            f"{self.metric}: {self.champion:.4f} -> {self.candidate:.4f}, {self.change:+.2%}{interval}, "
            f"must be above {self.required:+.2%}: {'yes' if self.passed else 'no'}"
        )


@dataclass(frozen=True)
class Decision:
    """Whether the candidate takes the champion's place, and why."""

    promoted: bool
    reason: str
    checks: tuple[Check, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def decide(candidate: Measured, champion: Measured | None, gate: GateParams, compare: CompareParams) -> Decision:
    """The gate: the metric clearly better, no guard worse than allowed.

    The metric's interval (paired bootstrap over users) must lie above `gate.margin`, each guard's above minus what
    `gate.guards` allows; a metric without per-user values, such as coverage, is judged by its value.

    Args:
        candidate: measured on the same users as the champion.
        champion: None: there is none yet, and any candidate will do.
        gate: metric, margin and guards.
        compare: of the bootstrap.

    Raises:
        ValueError: a metric of the gate was not measured.
    """
    if champion is None:
        return Decision(True, "there is no champion yet")
    first = _check(gate.metric, gate.margin, candidate, champion, compare)
    guards = [_check(name, -allowed, candidate, champion, compare) for name, allowed in gate.guards.items()]
    checks = (first, *guards)
    failed = [check for check in checks if not check.passed]
    if not failed:
        return Decision(True, f"{first.metric} is better and no guard is worse than allowed", checks)
    if first in failed:
        why = f"{first.metric} is not clearly better"
    else:
        why = (
            f"{first.metric} is better, but {' and '.join(check.metric for check in failed)} may be worse than allowed"
        )
    return Decision(False, why, checks)


def _check(metric: str, required: float, candidate: Measured, champion: Measured, compare: CompareParams) -> Check:
    if metric in candidate.users and metric in champion.users:
        ours, theirs = candidate.users[metric], champion.users[metric]
        found = paired_bootstrap(
            ours, theirs, samples=compare.bootstrap_samples, confidence=compare.confidence, seed=compare.seed
        )
        base = float(theirs.mean())
        scale = base if base > 0 else 1.0  # a champion that never hits: absolute differences
        change, lower, upper = found.mean / scale, found.lower / scale, found.upper / scale
        return Check(metric, base, float(ours.mean()), change, lower, upper, required, lower > required)
    if metric in candidate.values and metric in champion.values:
        base, value = champion.values[metric], candidate.values[metric]
        change = (value - base) / base if base > 0 else value - base
        return Check(metric, base, value, change, change, change, required, change > required)
    known = sorted({*candidate.users, *candidate.values} & {*champion.users, *champion.values})
    raise ValueError(f"{metric} was not measured; there is {', '.join(known)}")
