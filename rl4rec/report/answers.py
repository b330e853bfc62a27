"""The questions that a reader comes with, answered from the comparison in plain sentences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rl4rec.evaluation.compare import interval_key
from rl4rec.report.table import NAMES, verdict

_QUESTIONS = (
    ("Is RL better than SFT?", (("grpo", "sft"), ("ppo", "sft"))),
    (
        "Is RL better than more SFT, the control?",
        (("grpo", "sft_continued"), ("ppo", "sft_continued")),
    ),
    ("Is GRPO better than PPO?", (("grpo", "ppo"),)),
)
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
        (f"test.full.ndcg@{k}", "Full catalogue"),
        (f"test.sampled{n}.ndcg@{k}", f"1 target + {n} negatives"),
    )
    found = []
    for text, pairs in _QUESTIONS:
        there = [pair for pair in pairs if f"{pair[0]}_vs_{pair[1]}" in comparison]
        if there:
            found.append(Question(text, [_answer(comparison, there, *metric) for metric in metrics]))
    return found


def _answer(comparison: dict[str, Any], pairs: list[tuple[str, str]], metric: str, protocol: str) -> Answer:
    key = interval_key(comparison["bootstrap"]["confidence"])
    findings, by_verdict = [], dict[str, list[str]]()
    for first, second in pairs:
        row = comparison[f"{first}_vs_{second}"][metric]
        means = [comparison["policies"][policy][metric]["mean"] for policy in (second, first)]
        relative = "" if row["relative"] is None else f" ({row['relative'] * 100:+.1f} %)"
        lower, upper = row[key]
        word = verdict(row[key])
        by_verdict.setdefault(word, []).append(NAMES[first])
        findings.append(
            Finding(
                NAMES[first],
                word,
                f"{means[0]:.4f} → {means[1]:.4f}{relative}",
                f"{row['delta']:+.4f} [{lower:+.4f}, {upper:+.4f}]",
            )
        )
    base = NAMES[pairs[0][1]]
    parts = [
        f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} {_SAYS[word]} {base}"
        for word, names in by_verdict.items()
    ]
    return Answer(protocol, ", and ".join(parts) + ".", findings)
