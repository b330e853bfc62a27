"""The questions that a reader comes with, answered from the comparison in plain sentences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rl4rec.algorithms import Policy, pair_key, pairs
from rl4rec.evaluation.compare import interval_key
from rl4rec.metrics import metric_key
from rl4rec.report.table import verdict

_SAYS = {"better": "better than", "worse": "worse than", "no clear difference": "not clearly different from"}


@dataclass(frozen=True)
class Finding:
    """A policy against the one that it is compared with, under one protocol."""

    policy: str  # "GRPO"
    verdict: str
    change: str  # from the other policy to this one, "0.0582 → 0.0585 (+0.5 %)"
    interval: str  # "+0.0003 [-0.0002, +0.0008]"


@dataclass(frozen=True)
class Answer:
    """A question under one protocol: the sentence, and the numbers that it rests on."""

    protocol: str
    sentence: str
    findings: list[Finding]


@dataclass(frozen=True)
class Question:
    """A question with an answer for each protocol."""

    text: str
    answers: list[Answer]


def questions(comparison: dict[str, Any]) -> list[Question]:
    """Every question of which the comparison has a pair, on test."""
    k, n = comparison["k"], comparison["protocol"]["negatives"]["n"]
    metrics = (
        (metric_key("test", "full", "ndcg", k), "Full catalogue"),
        (metric_key("test", f"sampled{n}", "ndcg", k), f"1 target + {n} negatives"),
    )
    asked: dict[str, list[tuple[Policy, Policy]]] = {}
    for pair in pairs():
        if pair[0].is_rl and pair_key(pair) in comparison:
            asked.setdefault(_question(*pair), []).append(pair)
    return [
        Question(text, [_answer(comparison, compared, *metric) for metric in metrics])
        for text, compared in asked.items()
    ]


def _question(first: Policy, second: Policy) -> str:
    """What the comparison of an RL algorithm answers: with another one a question of their own, else one of all RL."""
    who = "RL" if not second.is_rl else first.label
    return f"Is {who} better than {second.phrase or second.label}?"


def _answer(comparison: dict[str, Any], compared: list[tuple[Policy, Policy]], metric: str, protocol: str) -> Answer:
    key = interval_key(comparison["bootstrap"]["confidence"])
    findings, by_verdict = [], dict[str, list[str]]()
    for first, second in compared:
        row = comparison[pair_key((first, second))][metric]
        means = [comparison["policies"][policy.key][metric]["mean"] for policy in (second, first)]
        relative = "" if row["relative"] is None else f" ({row['relative'] * 100:+.1f} %)"
        lower, upper = row[key]
        word = verdict(row[key])
        by_verdict.setdefault(word, []).append(first.label)
        findings.append(
            Finding(
                first.label,
                word,
                f"{means[0]:.4f} → {means[1]:.4f}{relative}",
                f"{row['delta']:+.4f} [{lower:+.4f}, {upper:+.4f}]",
            )
        )
    base = compared[0][1].label
    parts = [
        f"{_enumerate(names)} {'is' if len(names) == 1 else 'are'} {_SAYS[word]} {base}"
        for word, names in by_verdict.items()
    ]
    return Answer(protocol, ", and ".join(parts) + ".", findings)


def _enumerate(names: list[str]) -> str:
    """Names in a sentence: `A`, `A and B`, `A, B and C`."""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
