"""The figures in the guides are those of the committed metrics and benchmarks."""

import json
import math
from pathlib import Path

import pytest

from rl4rec.algorithms import evaluated_keys, get_policy
from rl4rec.data.sources.interactions import read_interactions
from rl4rec.data.sources.sequences import read_sequences
from rl4rec.errors import UserError
from rl4rec.params import Columns
from rl4rec.report.study import study_tables
from rl4rec.report.table import verdict
from tests.docs.markdown import glossary, in_general

ROOT = Path(__file__).parents[2]


def test_seeds_in_the_docs_are_those_of_the_committed_study() -> None:
    study = json.loads((ROOT / "benchmarks/results/sft_seeds.json").read_text(encoding="utf-8"))["study"]
    text = (ROOT / "docs/sft.md").read_text(encoding="utf-8")
    for key in ("valid/full/ndcg@10", "test/full/ndcg@10", "test/full/hit@10", "test/sampled100/ndcg@10"):
        low, high = study["spread"][key]
        assert f"| `{key}` | {study['mean'][key]:.4f} | {low:.4f} - {high:.4f} |" in text, key


def test_tables_of_the_comparison_are_those_of_the_committed_study() -> None:
    study = json.loads((ROOT / "metrics/study.json").read_text(encoding="utf-8"))
    assert study_tables(study) in (ROOT / "docs/PPO_vs_GRPO.md").read_text(encoding="utf-8")


def test_serving_figures_are_those_of_the_committed_benchmarks() -> None:
    text = (ROOT / "docs/serving.md").read_text(encoding="utf-8")
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
        f"{ranks['rounding']} next to it by rounding, {ranks['different']} different",
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
    assert (ranks["policy"], ranks["never_shown"]) == ("grpo", 0)
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


def test_protocols_are_explained_with_the_figures_of_the_ranks() -> None:
    page = (ROOT / "docs/protocols.md").read_text(encoding="utf-8")
    found = json.loads((ROOT / "benchmarks/results/sampled_metrics.json").read_text(encoding="utf-8"))
    for rank, expected in found["typical_user"]["expected"].items():
        full = 1 / math.log2(int(rank) + 2) if int(rank) < 10 else 0
        assert f"| {int(rank):,} | {f'{full:.4f}' if full else 0} | {expected:.4f} |" in page, rank
    sft = found["policies"]["sft"]
    for band in sft["bands"]:
        shares = f"{band['full'] or 0:.4f}" if band["full"] else "0"
        assert f"| {100 * band['users']:.1f} % | {shares} | {band['sampled']:.4f} |" in page, band
    assert f"| all | 100 % | {sft['full_ndcg@10']:.4f} | {sft['sampled_ndcg@10']:.4f} |" in page
    for policy, values in found["policies"].items():
        full, expected, measured = (
            values[key] for key in ("full_ndcg@10", "sampled_ndcg@10_expected", "sampled_ndcg@10")
        )
        assert (
            f"| {get_policy(policy).label} | {full:.4f} | {expected:.4f} | {measured:.4f} | {measured / full:.1f} | "
            f"{values['median_full_rank']:,.0f} |"
        ) in page, policy
        assert abs(expected - measured) < 0.001, policy  # the explanation is right, and "worth less than .001"
    assert found["policies"]["ppo"]["full_ndcg@10"] < sft["full_ndcg@10"]  # "orders can flip"
    assert found["policies"]["ppo"]["sampled_ndcg@10"] > sft["sampled_ndcg@10"]
    top, deep = (
        [100 * sum(band["users"] for band in found["policies"][name]["bands"][part]) for name in ("ppo", "sft")]
        for part in (slice(0, 1), slice(1, 3))
    )
    for a, b in (top, deep):
        assert f"{a:.2f} %" in page and f"SFT {b:.2f} %" in page
    deeper = 1 - sft["bands"][0]["sampled"] / sft["sampled_ndcg@10"]
    assert 0.72 < deeper < 0.75  # "nearly three quarters"


def test_sampled_figures_are_of_the_committed_evaluation_up_to_rounding_of_another_machine() -> None:
    found = json.loads((ROOT / "benchmarks/results/sampled_metrics.json").read_text(encoding="utf-8"))
    for policy, values in found["policies"].items():
        test = json.loads((ROOT / f"metrics/{policy}.json").read_text(encoding="utf-8"))["metrics"]
        assert values["full_ndcg@10"] == pytest.approx(test["test/full/ndcg@10"], abs=5e-4), policy
        assert values["sampled_ndcg@10"] == pytest.approx(test["test/sampled100/ndcg@10"], abs=5e-4), policy


def test_messages_quoted_for_bad_data_are_those_of_the_readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs/data.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    head = "user,item,timestamp\n"
    files = {
        "customer,sku,time\na,b,1\n": "clicks.csv",
        head.replace(",", ";") + "a;b;1\n": "clicks.csv",
        head + "a,b,1\na,c,soon\n": "clicks.csv",
        head + "a,b,2024-01-02\na,c,17000000\n": "clicks.csv",
        head + "a,b,1\na,c,\n": "clicks.csv",
        head + "a,b,1\na,c\n": "clicks.csv",
        head: "clicks.xlsx",
        "u1 a b c\nu1 d\n": "s.txt",
        "u1 a b c\nu2\n": "s.txt",
    }
    for content, name in files.items():
        Path(name).write_text(content)
        with pytest.raises(UserError) as refused:
            read_sequences(Path(name)) if name == "s.txt" else read_interactions(Path(name), Columns())
        message = str(refused.value).partition(" Expected `user")[0]
        assert f"`{message}`" in page, message


def test_the_answer_about_ppo_and_grpo_is_that_of_the_committed_study() -> None:
    page = (ROOT / "docs/PPO_vs_GRPO.md").read_text(encoding="utf-8")
    found = json.loads((ROOT / "metrics/study.json").read_text(encoding="utf-8"))["settings"]["default"]
    for name, label in (
        ("grpo", "GRPO"),
        ("ppo", "PPO"),
        ("sft_continued", "the control: the same updates, cross-entropy"),
    ):
        full, sampled = (found[f"{name}_vs_sft"][f"test/{key}/ndcg@10"] for key in ("full", "sampled100"))
        assert verdict(full["ci95"]) == "no clear difference" and verdict(sampled["ci95"]) == "better"
        seconds = [run["train_seconds"] for key, run in found["runs"].items() if key.rpartition("-")[0] == name]
        cells = f"{full['relative']:+.1%}".replace("%", " % (no clear difference)"), f"{sampled['relative']:+.1%}"
        row = f"| {label} | {cells[0]} | {cells[1].replace('%', ' %')} | {sum(seconds) / len(seconds):.0f} |"
        assert row in page, row
    assert verdict(found["grpo_vs_ppo"]["test/full/ndcg@10"]["ci95"]) == "no clear difference"
    assert verdict(found["grpo_vs_ppo"]["test/sampled100/ndcg@10"]["ci95"]) == "no clear difference"


def test_every_key_of_the_committed_metrics_is_in_the_glossary() -> None:
    known = glossary()
    for policy in evaluated_keys():
        found = json.loads((ROOT / f"metrics/{policy}.json").read_text(encoding="utf-8"))
        for key in found["metrics"]:
            _, protocol, figure = key.split("/")
            assert protocol in known and in_general(figure) in known, key


def test_the_table_of_other_processors_begins_with_the_committed_figures() -> None:
    page = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")
    for policy in ("sft", "sft_continued", "ppo", "grpo"):
        test = json.loads((ROOT / f"metrics/{policy}.json").read_text(encoding="utf-8"))["metrics"]
        full, sampled = (f"{test[f'test/{protocol}/ndcg@10']:.4f}"[1:] for protocol in ("full", "sampled100"))
        row = next(line for line in page.splitlines() if line.startswith(f"| {get_policy(policy).label} |"))
        assert [cell.split(", ")[0].strip() for cell in row.split("|")[2:4]] == [full, sampled]
