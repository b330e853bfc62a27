"""The figures in the README are those of the committed metrics."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
COLUMNS = (("full", "ndcg@10"), ("full", "hit@10"), ("sampled100", "ndcg@10"), ("sampled100", "hit@10"))


def test_results_table_equals_the_committed_metrics() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for policy, label in (("popularity", "Popularity"), ("sft", "SFT"), ("ppo", "PPO"), ("grpo", "GRPO")):
        row = re.search(rf"^\| {label} \|(.*)\|$", readme, re.MULTILINE)
        assert row is not None, f"README: no row for {label}"
        shown = [cell.strip() for cell in row[1].split("|")]
        test = json.loads((ROOT / f"metrics/{policy}.json").read_text(encoding="utf-8"))["test"]
        assert shown == [f"{test[protocol][metric]:.4f}" for protocol, metric in COLUMNS], label


def test_differences_equal_the_committed_comparison() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    comparison = json.loads((ROOT / "metrics/comparison.json").read_text(encoding="utf-8"))
    for pair in ("ppo_vs_sft", "grpo_vs_sft", "grpo_vs_ppo"):
        first, second = (name.upper() for name in pair.split("_vs_"))
        row = re.search(rf"^\| {first} - {second} \|(.*)\|$", readme, re.MULTILINE)
        assert row is not None, f"README: no row for {first} - {second}"
        expected = []
        for protocol, metric in COLUMNS:
            entry = comparison[pair][f"test.{protocol}.{metric}"]
            low, high = entry["ci95"]
            expected.append(f"{entry['delta']:+.4f} [{low:+.4f}, {high:+.4f}]")
        assert [cell.strip() for cell in row[1].split("|")] == expected, pair
