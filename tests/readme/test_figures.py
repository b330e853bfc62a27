"""The figures in the README are those of the committed metrics, found without what fills them in."""

import json
import re
from pathlib import Path

from rl4rec.algorithms import get_policy
from rl4rec.data.vocabulary import build_tokenizer
from rl4rec.model.create import create_policy
from rl4rec.settings import load_params

ROOT = Path(__file__).parents[2]
COLUMNS = ("test/full/ndcg@10", "test/full/hit@10", "test/sampled100/ndcg@10", "test/sampled100/hit@10")


def test_results_table_equals_the_committed_metrics() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for policy, label in (
        ("popularity", "Popularity"),
        ("sft", "SFT"),
        ("sft_continued", "SFT continued"),
        ("ppo", "PPO"),
        ("grpo", "GRPO"),
    ):
        row = re.search(rf"^\| {label} \|(.*)\|$", readme, re.MULTILINE)
        assert row is not None, f"README: no row for {label}"
        shown = [cell.strip() for cell in row[1].split("|")]
        found = json.loads((ROOT / f"metrics/{policy}.json").read_text(encoding="utf-8"))["metrics"]
        assert shown == [f"{found[key]:.4f}" for key in COLUMNS], label


def test_differences_equal_the_committed_comparison() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    comparison = json.loads((ROOT / "metrics/comparison.json").read_text(encoding="utf-8"))
    pairs = ("ppo_vs_sft", "grpo_vs_sft", "ppo_vs_sft_continued", "grpo_vs_sft_continued", "grpo_vs_ppo")
    for pair in pairs:
        first, second = (get_policy(name).label for name in pair.split("_vs_"))
        row = re.search(rf"^\| {first} - {second} \|(.*)\|$", readme, re.MULTILINE)
        assert row is not None, f"README: no row for {first} - {second}"
        expected = []
        for key in COLUMNS:
            entry = comparison[pair][key]
            low, high = entry["ci95"]
            expected.append(f"{entry['delta']:+.4f} [{low:+.4f}, {high:+.4f}]")
        assert [cell.strip() for cell in row[1].split("|")] == expected, pair


def test_speed_table_equals_the_committed_benchmarks() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    results = {
        name: json.loads((ROOT / f"benchmarks/results/{name}.json").read_text(encoding="utf-8"))
        for name in ("prepare", "evaluate", "sft", "rl", "serve")
    }
    sft, rl, ranking = (results[name]["ratio"] for name in ("sft", "rl", "evaluate"))
    expected = {
        "SFT step, tokens/s": f"{sft['tokens_per_s_vs_plain']:.1f}x",
        "SFT step, added memory": f"{sft['memory_vs_plain']:.2f}x",
        "SFT, seconds to equal validation NDCG@10": f"{sft['time_to_accuracy_vs_rectools']:.2f}x",
        "exact full ranking, seconds": f"{sft['eval_vs_gemm']:.1f}x",
        "exact full ranking, users/s": f"{ranking['rank_vs_counting']:.1f}x",
        "GRPO step, slates/s": f"{rl['grpo_vs_stock_trl']:.1f}x",
        "PPO step, slates/s": f"{rl['ppo_vs_stock_trl']:.1f}x",
        "PPO step (one slate a prompt), slates/s": f"{rl['ppo_one_slate_vs_stock_trl']:.1f}x",
        "rollouts, slates/s": f"{rl['rollout_slates_per_s_vs_autoregressive']:.1f}x",
        "`rl4rec serve`, one history a request, median latency": (
            f"{results['serve']['ratio']['rl4rec_serve_batch_1_p50_vs_generate']:.2f}x"
        ),
        "`rl4rec serve`, requests/s of eight clients": (
            f"{results['serve']['ratio']['rl4rec_serve_requests_per_s_vs_generate']:.1f}x"
        ),
        "`prepare` of 198,502 rows, rows/s": f"{results['prepare']['beauty_sized']['pandas_over_prepare']:.1f}x",
    }
    for label, figure in expected.items():
        row = re.search(rf"^\| {re.escape(label)} \|.*\| ([^|]*) \|$", readme, re.MULTILINE)
        assert row is not None, f"README: no row for {label}"
        assert row[1] == figure, label


def test_refit_figures_are_those_of_the_committed_metrics() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for policy in ("sft", "sft_continued", "ppo", "grpo"):
        found = json.loads((ROOT / f"metrics/refit/{policy}.json").read_text(encoding="utf-8"))
        assert found["protocol"]["feedback"] == "latest"
        full, sampled = (found["metrics"][f"test/{protocol}/ndcg@10"] for protocol in ("full", "sampled100"))
        assert f"{get_policy(policy).label} {full:.4f} / {sampled:.4f}" in readme


def test_the_size_of_the_policy_is_that_of_the_settings() -> None:
    items = [f"item {row}" for row in range(json.loads((ROOT / "metrics/sft.json").read_text())["protocol"]["items"])]
    policy, _ = create_policy(load_params(ROOT / "params.yaml").policy, items, build_tokenizer(items))
    millions = sum(weight.numel() for weight in policy.parameters()) / 1e6
    assert f"(Beauty: {millions:.1f} million weights)" in (ROOT / "README.md").read_text(encoding="utf-8")
