"""Figures in the README and the docs are those of the committed metrics, found without what fills them in."""

import json
import re
from pathlib import Path

from rl4rec.report.study import study_tables
from rl4rec.report.table import NAMES

ROOT = Path(__file__).parents[2]
COLUMNS = (("full", "ndcg@10"), ("full", "hit@10"), ("sampled100", "ndcg@10"), ("sampled100", "hit@10"))


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
        test = json.loads((ROOT / f"metrics/{policy}.json").read_text(encoding="utf-8"))["test"]
        assert shown == [f"{test[protocol][metric]:.4f}" for protocol, metric in COLUMNS], label


def test_differences_equal_the_committed_comparison() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    comparison = json.loads((ROOT / "metrics/comparison.json").read_text(encoding="utf-8"))
    pairs = ("ppo_vs_sft", "grpo_vs_sft", "ppo_vs_sft_continued", "grpo_vs_sft_continued", "grpo_vs_ppo")
    for pair in pairs:
        first, second = (NAMES[name] for name in pair.split("_vs_"))
        row = re.search(rf"^\| {first} - {second} \|(.*)\|$", readme, re.MULTILINE)
        assert row is not None, f"README: no row for {first} - {second}"
        expected = []
        for protocol, metric in COLUMNS:
            entry = comparison[pair][f"test.{protocol}.{metric}"]
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
        "`prepare`, 198,502 rows": f"{results['prepare']['beauty_sized']['pandas_over_prepare']:.1f}x",
    }
    for label, figure in expected.items():
        row = re.search(rf"^\| {re.escape(label)} \|.*\| ([^|]*) \|$", readme, re.MULTILINE)
        assert row is not None, f"README: no row for {label}"
        assert row[1] == figure, label


def test_seeds_in_the_docs_are_those_of_the_committed_study() -> None:
    study = json.loads((ROOT / "benchmarks/results/sft_seeds.json").read_text(encoding="utf-8"))["study"]
    text = (ROOT / "docs/sft.md").read_text(encoding="utf-8")
    for key in ("valid/full/ndcg@10", "test/full/ndcg@10", "test/full/hit@10", "test/sampled100/ndcg@10"):
        low, high = study["spread"][key]
        assert f"| `{key}` | {study['mean'][key]:.4f} | {low:.4f} - {high:.4f} |" in text, key


def test_tables_of_the_comparison_are_those_of_the_committed_study() -> None:
    study = json.loads((ROOT / "metrics/study.json").read_text(encoding="utf-8"))
    assert study_tables(study) in (ROOT / "docs/PPO_vs_GRPO.md").read_text(encoding="utf-8")


def test_refit_figures_are_those_of_the_committed_metrics() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for policy in ("sft", "sft_continued", "ppo", "grpo"):
        found = json.loads((ROOT / f"metrics/refit/{policy}.json").read_text(encoding="utf-8"))
        assert found["protocol"]["feedback"] == "latest"
        full, sampled = (found["test"][protocol]["ndcg@10"] for protocol in ("full", "sampled100"))
        assert f"{NAMES[policy]} {full:.4f} / {sampled:.4f}" in readme


def test_serving_figures_are_those_of_the_committed_benchmarks() -> None:
    text = (ROOT / "docs/mlops.md").read_text(encoding="utf-8")
    hostile, serve, ranks = (
        json.loads((ROOT / f"benchmarks/results/{name}.json").read_text(encoding="utf-8"))
        for name in ("hostile", "serve", "served_ranks")
    )
    load, memory = hostile["load"], hostile["memory_mb"]
    rows = [
        f"| hostile requests | {hostile['hostile']['requests']:,} |",
        f"| good ones in between, wrong answers | {hostile['good_between']['requests']}, "
        f"{hostile['good_between']['wrong']} |",
        f"| clients at once, for {load['seconds']:.0f} s | {load['clients']} |",
        f"| their requests, wrong or failed answers | {load['requests']:,}, {load['wrong']} |",
        "| crashes, answers with status 500 and above, tracebacks | "
        + ", ".join(str(hostile[key]) for key in ("crashes", "server_errors", "tracebacks"))
        + " |",
        "| resident memory in MB: warm, half way through the hostile ones, after them, after the clients | "
        + ", ".join(f"{memory[key]:.0f}" for key in ("warm", "half_way", "after_hostile", "after_load"))
        + " |",
        f"{ranks['equal']:,} of {ranks['users']:,} users equal, {ranks['tied']} with a score equal",
        f"{ranks['different']} different",
    ]
    for name, label in (
        ("rl4rec_serve", "`rl4rec serve`"),
        ("mlflow_serve", "`mlflow models serve`, the same model"),
        ("generate", "`mlflow models serve`, generating"),
    ):
        one, many, at_once = (serve["http"][name][part] for part in ("batch_1", "batch_64", "at_once"))
        cells = [f"{batch[key]:.1f}" for batch in (one, many) for key in ("p50_ms", "p99_ms")]
        cells += [f"{part['requests_per_s']:.0f}" for part in (one, many, at_once)]
        rows.append(f"| {label} | {' | '.join(cells)} |")
    assert (ranks["policy"], ranks["rounding"], ranks["never_shown"]) == ("grpo", 0, 0)
    for row in rows:
        assert row in text, row


def test_kills_and_fuzzing_in_the_docs_are_those_of_the_committed_runs() -> None:
    page = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")
    results = ROOT / "benchmarks/results"
    stages = json.loads((results / "chaos.json").read_text(encoding="utf-8"))["stages"]
    totals = [0, 0, 0]
    for stage in stages:
        kills = stage["kills"]
        counts = [len(kills), sum(len(run["moments"]) for run in kills), sum(bool(run["differs"]) for run in kills)]
        assert f"| {stage['stage']} | {counts[0]} | {counts[1]} | {counts[2]} |" in page
        totals = [total + count for total, count in zip(totals, counts, strict=True)]
    assert f"| all | {totals[0]} | {totals[1]} | {totals[2]} |" in page
    assert not any(stage["repeated_differs"] for stage in stages)
    fuzzed = json.loads((results / "fuzz.json").read_text(encoding="utf-8"))["targets"]
    inputs = sum(target["inputs"] for target in fuzzed.values())
    assert f"{inputs:,} inputs" in page and f"over {len(fuzzed)} targets" in page
