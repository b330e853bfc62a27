"""What is odd about data is said once, from five percent on, with its share and what to do."""

import logging
from pathlib import Path

import polars as pl
import pytest

import rl4rec
from rl4rec.data.dataset import PreparedData
from rl4rec.data.oddities import describe_repeats, oddities
from rl4rec.data.prepare import prepare
from rl4rec.evaluation.protocols import evaluate
from rl4rec.model.ranking import PopularityPolicy
from rl4rec.params import DataParams, EvaluateParams, PolicyParams, SFTParams
from rl4rec.report.rows import protocol_rows

USERS = 40


def prepared(folder: Path, repeats: int) -> PreparedData:
    """Users who take four items in a row; so many of them take the first one again at the end."""
    rows = []
    for user in range(USERS):
        items = [(user + step) % 12 for step in range(4)]
        last = items[0] if user < repeats else (user + 4) % 12
        rows += [(f"u{user:02}", f"i{item:02}", time) for time, item in enumerate([*items, last])]
    folder.mkdir(exist_ok=True)
    pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row").write_csv(folder / "rows.csv")
    return prepare(DataParams(source="interactions", path=str(folder / "rows.csv"), k_core=2), folder / "out")


@pytest.mark.parametrize(("repeats", "said"), [(1, False), (2, True), (38, True)])  # of 40: 2.5, 5 and 95 %
def test_repeat_purchases_are_said_by_every_stage(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, repeats: int, said: bool
) -> None:
    sentence = f"{repeats / USERS * 100:.1f} % of the targets are items that the user has taken before"
    caplog.set_level(logging.WARNING)
    data = prepared(tmp_path, repeats)
    assert (sentence in caplog.text) == said
    caplog.clear()
    sft = SFTParams(max_steps=1, batch_size=8)
    small = {"n_embd": 8, "max_history": 4}
    rl4rec.sft(data, PolicyParams(**small), sft)
    assert (sentence in caplog.text) == said
    caplog.clear()
    rl4rec.sft(data, PolicyParams(**small, mask_seen=False), sft)
    assert "taken before" not in caplog.text, "with mask_seen: false such items are proposed"
    params = EvaluateParams(ks=(5, 10), negatives=9)
    found = evaluate("popularity", PopularityPolicy(data.item_counts), data, params)
    assert (sentence in caplog.text) == said
    assert any(sentence in each for each in found.protocol["odd"]) == said
    assert found.protocol["repeated_targets"]["test"] == data.stats["held_out"]["test"]["repeated_targets"] == repeats
    if repeats == 38:
        assert found.metrics["test/full/hit@10"] <= 2 / 40 < found.metrics["test/full_unmasked/hit@10"]


def test_repeats_on_validation_are_said_too(tmp_path: Path) -> None:
    """Checkpoints are chosen there: three of four users take their first item again before the last one."""
    rows = [(f"u{user}", item, n) for user in range(4) for n, item in enumerate("abcad" if user else "abcde")]
    pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row").write_csv(tmp_path / "rows.csv")
    params = DataParams(source="interactions", path=str(tmp_path / "rows.csv"), k_core=1)
    stats = prepare(params, tmp_path / "out").stats
    assert (stats["held_out"]["valid"]["repeated_targets"], stats["held_out"]["test"]["repeated_targets"]) == (3, 0)
    assert any(sentence.startswith("75.0 % of the targets") for sentence in oddities(stats))


def test_the_sentence_names_the_setting_and_the_figure() -> None:
    sentence = describe_repeats(0.5) or ""
    assert "policy.mask_seen: false" in sentence and "test/full_unmasked/ndcg@10" in sentence


def test_ordinary_data_have_nothing_odd(tmp_path: Path) -> None:
    assert oddities(prepared(tmp_path, 0).stats) == []
    assert oddities({}) == []


def test_dropped_rows_are_said(tmp_path: Path) -> None:
    rows = [(f"u{user}", f"i{item}", item) for user in range(6) for item in range(5)]
    rows += [("once", f"x{n}", n) for n in range(3)] + rows[:4]
    pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row").write_csv(tmp_path / "rows.csv")
    params = DataParams(source="interactions", path=str(tmp_path / "rows.csv"), k_core=2)
    found = oddities(prepare(params, tmp_path / "out").stats)
    assert found[:2] == [
        "10.8 % of 37 interactions were dropped as duplicates (data.deduplicate)",
        "8.1 % of 37 interactions were dropped because their user or item has too few interactions: lower data.k_core "
        "to keep more",
    ]


def test_the_card_of_the_report_has_them(tmp_path: Path) -> None:
    from rl4rec.evaluation.compare import compare_policies
    from rl4rec.params import CompareParams, RLParams

    data = prepared(tmp_path, 10)
    found = evaluate("sft", PopularityPolicy(data.item_counts), data, EvaluateParams(ks=(10,), negatives=9))
    comparison = compare_policies({"sft": found}, CompareParams(bootstrap_samples=100), k=10)
    rows = protocol_rows(comparison, RLParams())
    card = {name: text for name, text in rows if name != "Notable"}
    assert [text for name, text in rows if name == "Notable"] == found.protocol["odd"] != []
    assert card["Targets"] == "40 on validation, 40 on test"
    assert card["Targets seen before"] == "0 on validation, 10 on test"
    assert card["Targets at the time of another item"] == "0 on validation, 0 on test"
    assert card["Split"].startswith("leave-one-out") and card["Order"].startswith("by time; at equal times by a hash")
