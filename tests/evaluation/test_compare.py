"""The comparison: hand-made ranks with known means, and refusals to compare what is not comparable."""

import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from rl4rec.errors import UserError
from rl4rec.evaluation.files import load_evaluation, load_slates, save_evaluation
from rl4rec.evaluation.protocols import Evaluation
from rl4rec.params import CompareParams
from rl4rec.report import compare_policies, comparison_table
from rl4rec.report.table import verdict

PARAMS = CompareParams(bootstrap_samples=2000, confidence=0.95, seed=0)


def evaluation(policy: str, ranks: list[int], **changes: Any) -> Evaluation:
    """Everybody has the same rank under every protocol; k = 2: gains 1, 1/log2(3), 0."""
    gain = {0: (1.0, 1.0, 1.0), 1: (1 / math.log2(3), 1.0, 0.5)}
    ndcg, hit, mrr = np.mean([gain.get(rank, (0.0, 0.0, 0.0)) for rank in ranks], axis=0)
    accuracy = {"ndcg@2": round(ndcg, 8), "hit@2": round(hit, 8), "mrr@2": round(mrr, 8)}
    beyond = {"coverage@2": 0.25, "popularity@2": 12.5, "popularity_percentile@2": 0.75}
    measured = {"full": accuracy | beyond, "sampled100": accuracy}
    columns = [f"{fold}/{name}" for fold in ("valid", "test") for name in measured]
    figures = {f"{each}/{key}": value for each in columns for key, value in measured[each.split("/")[1]].items()}
    protocol = {
        "data_hash": "abc",
        "source": "simulated",
        "users": len(ranks),
        "evaluated_users": len(ranks),
        "items": 30,
        "k": [2],
        "tie_rule": "against",
        "masking": "seen",
        "repeated_targets": {"valid": 0, "test": 0},
        "cold_targets": {"valid": 0, "test": 1},
        "tied_targets": {"valid": 0, "test": 2},
        "targets": {"valid": len(ranks), "test": len(ranks)},
        "tied_neighbours": 0.25,
        "without_training": {"users": 0, "items": 3},
        "split": "leave-one-out",
        "order": "by time",
        "odd": ["most of it is odd"],
        "negatives": {"n": 100, "sampler": "uniform", "seed": 1, "digest": "d", "users_with_fewer": 0},
        "versions": {"torch": "2"},
    } | changes
    table = {"user_row": list(range(len(ranks)))} | dict.fromkeys(columns, ranks)
    ranks_table = pl.DataFrame(table, schema=dict.fromkeys(table, pl.Int32))
    return Evaluation(policy, protocol, figures, ranks_table)


def four() -> dict[str, Evaluation]:
    return {
        "popularity": evaluation("popularity", [5] * 40),
        "sft": evaluation("sft", [1] * 20 + [5] * 20),
        "ppo": evaluation("ppo", [0] * 20 + [5] * 20),
        "grpo": evaluation("grpo", [0] * 21 + [5] * 19),
    }


def test_means_differences_and_relative_changes_by_hand() -> None:
    found = compare_policies(four(), PARAMS, k=2)
    half = 0.5 / math.log2(3)  # .31546
    assert found["policies"]["sft"]["test/full/ndcg@2"]["mean"] == pytest.approx(half, abs=1e-7)
    change = found["grpo_vs_sft"]["test/sampled100/ndcg@2"]
    assert change["delta"] == pytest.approx(21 / 40 - half, abs=1e-7)
    assert change["relative"] == pytest.approx((21 / 40 - half) / half, abs=1e-7)
    assert 0 < change["ci95"][0] < change["delta"] < change["ci95"][1]
    assert found["grpo_vs_ppo"]["test/full/hit@2"]["delta"] == pytest.approx(1 / 40)
    assert found["grpo_vs_ppo"]["test/full/hit@2"]["ci95"][0] == 0.0  # one user of forty: often not drawn at all
    assert found["sft_vs_popularity"]["test/full/ndcg@2"]["relative"] is None  # the base is 0
    assert found["policies"]["ppo"]["test/full/coverage@2"] == {"mean": 0.25}
    assert "versions" not in found["protocol"]


def test_pairing_is_what_narrows_the_interval() -> None:
    # PPO is SFT moved up one slot for everyone who is found: the paired spread is half of either policy's own.
    found = compare_policies(four(), PARAMS, k=2)
    paired = found["ppo_vs_sft"]["test/full/ndcg@2"]["ci95"]
    own = found["policies"]["ppo"]["test/full/ndcg@2"]["ci95"]
    assert paired[1] - paired[0] < 0.5 * (own[1] - own[0])


def test_the_confidence_names_the_interval() -> None:
    found = compare_policies(four(), PARAMS.model_copy(update={"confidence": 0.8}), k=2)
    assert "ci80" in found["grpo_vs_sft"]["test/full/ndcg@2"]


def test_absent_policies_are_left_out() -> None:
    some = {name: value for name, value in four().items() if name in ("sft", "grpo")}
    found = compare_policies(some, PARAMS, k=2)
    assert "grpo_vs_sft" in found and "ppo_vs_sft" not in found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data_hash": "other"}, r'grpo.json and metrics/popularity.json .*data_hash is "other".*"abc"'),
        ({"negatives": {"n": 100, "digest": "e"}}, "negatives"),
        ({"tie_rule": "for"}, "tie_rule"),
        ({"k": [2, 3]}, "k is"),
    ],
)
def test_other_data_or_protocol_is_refused(changes: dict[str, Any], message: str) -> None:
    evaluations = four() | {"grpo": evaluation("grpo", [0] * 40, **changes)}
    with pytest.raises(UserError, match=message):
        compare_policies(evaluations, PARAMS, k=2)


def test_other_versions_alone_are_compared() -> None:
    evaluations = four() | {"grpo": evaluation("grpo", [0] * 40, versions={"torch": "3"})}
    assert compare_policies(evaluations, PARAMS, k=2)["versions"]["grpo"] == {"torch": "3"}


def test_ranks_of_another_run_are_refused() -> None:
    stale = replace(four()["grpo"], ranks=four()["ppo"].ranks)
    with pytest.raises(UserError, match=r"ranks/grpo.parquet.*different runs.*evaluate@grpo"):
        compare_policies(four() | {"grpo": stale}, PARAMS, k=2)


def test_other_users_are_refused() -> None:
    ranks = four()["grpo"].ranks.with_columns(pl.col("user_row") + 1)
    with pytest.raises(UserError, match="different users"):
        compare_policies(four() | {"grpo": replace(four()["grpo"], ranks=ranks)}, PARAMS, k=2)


def test_a_cutoff_that_was_not_evaluated_is_refused() -> None:
    with pytest.raises(UserError, match=r"evaluated at k = \[2\], but rl.k is 10"):
        compare_policies(four(), PARAMS, k=10)


def test_a_column_that_is_missing_is_named() -> None:
    ranks = four()["sft"].ranks.drop("test/sampled100")
    with pytest.raises(UserError, match=r"ranks/sft.parquet: no column 'test/sampled100'"):
        compare_policies(four() | {"sft": replace(four()["sft"], ranks=ranks)}, PARAMS, k=2)


def test_the_table_shows_policies_and_differences() -> None:
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(comparison_table(compare_policies(four(), PARAMS, k=2)))
    text = console.export_text()
    assert "Popularity" in text and "GRPO - SFT" in text
    assert "0.3155" in text  # SFT's NDCG@2
    assert "+0.2095" in text and "[+" in text  # .525 - .3155


@pytest.mark.parametrize(("width", "hit_rates"), [(80, 0), (109, 0), (110, 2), (200, 2)])
def test_a_narrow_terminal_gets_whole_intervals_of_ndcg_only(width: int, hit_rates: int) -> None:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(comparison_table(compare_policies(four(), PARAMS, k=2), width=width))
    text = console.export_text()
    assert text.count("HR@2, ") == hit_rates
    assert text.count("[") == text.count("]") == (2 + hit_rates) * 4
    assert all(line.count("[") == line.count("]") for line in text.splitlines())  # none is broken in two


def test_the_table_keeps_its_order_when_read_back_from_json() -> None:
    comparison = compare_policies(four(), PARAMS, k=2)
    comparison["policies"] = dict(sorted(comparison["policies"].items()))  # as in the file
    column = comparison_table(comparison).columns[0]
    assert list(column.cells)[:4] == ["Popularity", "SFT", "PPO", "GRPO"]


def test_verdict_words() -> None:
    assert verdict([0.001, 0.2]) == "better"
    assert verdict([-0.2, -0.001]) == "worse"
    assert verdict([-0.1, 0.1]) == verdict([0.0, 0.1]) == "no clear difference"


def test_saved_evaluations_come_back_and_are_stable(tmp_path: Path) -> None:
    given = four()["sft"]
    metrics, ranks = tmp_path / "metrics" / "sft.json", tmp_path / "ranks" / "sft.parquet"
    save_evaluation(given, metrics, ranks)
    first = metrics.read_bytes()
    back = load_evaluation(metrics, ranks)
    assert (back.policy, back.protocol, back.metrics) == ("sft", given.protocol, given.metrics)
    assert back.ranks.equals(given.ranks)
    assert json.loads(first)["metrics"]["test/full/coverage@2"] == 0.25 and "test/full" in back.ranks.columns
    save_evaluation(back, metrics, ranks)
    assert metrics.read_bytes() == first
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["sft.json", "sft.parquet"]


def test_saved_slates_come_back(tmp_path: Path) -> None:
    slates = pl.DataFrame(
        {"user_row": [0, 1], "items": [[3, 1], []]}, schema={"user_row": pl.Int32, "items": pl.List(pl.Int32)}
    )
    given = replace(four()["sft"], slates=slates)
    paths = [
        tmp_path / kind / f"sft.{end}" for kind, end in (("m", "json"), ("ranks", "parquet"), ("slates", "parquet"))
    ]
    save_evaluation(given, *paths)
    assert load_slates(paths[2], users=slates["user_row"], num_items=4).equals(slates)
    assert load_evaluation(*paths[:2]).slates is None
    assert not list(tmp_path.rglob("*.part"))


def test_missing_and_damaged_files_say_what_to_run(tmp_path: Path) -> None:
    metrics, ranks = tmp_path / "ppo.json", tmp_path / "ppo.parquet"
    with pytest.raises(UserError, match=r"ppo.json: no such file.*dvc repro evaluate@ppo"):
        load_evaluation(metrics, ranks)
    save_evaluation(four()["ppo"], metrics, ranks)
    ranks.unlink()
    with pytest.raises(UserError, match=r"ppo.parquet.*dvc repro evaluate@ppo"):
        load_evaluation(metrics, ranks)
    metrics.write_text('{"policy": ')
    with pytest.raises(UserError, match=r"ppo.json: not JSON"):
        load_evaluation(metrics, ranks)
