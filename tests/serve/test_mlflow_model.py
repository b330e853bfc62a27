"""The served model, with a policy whose scores are known."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
import numpy.typing as npt
import pandas as pd
import polars as pl
import pytest
import torch
from mlflow.exceptions import MlflowException

from rl4rec.data.dataset import PreparedData, load_prepared
from rl4rec.data.prepare import prepare
from rl4rec.data.vocabulary import build_tokenizer
from rl4rec.errors import UserError
from rl4rec.evaluation.files import save_evaluation
from rl4rec.evaluation.policies import load_ranking_policy
from rl4rec.evaluation.protocols import evaluate
from rl4rec.evaluation.ranking import ranked_fold, recommended_items
from rl4rec.model.create import create_policy
from rl4rec.model.policy import SlatePolicy
from rl4rec.model.scores import Scores
from rl4rec.ops.tracking import log_policy_model
from rl4rec.params import DataParams, EvaluateParams, PolicyParams, SimulatedShop
from rl4rec.serve.mlflow_model import PolicyModel
from rl4rec.serve.recommender import MAX_ROWS, Recommender, load_recommender

ROOT = Path(__file__).parents[2]


class Known:
    """Scores item i with i, and with 10 what follows the last item of the history."""

    def __init__(self, mask_seen: bool) -> None:
        self.config = SimpleNamespace(mask_seen=mask_seen)

    def encode(self, histories: Sequence[npt.NDArray[Any]]) -> Sequence[npt.NDArray[Any]]:
        return histories

    def score(self, histories: Sequence[npt.NDArray[Any]]) -> Scores:
        scores = torch.arange(5.0).repeat(len(histories), 1)
        for row, history in enumerate(histories):
            scores[row, (int(history[-1]) + 1) % 5] = 10.0
        return Scores(scores, torch.eye(5))


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
        (["A", 7.0], "must be text or a whole number, got 7.0"),
        (["A", True], "must be text or a whole number, got True"),
        (["A", np.True_], "must be text or a whole number, got "),
        (["A", 2**64], "must be text or a whole number, got a huge number"),
        (["A", None], "must be text or a whole number, got None"),
        (["A", ["B"]], "must be text or a whole number, got a list of 1"),
        (["A"] * 100_001, "at most"),
    ],
)
def test_what_is_not_a_list_of_ids_is_refused(history: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model().recommender.recommend([history], k=1)


def test_whole_numbers_stand_for_their_digits() -> None:
    served = PolicyModel()
    served.recommender = Recommender(Known(True), ["7", "-8", "C", "D", str(2**64 - 1)], np.array([5, 1, 9, 1, 2]))
    for history in (["7", "-8"], [7, -8], ["7", -8], np.array([7, -8]), np.array([7, -8], dtype=np.int16)):
        (found,) = served.predict(pd.DataFrame({"history": [history], "exclude": [[2**64 - 1]]}), {"k": 5})["items"]
        assert found == ["C", "D"]
    assert served.recommender.recommend([[np.int64(7), 9]], k=1)[0].unknown == ["9"]


def test_too_many_histories_are_refused() -> None:
    with pytest.raises(MlflowException, match=f"may have 1 to {MAX_ROWS} histories"):
        model().predict(pd.DataFrame({"history": [["A"]] * (MAX_ROWS + 1)}))


def test_lists_that_are_too_long_together_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rl4rec.serve.recommender.MAX_LISTED", 9)
    assert len(predict(model(), ["A"], ["A"], ["A"], k=3)) == 3
    with pytest.raises(MlflowException, match="lists of 9 items together; got 4 histories and k 3"):
        predict(model(), ["A"], ["A"], ["A"], ["A"], k=3)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with the simulated shop, an untrained policy, and its evaluation."""
    folder = tmp_path_factory.mktemp("evaluated")
    data = prepare(
        DataParams(source="simulated", simulated=SimulatedShop(users=400, items=80)), folder / "data" / "prepared"
    )
    torch.manual_seed(0)
    params = PolicyParams(n_layer=1, n_embd=16, n_head=1, max_history=8)
    policy, _ = create_policy(params, data.item_ids, build_tokenizer(data.item_ids))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    policy.save_pretrained(folder / "models" / "sft")
    scorer = load_ranking_policy("sft", data, folder / "models")
    evaluation = evaluate("sft", scorer, data, EvaluateParams(negatives=20, batch_size=64))
    save_evaluation(evaluation, folder / "metrics" / "sft.json", folder / "ranks" / "sft.parquet")
    return folder


def test_logged_model_ranks_like_the_evaluator_for_every_user(evaluated: Path) -> None:
    """Whole rankings through MLflow: the lists are the evaluator's, and the target's place in them is its rank."""
    data = load_prepared(evaluated / "data" / "prepared")
    mlflow.set_tracking_uri(f"sqlite:///{evaluated}/mlflow.db")
    experiment = mlflow.create_experiment("evaluated", artifact_location=str(evaluated / "artifacts"))
    with mlflow.start_run(experiment_id=experiment):
        logged = log_policy_model(evaluated / "models" / "sft", data)
    served = mlflow.pyfunc.load_model(logged.model_uri)

    fold = ranked_fold(data, "test")
    ranks = pl.read_parquet(evaluated / "ranks" / "sft.parquet")
    assert ranks["user_row"].to_list() == fold.user_rows.tolist() and len(fold.targets) > 300
    policy = load_ranking_policy("sft", data, evaluated / "models")
    scores = policy.score(policy.encode([fold.history[row] for row in range(len(fold.targets))]))
    assert isinstance(scores, Scores)
    masked = scores.states @ scores.items.T
    masked[fold.seen_pairs(0, len(masked), masked.device)] = -torch.inf
    expected = recommended_items(masked.detach(), data.num_items).tolist()

    histories = [[data.item_ids[item] for item in fold.history[row]] for row in range(len(fold.targets))]
    lists = served.predict(pd.DataFrame({"history": histories}), params={"k": data.num_items})["items"].tolist()
    repeated = 0
    for row, found in enumerate(lists):
        assert found == [data.item_ids[item] for item in expected[row] if item >= 0]
        target, rank = data.item_ids[fold.targets[row]], ranks["test/full"][row]
        if fold.repeated[row]:  # seen before: never shown, and last in the evaluation
            assert target not in found and rank == data.num_items - 1
            repeated += 1
        else:
            assert found.index(target) == rank
    assert repeated < len(lists) / 2


def test_served_ranks_are_compared_with_a_file_of_the_evaluation(evaluated: Path, tmp_path: Path) -> None:
    """`benchmarks/served_ranks.py`: all equal; one rank in the file moved, and it fails."""
    command = [sys.executable, str(ROOT / "benchmarks" / "served_ranks.py"), "--policy", "sft"]
    command += ["--root", str(evaluated), "--out", str(tmp_path / "served.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "served.json").read_text())
    assert (found["equal"] + found["never_shown"], found["different"]) == (found["users"], 0)

    ranks = pl.read_parquet(evaluated / "ranks" / "sft.parquet")
    moved = ranks["test/full"].to_list()
    moved[7] += 1 if moved[7] < 40 else -1
    changed = ranks.with_columns(pl.Series("test/full", moved, dtype=pl.Int32))
    changed.write_parquet(evaluated / "ranks" / "moved.parquet")
    (evaluated / "models" / "moved").symlink_to(evaluated / "models" / "sft")
    done = subprocess.run([*command, "--policy", "moved"], capture_output=True, text=True, check=False)
    assert (done.returncode, json.loads(done.stdout)["different"]) == (1, 1)


def test_serving_needs_none_of_the_training_packages(
    tiny_policy: SlatePolicy, save_prepared: PreparedData, tmp_path: Path
) -> None:
    """The packages of the extra `train` cannot be imported, and a policy still loads and ranks."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    training = [name.partition("==")[0] for name in pyproject["project"]["optional-dependencies"]["train"]]
    assert {"trl", "dvc", "peft"} <= set(training)
    tiny_policy.save_pretrained(tmp_path / "policy")
    code = (
        "import json, sys\n"
        f"sys.modules.update(dict.fromkeys({training!r}))\n"
        "import pandas, rl4rec.cli, rl4rec.serve.http, rl4rec.serve.mlflow_model as serving\n"
        "from types import SimpleNamespace as Context\n"
        "model = serving.PolicyModel()\n"
        f"model.load_context(Context(artifacts={{'policy': {str(tmp_path / 'policy')!r}, "
        f"'items': {str(save_prepared.folder / 'items.parquet')!r}}}))\n"
        "print(model.predict(pandas.DataFrame({'history': [['i1', 'i2']]}), {'k': 3})['items'][0])\n"
        "request = {'dataframe_records': [{'history': ['i1', 'i2']}], 'params': {'k': 3}}\n"
        "found = json.loads(rl4rec.serve.http.answer(model.recommender, json.dumps(request).encode()))\n"
        "print(found['predictions'][0]['items'])\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    by_mlflow, by_server = (ast.literal_eval(line) for line in done.stdout.strip().splitlines()[-2:])
    assert len(by_mlflow) == 3 and by_mlflow == by_server


def test_batches_do_not_matter(tiny_policy: SlatePolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"i{item}" for item in range(tiny_policy.num_items)]
    recommender = Recommender(tiny_policy, names, np.ones(tiny_policy.num_items, np.int64))
    histories = [[names[(3 * row + step) % 24] for step in range(row % 4)] for row in range(23)]
    whole = recommender.recommend(histories, k=5, exclude=[["i1"]] * 23)
    monkeypatch.setattr("rl4rec.serve.recommender._BATCH", 4)
    parts = recommender.recommend(histories, k=5, exclude=[["i1"]] * 23)
    assert [answer.items for answer in whole] == [answer.items for answer in parts]


def test_files_that_do_not_belong_together(
    tiny_policy: SlatePolicy, save_prepared: PreparedData, tmp_path: Path
) -> None:
    tiny_policy.save_pretrained(tmp_path / "policy")
    with pytest.raises(UserError, match=r"nowhere/config\.json: no such file"):
        load_recommender(tmp_path / "nowhere", save_prepared.folder / "items.parquet")
    pl.DataFrame({"item": ["a"], "count": [1]}).write_parquet(tmp_path / "items.parquet")
    with pytest.raises(UserError, match=r"a policy of 24 items, but .* has 1"):
        load_recommender(tmp_path / "policy", tmp_path / "items.parquet")
