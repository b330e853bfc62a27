"""`metrics/study.json` as the tables of `docs/PPO_vs_GRPO.md`: what was claimed, what was measured, a plain verdict."""

from __future__ import annotations

import statistics
from typing import Any

from rl4rec.algorithms import START, get_policy
from rl4rec.report.table import verdict

COLUMNS = (("test/full/ndcg@10", "NDCG@10, full"), ("test/full/hit@10", "HR@10, full"),
           ("test/sampled100/ndcg@10", "NDCG@10, 1+100"))  # fmt: skip
PAIRS = ("grpo_vs_sft", "ppo_vs_sft", "sft_continued_vs_sft", "grpo_vs_sft_continued", "ppo_vs_sft_continued",
         "grpo_vs_ppo")  # fmt: skip
_SHOWN = ("test/full/ndcg@10", "test/sampled100/ndcg@10", "valid/full/ndcg@10")


def study_tables(study: dict[str, Any]) -> str:
    """All tables in Markdown, from the content of `metrics/study.json`."""
    blocks = []
    for name, setting in sorted(study["settings"].items(), key=lambda entry: (entry[0] != "default", entry[0])):
        seeds = ", ".join(map(str, setting["seeds"]))
        blocks.append(f"### Setting `{name}`\n\nSeeds {seeds}.\n\n{_differences(setting)}\n\n{_runs(setting)}\n")
    if "default" in study["settings"]:
        blocks.append(f"### The claims\n\n{_claims(study)}\n")
    return "\n".join(blocks)


def _differences(setting: dict[str, Any]) -> str:
    rows = ["| test, mean over seeds | " + " | ".join(title for _, title in COLUMNS) + " |", "|---|---:|---:|---:|"]
    for pair in PAIRS:
        first, second = map(get_policy, pair.split("_vs_"))
        cells = []
        for key, _ in COLUMNS:
            found = setting[pair][key]
            low, high = found["ci95"]
            cells.append(f"{found['relative'] * 100:+.1f} %, {found['delta']:+.4f} [{low:+.4f}, {high:+.4f}]")
        rows.append(f"| {first.label} - {second.label} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _runs(setting: dict[str, Any]) -> str:
    rows = [
        "| | test NDCG@10, full | test NDCG@10, 1+100 | validation NDCG@10 | best step | seconds | peak memory, MB |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    start = setting["sft"]
    shown = (f"{start[key]:.4f}" for key in _SHOWN)
    rows.append(f"| {get_policy(START).label} | {' | '.join(shown)} | | | |")
    for algorithm in ("grpo", "ppo", "sft_continued"):
        runs = _of(setting, algorithm)
        cells = [_spread(runs, key, 4) for key in _SHOWN]
        cells += [_spread(runs, key, 0) for key in ("best_step", "train_seconds", "peak_memory_mb")]
        rows.append(f"| {get_policy(algorithm).label} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _of(setting: dict[str, Any], algorithm: str) -> list[dict[str, Any]]:
    return [run for name, run in setting["runs"].items() if name.rpartition("-")[0] == algorithm]


def _spread(runs: list[dict[str, Any]], key: str, digits: int) -> str:
    """Mean with the lowest and the highest."""
    values = [run[key] for run in runs]
    shown = [f"{value:.{digits}f}" for value in (statistics.mean(values), min(values), max(values))]
    return f"{shown[0]} ({shown[1]}-{shown[2]})"


def _claims(study: dict[str, Any]) -> str:
    default = study["settings"]["default"]
    ppo, grpo = _of(default, "ppo"), _of(default, "grpo")

    def mean(runs: list[dict[str, Any]], key: str) -> float:
        return float(statistics.mean(run[key] for run in runs))

    def deviation(runs: list[dict[str, Any]], key: str) -> float:
        return float(statistics.stdev(run[key] for run in runs)) if len(runs) > 1 else 0.0

    gap = default["grpo_vs_ppo"]["test/full/ndcg@10"]
    sampled = default["grpo_vs_ppo"]["test/sampled100/ndcg@10"]
    spread = [deviation(runs, "test/full/ndcg@10") for runs in (ppo, grpo)]
    step = [mean(runs, "train_seconds") / mean(runs, "steps") for runs in (ppo, grpo)]
    total = [mean(runs, "train_seconds") for runs in (ppo, grpo)]
    best = [mean(runs, "best_step") for runs in (ppo, grpo)]
    memory = study["memory_by_generations_mb"]
    few, many = min(memory, key=int), max(memory, key=int)
    times, growth = int(many) / int(few), memory[many] / memory[few]
    rows = [
        ("stability: spread of test NDCG@10 over seeds", "average", "high", f"{spread[0]:.5f}", f"{spread[1]:.5f}",
         "not clear" if len(grpo) < 3 or 0.5 < spread[1] / max(spread[0], 1e-9) < 2
         else "holds" if spread[1] < spread[0] else "does not hold"),
        ("sample efficiency: NDCG@10 at an equal number of slates", "low", "high", "",
         f"{gap['delta']:+.4f} [{gap['ci95'][0]:+.4f}, {gap['ci95'][1]:+.4f}]",
         {"better": "holds", "worse": "does not hold"}.get(verdict(gap["ci95"]), "no clear difference")),
        ("cost of a step", "1x", "2-3x", f"{step[0]:.2f} s", f"{step[1]:.2f} s ({step[1] / step[0]:.2f}x)",
         "holds" if 2 <= step[1] / step[0] <= 3 else "does not hold (equal slates a step)"),
        ("step of the best validation", "10,000", "3,000-5,000", f"{best[0]:.0f}", f"{best[1]:.0f}",
         "holds" if best[1] < 0.5 * best[0] else "does not hold"),
        ("total time", "1x", "0.6-1.5x", f"{total[0]:.0f} s", f"{total[1]:.0f} s ({total[1] / total[0]:.2f}x)",
         "holds" if 0.6 <= total[1] / total[0] <= 1.5 else "does not hold"),
        (f"memory of the process, {few} to {many} generations", "", f"about {times:.0f}x", "", f"{growth:.2f}x",
         "holds" if growth > times / 2 else "does not hold: one forward pass serves all slates"),
        ("NDCG@10 among 1+100", "0.32", "0.35", f"{mean(ppo, 'test/sampled100/ndcg@10'):.4f}",
         f"{mean(grpo, 'test/sampled100/ndcg@10'):.4f}",
         f"GRPO - PPO {sampled['delta']:+.4f} [{sampled['ci95'][0]:+.4f}, {sampled['ci95'][1]:+.4f}]"),
    ]  # fmt: skip
    head = ["| claim | PPO, claimed | GRPO, claimed | PPO | GRPO | verdict |", "|---|---|---|---:|---:|---|"]
    return "\n".join(head + [f"| {' | '.join(row)} |" for row in rows])
