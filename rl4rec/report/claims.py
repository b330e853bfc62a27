"""What practitioners claim about PPO and GRPO, each claim beside what this run measured.

The claims are those the project starts from; every rule that turns a measurement into a verdict is stated in the row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from rl4rec.evaluation.compare import interval_key
from rl4rec.metrics import metric_key
from rl4rec.params import RLParams
from rl4rec.report.logs import FloatArray, TrainingLog

Verdict = Literal["supported", "not supported", "not measured here", "by design"]


@dataclass(frozen=True)
class Claim:
    """One row of the table."""

    topic: str
    ppo_claim: str
    grpo_claim: str
    ppo: str  # measured
    grpo: str  # measured
    verdict: Verdict
    rule: str  # how the verdict follows from the measurement


def claims(
    comparison: dict[str, Any], ppo: TrainingLog | None, grpo: TrainingLog | None, params: RLParams
) -> list[Claim]:
    """All rows. Where a log is missing or lacks a key, the row says so instead of guessing."""
    empty = TrainingLog([], {})
    ppo, grpo = ppo or empty, grpo or empty
    return [
        *_design(params),
        _stability(ppo, grpo, params.k),
        _sample_efficiency(comparison, ppo, grpo, params.k),
        _step_cost(ppo, grpo),
        _convergence(comparison, ppo, grpo),
        _total_time(ppo, grpo),
        _memory(ppo, grpo, params.grpo.num_sample_generations),
        _ndcg(comparison),
        Claim(
            "Recommended when",
            "memory is tight, quick prototypes, exploration, online learning",
            "stability, sample efficiency, production",
            "-",
            "-",
            "not measured here",
            "A judgement; the rows above are what there is to base it on.",
        ),
    ]


def _design(params: RLParams) -> list[Claim]:
    n = params.grpo.num_sample_generations
    whitening = "over the whole batch" if params.ppo.whiten_advantages else "none"
    scaling = {
        "group": "mean and deviation of the prompt's group",
        "batch": "mean of the prompt's group, deviation of the batch",
        "none": "mean of the prompt's group, no scaling",
    }[params.grpo.scale_rewards]
    return [
        Claim(
            "Sampling",
            "one generation a prompt",
            "2-8 generations a prompt",
            "1 slate",
            f"{n} slates",
            "by design",
            "The setting of this run (`rl.grpo.num_sample_generations`).",
        ),
        Claim(
            "Reward normalisation",
            "over the whole batch",
            "within a prompt's group",
            whitening,
            scaling,
            "by design",
            "The settings of this run (`rl.ppo.whiten_advantages`, `rl.grpo.scale_rewards`).",
        ),
    ]


def reward_spread(log: TrainingLog) -> float | None:
    """Spread of the training reward around its linear trend over the second half of training, relative to its mean."""
    steps, reward = log.series("train/reward", over="step")
    steps, reward = steps[len(steps) // 2 :], reward[len(reward) // 2 :]
    if len(reward) < 4 or reward.mean() <= 0 or np.ptp(steps) == 0:
        return None
    trend = np.polynomial.Polynomial.fit(steps, reward, 1)(steps)
    return float(np.sqrt(((reward - trend) ** 2).sum() / (len(reward) - 2)) / reward.mean())


def largest_fall(values: FloatArray) -> float | None:
    """Largest fall of a curve below its best so far, relative to that best."""
    if len(values) < 2:
        return None
    best = np.maximum.accumulate(values)
    return float(((best - values) / np.where(best > 0, best, 1)).max())


def _stability(ppo: TrainingLog, grpo: TrainingLog, k: int) -> Claim:
    spreads = [reward_spread(log) for log in (ppo, grpo)]
    falls = [largest_fall(log.series(metric_key("valid", "full", "ndcg", k), over="step")[1]) for log in (ppo, grpo)]
    cells = [
        f"reward ±{_percent(spread)}, validation falls by up to {_percent(fall)}"
        for spread, fall in zip(spreads, falls, strict=True)
    ]
    rule = (
        "Spread of the logged training reward around its trend (second half), and the largest fall of the validation "
        f"NDCG@{k} below its best so far. Supported when GRPO is lower in both."
    )
    verdict: Verdict = "not measured here"
    if None not in spreads and None not in falls:
        lower = [pair[1] < pair[0] for pair in (spreads, falls) if pair[0] is not None and pair[1] is not None]
        verdict = "supported" if all(lower) else "not supported"
    return Claim("Training stability", "average", "high", cells[0], cells[1], verdict, rule)


def improves(comparison: dict[str, Any], algorithm: str) -> bool:
    """Whether the kept policy is clearly better than its warm start on validation: the paired interval is above 0."""
    pair = comparison.get(f"{algorithm}_vs_sft")
    if pair is None:
        return False
    change = pair[metric_key("valid", "full", "ndcg", comparison["k"])]
    return bool(change[interval_key(comparison["bootstrap"]["confidence"])][0] > 0)


def _sample_efficiency(comparison: dict[str, Any], ppo: TrainingLog, grpo: TrainingLog, k: int) -> Claim:
    curves = [log.series(metric_key("valid", "full", "ndcg", k), over="samples") for log in (ppo, grpo)]
    improved = [improves(comparison, algorithm) for algorithm in ("ppo", "grpo")]
    rule = (
        f"Slates generated until the validation NDCG@{k} first reaches the lower of the two runs' best values. "
        "Supported when GRPO needs fewer, or alone is clearly better than the warm start on validation; "
        "not measured where neither is."
    )
    cells = ["-", "-"]
    verdict: Verdict = "not measured here"
    if all(len(values) for _, values in curves):
        best = [float(values.max()) for _, values in curves]
        cells = [f"best {value:.4f}" for value in best]
        if all(improved):
            needed = [float(samples[values >= min(best)][0]) for samples, values in curves]
            cells = [f"{count:,.0f} slates to {min(best):.4f}" for count in needed]
            verdict = "supported" if needed[1] < needed[0] else "not supported"
        elif any(improved):
            verdict = "supported" if improved[1] else "not supported"
    return Claim("Sample efficiency", "low", "high", cells[0], cells[1], verdict, rule)


def _ratio_claim(
    topic: str, claimed: tuple[str, str], values: tuple[float | None, float | None], unit: str, low: float, high: float,
    rule: str,
) -> Claim:  # fmt: skip
    ppo, grpo = values
    if ppo is None or grpo is None or ppo <= 0:
        cells = [_amount(value, unit) for value in values]
        return Claim(topic, *claimed, cells[0], cells[1], "not measured here", rule)
    ratio = grpo / ppo
    verdict: Verdict = "supported" if low <= ratio <= high else "not supported"
    return Claim(topic, *claimed, _amount(ppo, unit), f"{_amount(grpo, unit)} ({ratio:.2f}x)", verdict, rule)


def _step_cost(ppo: TrainingLog, grpo: TrainingLog) -> Claim:
    cost = [_per(log.total("train_seconds"), log.total("steps")) for log in (ppo, grpo)]
    slates = [_per(log.total("samples"), log.total("steps")) for log in (ppo, grpo)]
    sizes = " and ".join("?" if size is None else f"{size:,.0f}" for size in slates)
    rule = f"Training seconds a step, without validation; a step is {sizes} slates. Supported when the ratio is 2 to 3."
    return _ratio_claim("Cost per step", ("1x", "2-3x"), (cost[0], cost[1]), "s", 2, 3, rule)


def _convergence(comparison: dict[str, Any], ppo: TrainingLog, grpo: TrainingLog) -> Claim:
    rule = (
        "Step of the best validation; the absolute numbers depend on the size of a step. Supported when the ratio is "
        ".3 to .5, as claimed; not measured where a run is not clearly better than the warm start on validation."
    )
    steps = [
        log.total("best_step") if improves(comparison, name) else None for name, log in (("ppo", ppo), ("grpo", grpo))
    ]
    return _ratio_claim("Steps to converge", ("10,000", "3,000-5,000"), (steps[0], steps[1]), "steps", 0.3, 0.5, rule)


def _total_time(ppo: TrainingLog, grpo: TrainingLog) -> Claim:
    values = (ppo.total("train_seconds"), grpo.total("train_seconds"))
    rule = "Training time without validation, at this run's budgets. Supported when the ratio is .6 to 1.5, as claimed."
    return _ratio_claim("Total training time", ("1x", "0.6-1.5x"), values, "s", 0.6, 1.5, rule)


def _memory(ppo: TrainingLog, grpo: TrainingLog, generations: int) -> Claim:
    values = (ppo.total("peak_memory_mb"), grpo.total("peak_memory_mb"))
    rule = (
        f"Peak memory of the process (of the accelerator where there is one). Supported when GRPO needs at least half "
        f"of N = {generations} times as much. Here one forward pass serves all slates of a prompt."
    )
    claimed = ("batch x length", "batch x N x length")
    return _ratio_claim("Memory", claimed, values, "MB", generations / 2, float("inf"), rule)


def _ndcg(comparison: dict[str, Any]) -> Claim:
    n, k = comparison["protocol"]["negatives"]["n"], comparison["k"]
    name, key = metric_key("test", f"sampled{n}", "ndcg", k), interval_key(comparison["bootstrap"]["confidence"])
    rule = (
        f"Ranking against {n} sampled negatives, test: full-catalogue figures on Beauty are ten times smaller, so "
        "only this protocol can be meant. Supported when the interval of the difference is above 0."
    )
    rows = comparison["policies"]
    cells = [f"{rows[policy][name]['mean']:.4f}" if policy in rows else "-" for policy in ("ppo", "grpo")]
    verdict: Verdict = "not measured here"
    pair = comparison.get("grpo_vs_ppo")
    if pair is not None:
        lower, upper = pair[name][key]
        cells[1] += f" ({pair[name]['delta']:+.4f} [{lower:+.4f}, {upper:+.4f}])"
        verdict = "supported" if lower > 0 else "not supported"
    return Claim(f"NDCG@{k}", "0.32", "0.35", cells[0], cells[1], verdict, rule)


def _per(total: float | None, count: float | None) -> float | None:
    return total / count if total is not None and count else None


def _percent(value: float | None) -> str:
    return "?" if value is None else f"{value * 100:.1f} %"


def _amount(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
