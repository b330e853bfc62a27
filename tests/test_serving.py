"""The served model, with a policy whose scores are known."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch
from mlflow.exceptions import MlflowException

from rl4rec.data.prepared import PreparedData
from rl4rec.errors import UserError
from rl4rec.evaluation.ranking import recommended_items
from rl4rec.policy import SlatePolicy
from rl4rec.recommender import MAX_ROWS, Recommender, load_recommender
from rl4rec.scoring import Factors
from rl4rec.serving import PolicyModel

ROOT = Path(__file__).parents[1]


class Known:
    """Scores item i with i, and with 10 what follows the last item of the history."""

    def __init__(self, mask_seen: bool) -> None:
        self.config = SimpleNamespace(mask_seen=mask_seen)

    def factors(self, histories: Sequence[npt.NDArray[Any]]) -> Factors:
        scores = torch.arange(5.0).repeat(len(histories), 1)
        for row, history in enumerate(histories):
            scores[row, (int(history[-1]) + 1) % 5] = 10.0
        return Factors(scores, torch.eye(5))


def model(*, mask_seen: bool = True) -> PolicyModel:
    served = PolicyModel()
    served.recommender = Recommender(Known(mask_seen), list("ABCDE"), np.array([5, 1, 9, 1, 2]))
    return served


def predict(
    served: PolicyModel, *histories: list[str], k: Any, exclude: list[list[str] | None] | None = None
) -> list[tuple[list[str], list[float]]]:
    columns = {"history": list(histories)} | ({} if exclude is None else {"exclude": exclude})
    frame = served.predict(pd.DataFrame(columns), {"k": k})
    return list(zip(frame["items"], frame["scores"], strict=True))


def test_ranks_unseen_items_by_score() -> None:
    served = model()
    # After A comes B (10), then E and D; C is left out by k.
    assert predict(served, ["A"], k=3) == [(["B", "E", "D"], [10.0, 4.0, 3.0])]
    # After E comes A, which was seen, like E: D, C, B.
    assert predict(served, ["A", "E"], k=3) == [(["D", "C", "B"], [3.0, 2.0, 1.0])]


def test_fewer_than_k_unseen_items() -> None:
    assert predict(model(), ["A", "B", "C", "D"], k=5) == [(["E"], [10.0])]


def test_seen_items_stay_where_the_policy_was_trained_so() -> None:
    served = model(mask_seen=False)
    assert predict(served, ["A", "E"], k=2) == [(["A", "E"], [10.0, 4.0])]


def test_unknown_items_are_ignored_and_strangers_get_what_is_popular() -> None:
    served = model()
    rows = predict(served, ["?"], ["A", "?"], [], k=2)
    # Counts: C 9, A 5.
    assert rows == [(["C", "A"], [9.0, 5.0]), (["B", "E"], [10.0, 4.0]), (["C", "A"], [9.0, 5.0])]


@pytest.mark.parametrize("k", [0, 6, True, 2.0, "2", None])
def test_k_outside_of_the_catalogue(k: Any) -> None:
    with pytest.raises(MlflowException, match="whole number from 1 to 5"):
        predict(model(), ["A"], k=k)


def test_unknown_ids_are_named_once() -> None:
    frame = model().predict(pd.DataFrame({"history": [["A", "?", "?"], ["A"]], "exclude": [["!", "?"], []]}), {"k": 1})
    assert frame["unknown"].tolist() == [["?", "!"], []]


def test_excluded_items_are_not_shown_to_anyone() -> None:
    rows = predict(model(), ["A"], ["A"], [], k=2, exclude=[["B"], None, ["C", "?"]])
    assert [items for items, _ in rows] == [["E", "D"], ["B", "E"], ["A", "E"]]  # the last by popularity


def test_excluded_items_are_hidden_where_seen_ones_are_not() -> None:
    assert predict(model(mask_seen=False), ["A", "E"], k=2, exclude=[["E"]]) == [(["A", "D"], [10.0, 3.0])]


@pytest.mark.parametrize(
    ("history", "message"),
    [
        ("AB", "expected a list of at most 100000 item ids, got 'AB'"),
        (None, "expected a list"),
        ({"A": 1}, "got a dict of 1"),
        (["A", 7], "must be text, got 7"),
        (["A", None], "must be text, got None"),
        (["A", ["B"]], "must be text, got a list of 1"),
        (["A"] * 100_001, "at most"),
    ],
)
def test_what_is_not_a_list_of_ids_is_refused(history: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model().recommender.recommend([history], k=1)


def test_too_many_histories_are_refused() -> None:
    with pytest.raises(MlflowException, match=f"may have 1 to {MAX_ROWS} histories"):
        model().predict(pd.DataFrame({"history": [["A"]] * (MAX_ROWS + 1)}))


def test_lists_that_are_too_long_together_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rl4rec.recommender.MAX_LISTED", 9)
    assert len(predict(model(), ["A"], ["A"], ["A"], k=3)) == 3
    with pytest.raises(MlflowException, match="lists of 9 items together; got 4 histories and k 3"):
        predict(model(), ["A"], ["A"], ["A"], ["A"], k=3)


def test_ranking_is_the_evaluators_for_every_user(
    tiny_policy: SlatePolicy, save_prepared: PreparedData, tmp_path: Path
) -> None:
    tiny_policy.save_pretrained(tmp_path / "policy")
    recommender = load_recommender(tmp_path / "policy", save_prepared.folder / "items.parquet")
    split = save_prepared.split("test")
    histories = [split.history[row] for row in range(len(split.targets))]
    scores = tiny_policy.scores(histories)
    for row, history in enumerate(histories):
        scores[row, torch.from_numpy(history)] = -torch.inf
    expected = recommended_items(scores, 10).tolist()
    found = recommender.recommend([[save_prepared.item_ids[item] for item in history] for history in histories], k=10)
    assert [[save_prepared.item_ids[item] for item in row] for row in expected] == [answer.items for answer in found]


def test_serving_needs_none_of_the_training_packages(
    tiny_policy: SlatePolicy, save_prepared: PreparedData, tmp_path: Path
) -> None:
    """The packages of the extra `train` cannot be imported, and a policy still loads and ranks."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    training = [name.partition("==")[0] for name in pyproject["project"]["optional-dependencies"]["train"]]
    assert {"trl", "dvc", "peft"} <= set(training)
    tiny_policy.save_pretrained(tmp_path / "policy")
    code = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({training!r}))\n"
        "import pandas, rl4rec.cli, rl4rec.serving as serving\n"
        "from types import SimpleNamespace as Context\n"
        "model = serving.PolicyModel()\n"
        f"model.load_context(Context(artifacts={{'policy': {str(tmp_path / 'policy')!r}, "
        f"'items': {str(save_prepared.folder / 'items.parquet')!r}}}))\n"
        "print(model.predict(pandas.DataFrame({'history': [['i1', 'i2']]}), {'k': 3})['items'][0])\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(ast.literal_eval(done.stdout.strip().splitlines()[-1])) == 3


def test_batches_do_not_matter(tiny_policy: SlatePolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"i{item}" for item in range(tiny_policy.num_items)]
    recommender = Recommender(tiny_policy, names, np.ones(tiny_policy.num_items, np.int64))
    histories = [[names[(3 * row + step) % 24] for step in range(row % 4)] for row in range(23)]
    whole = recommender.recommend(histories, k=5, exclude=[["i1"]] * 23)
    monkeypatch.setattr("rl4rec.recommender._BATCH", 4)
    parts = recommender.recommend(histories, k=5, exclude=[["i1"]] * 23)
    assert [answer.items for answer in whole] == [answer.items for answer in parts]


def test_files_that_do_not_belong_together(
    tiny_policy: SlatePolicy, save_prepared: PreparedData, tmp_path: Path
) -> None:
    tiny_policy.save_pretrained(tmp_path / "policy")
    with pytest.raises(UserError, match="not a policy and its vocabulary"):
        load_recommender(tmp_path / "nowhere", save_prepared.folder / "items.parquet")
    import polars as pl

    pl.DataFrame({"item": ["a"], "count": [1]}).write_parquet(tmp_path / "items.parquet")
    with pytest.raises(UserError, match=r"a policy of 24 items, but .* has 1"):
        load_recommender(tmp_path / "policy", tmp_path / "items.parquet")
