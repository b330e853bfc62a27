"""The examples: who is chosen, and what is said about their slates, on a data set small enough to work by hand."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from rl4rec.data.dataset import PreparedData, Ragged
from rl4rec.errors import UserError
from rl4rec.evaluation.protocols import Evaluation
from rl4rec.report.examples import Example, choose_users, find_examples

ITEMS = ["a", "b", "c", "d", "e|<b>"]
RANKS_OF = {"user_row": pl.Int32, "test/full": pl.Int32}
SLATES = {"user_row": pl.Int32, "items": pl.List(pl.Int32)}


def data() -> PreparedData:
    """Three users; the second has too few items to be evaluated."""
    sequences = [[0, 1, 2], [3, 4], [1, 0, 3, 4]]
    return PreparedData(
        Path("data/prepared"),
        ["u0", "u1", "u2"],
        ITEMS,
        np.array([3, 2, 1, 1, 0]),
        Ragged.from_rows(sequences),
        {"data_hash": "abc"},
    )


def evaluations(**ranks: list[int]) -> dict[str, Evaluation]:
    """Ranks on test of the users of rows 0 and 2, whose targets are items 2 and 4."""
    return {
        policy: Evaluation(
            policy,
            {"data_hash": "abc"},
            {},
            pl.DataFrame({"user_row": [0, 2], "test/full": values}, schema=RANKS_OF),
        )
        for policy, values in ranks.items()
    }


def slates(**lists: list[list[int]]) -> dict[str, pl.DataFrame]:
    return {name: pl.DataFrame({"user_row": [0, 2], "items": rows}, schema=SLATES) for name, rows in lists.items()}


RANKS = {"sft": [1, 0], "ppo": [0, 0], "grpo": [0, 2]}
LISTS = {"sft": [[3, 2], [4, 2]], "ppo": [[2, 3], [4, 2]], "grpo": [[2, 4], [2, 0]]}


def found() -> list[Example]:
    examples, notes = find_examples(evaluations(**RANKS), slates(**LISTS), data(), k=2, seed=0)
    assert notes == []
    return examples


def test_those_who_rose_and_fell_most_are_chosen_in_equal_numbers() -> None:
    change = np.array([0.0, 0.5, -0.1, 0.0, 0.9, 0.5, 0.0, -0.3, -0.1, 0.0])
    chosen = choose_users(change, seed=0)
    assert chosen[:4] == [(4, "Rose most"), (1, "Rose most"), (7, "Fell most"), (2, "Fell most")]
    drawn = [place for place, why in chosen[4:] if why == "Drawn at random"]
    assert len(drawn) == 2 and set(drawn) <= {0, 3, 5, 6, 8, 9}
    assert chosen == choose_users(change, seed=0)
    assert {tuple(choose_users(change, seed=seed)[4:]) for seed in range(8)} != {tuple(chosen[4:])}


def test_where_one_fell_only_one_who_rose_is_shown() -> None:
    reasons = [why for _, why in choose_users(np.array([0.5, 0.6, 0.7, -0.1, 0.0]), seed=0)]
    assert reasons == ["Rose most", "Fell most", "Drawn at random", "Drawn at random"]


def test_where_nobody_moved_and_users_are_few_all_are_drawn() -> None:
    assert choose_users(np.zeros(1), seed=0) == [(0, "Drawn at random")]


def test_an_example_worked_by_hand() -> None:
    rose, fell = found()
    assert (rose.why, rose.user_row, rose.history_length) == ("Rose most", 0, 2)
    assert [item.name for item in rose.history] == ["a", "b"]
    assert (rose.target.name, rose.target.count, rose.target.target) == ("c", 1, True)
    sft, ppo, grpo = rose.slates
    assert [(item.name, item.target, item.change) for item in sft.items] == [("d", False, ""), ("c", True, "")]
    assert [(item.name, item.target, item.change) for item in ppo.items] == [
        ("c", True, "up 1"),
        ("d", False, "down 1"),
    ]
    assert [(item.name, item.change) for item in grpo.items] == [("c", "up 1"), ("e|<b>", "new")]
    assert [item.name for item in grpo.left] == ["d"] and ppo.left == sft.left == []
    assert [slate.rank for slate in rose.slates] == [2, 1, 1]
    assert [slate.ndcg for slate in rose.slates] == pytest.approx([0.63092975, 1.0, 1.0])
    assert (fell.why, fell.user_row, fell.history_length) == ("Fell most", 2, 3)
    assert [(slate.rank, round(slate.ndcg, 4)) for slate in fell.slates] == [(1, 1.0), (1, 1.0), (3, 0.0)]


def test_a_slate_is_cut_at_k() -> None:
    examples, _ = find_examples(evaluations(**RANKS), slates(**LISTS), data(), k=1, seed=0)
    assert {len(slate.items) for example in examples for slate in example.slates} == {1}


def test_a_missing_file_of_slates_is_a_note() -> None:
    lists = {policy: rows for policy, rows in LISTS.items() if policy != "ppo"}
    examples, notes = find_examples(evaluations(**RANKS), slates(**lists), data(), k=2, seed=0)
    assert examples == [] and notes == ["No examples: no `slates/ppo.parquet`. Run `dvc repro evaluate@ppo`."]


@pytest.mark.parametrize("rows", [[[3, 2], [2, 4]], [[3, 1], [4, 2]]], ids=["too far down", "not there"])
def test_slates_of_another_run_are_refused(rows: list[list[int]]) -> None:
    # SFT ranks the target of the first user second and that of the second user first.
    with pytest.raises(
        UserError, match=r"slates/sft.parquet and ranks/sft.parquet are of different runs.*evaluate@sft"
    ):
        find_examples(evaluations(**RANKS), slates(**LISTS | {"sft": rows}), data(), k=2, seed=0)


def test_a_rank_behind_the_place_is_a_tie() -> None:
    # Equal scores count against the target: its rank may be behind its place in the slate, never before it.
    examples, _ = find_examples(evaluations(**RANKS | {"sft": [3, 0]}), slates(**LISTS), data(), k=2, seed=0)
    assert (examples[0].slates[0].rank, examples[0].slates[0].ndcg) == (4, 0.0)


def test_other_data_are_refused() -> None:
    given = evaluations(**RANKS)
    given["ppo"].protocol["data_hash"] = "other"
    with pytest.raises(UserError, match=r"ranks/ppo.parquet is of other data than data/prepared"):
        find_examples(given, slates(**LISTS), data(), k=2, seed=0)
