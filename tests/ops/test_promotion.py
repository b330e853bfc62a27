"""Promotion against a real MLflow database: first champion, refusal, changed data, rollback, two at once."""

from __future__ import annotations

import json
import shutil
import threading
import time
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos import databricks_pb2

from rl4rec.cli import main as command
from rl4rec.errors import UserError
from rl4rec.evaluation.protocols import evaluate
from rl4rec.model.policy import SlatePolicy
from rl4rec.ops.measure import evaluate_elsewhere
from rl4rec.ops.promote import promote, roll_back
from rl4rec.ops.registry import CANDIDATE, CHAMPION, Registry
from rl4rec.params import Params
from tests.ops.conftest import ITEMS, NAME, PARAMS, policies, prepared, put, sequences


def registry() -> Registry:
    return Registry(MlflowClient(), NAME)


def aliases() -> dict[str, str]:
    return {alias: str(version) for alias, version in MlflowClient().get_registered_model(NAME).aliases.items()}


def test_first_promotion_takes_the_best_on_validation_and_says_where_it_came_from(project: Path) -> None:
    (project / "dvc.lock").write_text("schema: '2.0'\n")
    decision = promote(project, PARAMS)
    assert decision.promoted and decision.checks == ()
    version = registry().version(CHAMPION)
    assert version is not None and version.tags["rl4rec.policy"] == "grpo"
    assert aliases() == {CHAMPION: "1", CANDIDATE: "1"}
    assert {"rl4rec.data_hash", "rl4rec.weights", "rl4rec.dvc_lock"} <= version.tags.keys()
    assert version.tags["rl4rec.decision"] == "promoted: there is no champion yet"
    served = mlflow.pyfunc.load_model(f"models:/{NAME}@{CHAMPION}").predict(
        pd.DataFrame({"history": [["i3", "i4"]]}), {"k": 3}
    )
    assert len(served["items"][0]) == 3


def test_a_better_candidate_is_promoted_and_a_worse_one_refused(project: Path) -> None:
    promote(project, PARAMS)
    assert "is the champion already" in promote(project, PARAMS).reason
    assert aliases() == {CHAMPION: "1", CANDIDATE: "1"}  # and nothing was registered
    refused = promote(project, PARAMS, policy="ppo")
    assert not refused.promoted and not refused.checks[0].passed
    assert aliases() == {CHAMPION: "1", CANDIDATE: "2"}
    put(project, "grpo", 150)
    better = promote(project, PARAMS)
    assert better.promoted and better.checks[0].lower > 0
    assert aliases() == {CHAMPION: "3", CANDIDATE: "3"}
    run = MlflowClient().get_run(registry().version(CHAMPION).run_id)
    assert run.data.metrics["gate/test/full/ndcg_at_3"] == pytest.approx(better.checks[0].change)
    assert run.data.tags["rl4rec.decision"].startswith("promoted: test/full/ndcg@3 is better")


@pytest.mark.parametrize(("repeats", "refused"), [(2, False), (3, True)])  # of 60 users: 3.3 %, 5 %
def test_a_figure_that_counts_repeat_purchases_as_missed_does_not_decide(
    project: Path, repeats: int, refused: bool
) -> None:
    for policy in ("ppo", "grpo"):
        path = project / "metrics" / f"{policy}.json"
        content = json.loads(path.read_text())
        content["protocol"]["repeated_targets"]["test"] = repeats
        path.write_text(json.dumps(content))
    if not refused:
        assert promote(project, PARAMS).promoted
        return
    with pytest.raises(UserError, match=r"compare\.gate\.metric: 5\.0 % .* Set it to test/full_unmasked/ndcg@3"):
        promote(project, PARAMS)
    gate = PARAMS.compare.gate.model_copy(update={"metric": "test/full_unmasked/ndcg@3"})
    told = PARAMS.model_copy(update={"compare": PARAMS.compare.model_copy(update={"gate": gate})})
    assert promote(project, told).promoted


def test_rollback_gives_the_place_back_once(project: Path) -> None:
    with pytest.raises(UserError, match="no champion to roll back"):
        roll_back(PARAMS)
    promote(project, PARAMS)
    with pytest.raises(UserError, match="version 1 is the first champion"):
        roll_back(PARAMS)
    put(project, "grpo", 150)
    promote(project, PARAMS)
    assert roll_back(PARAMS) == ("2", "1")
    assert aliases()[CHAMPION] == "1"
    assert "rl4rec.rolled_back" in MlflowClient().get_model_version(NAME, "2").tags


def test_a_champion_of_other_data_is_evaluated_again_on_the_present_ones(project: Path, tmp_path: Path) -> None:
    promote(project, PARAMS, policy="ppo")  # untrained
    later = prepared(project, [*sequences(60), *sequences(30, shift=100, items=ITEMS + 4)])  # four new items
    assert later.num_items == ITEMS + 4
    with pytest.raises(UserError, match=r"metrics/grpo.json is of other data .* Run `dvc repro`"):
        promote(project, PARAMS, policy="grpo")
    shutil.rmtree(project / "trained")
    policies(later, project / "trained")
    put(project, "grpo", 150)
    decision = promote(project, PARAMS, policy="grpo")
    assert decision.promoted
    champion = SlatePolicy.from_pretrained(project / "models" / "ppo")
    assert champion.num_items == ITEMS
    again = evaluate_elsewhere(
        project / "models" / "ppo", _items_of_version_one(tmp_path / "v1"), later, PARAMS.evaluate
    )
    assert decision.checks[0].champion == pytest.approx(again.metrics["test/full/ndcg@3"], abs=1e-7)


def _items_of_version_one(scratch: Path) -> Path:
    scratch.mkdir()
    model = Path(mlflow.artifacts.download_artifacts(f"models:/{NAME}/1", dst_path=str(scratch)))
    return next(model.rglob("items.parquet"))


def test_on_its_own_data_a_transferred_policy_ranks_as_it_does(project: Path) -> None:
    data = prepared(project, sequences(60))
    policy = SlatePolicy.from_pretrained(project / "models" / "grpo")
    own = evaluate("grpo", policy, data, PARAMS.evaluate)
    other = evaluate_elsewhere(
        project / "models" / "grpo", project / "data" / "prepared" / "items.parquet", data, PARAMS.evaluate
    )
    assert own.ranks.equals(other.ranks)


def test_items_unknown_to_the_champion_rank_last_and_are_ignored_in_histories(project: Path) -> None:
    later = prepared(project, [*sequences(60), "new j0 j1 j2", "half i0 i1 j0 i2 i3"])
    scorer_items = project / "old.parquet"
    shutil.copy(next((project / "trained").parent.glob("data/prepared/items.parquet")), project / "new.parquet")
    pl.DataFrame({"item": [f"i{n}" for n in range(ITEMS)], "count": np.arange(ITEMS)}).write_parquet(scorer_items)
    from rl4rec.ops.measure import TransferredPolicy

    known = pl.read_parquet(scorer_items)
    policy = SlatePolicy.from_pretrained(project / "models" / "grpo").train(False)
    transferred = TransferredPolicy(policy, known["item"].to_list(), known["count"], later)
    index = {item: row for row, item in enumerate(later.item_ids)}
    histories = [np.array([index["j0"]]), np.array([index["i1"], index["j0"]]), np.array([index["i1"]])]
    scores = transferred.score(transferred.encode(histories))
    assert torch.isinf(scores[:, [index["j0"], index["j1"], index["j2"]]]).all()
    assert [scores[0, index[f"i{n}"]].item() for n in (0, 7, 19)] == [0.0, 7.0, 19.0]  # by popularity
    assert torch.equal(scores[1], scores[2])
    assert scores[2, index["i2"]].item() == pytest.approx(float(policy.scores([np.array([1])])[0, 2]), abs=1e-5)


def test_a_promotion_under_way_shuts_others_out(project: Path) -> None:
    with registry().lock(), pytest.raises(UserError, match=r"another promotion of shop is under way \(.* process"):
        promote(project, PARAMS)
    with pytest.raises(RuntimeError), registry().lock():
        raise RuntimeError  # the lock is given back
    assert promote(project, PARAMS).promoted


def test_of_many_at_once_one_holds_the_lock(project: Path) -> None:
    held, refused, together = [], [], []

    def compete() -> None:
        try:
            with registry().lock():
                held.append(1)
                together.append(len(held))
                time.sleep(0.3)
                held.pop()
        except UserError:
            refused.append(1)

    threads = [threading.Thread(target=compete) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together and set(together) == {1}
    assert len(together) + len(refused) == 6 and refused


@pytest.mark.parametrize("code", ["RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST"])
def test_a_lock_that_is_given_back_while_one_asks_is_asked_for_again(
    project: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    create, raised = MlflowClient.create_registered_model, []

    def racing(self: MlflowClient, name: str, *given: object, **named: object) -> object:
        if len(raised) < limit:
            raised.append(name)
            raise MlflowException("it was there a moment ago", error_code=getattr(databricks_pb2, code))
        return create(self, name, *given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(MlflowClient, "create_registered_model", racing)
    limit = 2
    with registry().lock(), pytest.raises(UserError, match="another promotion of shop is under way"), registry().lock():
        pass
    raised, limit = [], 99
    with pytest.raises(UserError, match="again and again"), registry().lock():
        raise AssertionError("went on without the lock")


def test_a_lock_left_behind_is_cleared_after_an_hour(project: Path) -> None:
    MlflowClient().create_registered_model(f"{NAME}.promotion-lock", tags={"since": f"{time.time() - 3700:.0f}"})
    assert promote(project, PARAMS).promoted


def test_the_command_says_why_and_exits_with_the_decision(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["rl4rec", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            command()
        captured = capsys.readouterr()
        return int(exit_.value.code or 0), captured.out + (captured.err if exit_.value.code == 2 else "")

    assert run("promote") == (0, "promoted: there is no champion yet\n")
    status, said = run("promote", "--policy", "ppo")
    assert status == 3
    assert "refused: test/full/ndcg@3 is not clearly better" in said and "must be above +0.00%: no" in said
    pl.DataFrame({"user": ["u"], "history": [["i3", "i4"]]}).write_parquet(project / "users.parquet")
    files = ("--users", "users.parquet", "--out", "lists.parquet", "--k", "2")
    for model in (f"models:/{NAME}@champion", "models/grpo"):
        status, said = run("recommend", *files, "--model", model)
        assert status == 0 and said.startswith("lists.parquet: 1 lists in ")
        assert pl.read_parquet("lists.parquet")["items"].list.len().to_list() == [2]
    status, said = run("recommend", *files, "--model", "models:/elsewhere@champion")
    assert status == 2 and "models:/elsewhere@champion: cannot be fetched" in said
    (project / "metrics/ppo.json").unlink()
    status, said = run("promote", "--policy", "ppo")
    assert status == 2 and "Run `dvc repro evaluate@ppo`" in said
    put(project, "grpo", 150)
    assert run("promote", "--policy", "grpo")[0] == 0
    assert run("rollback") == (0, "shop: champion is version 1 again, not 3\n")


def test_a_gate_of_metrics_that_nobody_measures_registers_nothing(project: Path) -> None:
    gate = PARAMS.compare.gate.model_copy(update={"guards": {"test/sampled100/ndcg@10": 0.1}})
    params = PARAMS.model_copy(update={"compare": PARAMS.compare.model_copy(update={"gate": gate})})
    with pytest.raises(
        UserError, match=r"compare.gate: test/sampled100/ndcg@10 is not measured. Choose one of .*test/sampled8/ndcg@3"
    ):
        promote(project, params)
    assert not MlflowClient().search_registered_models()


def test_each_key_of_a_gate_names_its_own_fold(project: Path) -> None:
    gate = PARAMS.compare.gate.model_copy(update={"guards": {"valid/full/hit@3": 0.9, "valid/full/coverage@3": 0.9}})
    params = PARAMS.model_copy(update={"compare": PARAMS.compare.model_copy(update={"gate": gate})})
    promote(project, params, policy="ppo")
    decision = promote(project, params, policy="grpo")
    assert [check.metric for check in decision.checks] == [
        "test/full/ndcg@3", "valid/full/hit@3", "valid/full/coverage@3"
    ]  # fmt: skip
    found = json.loads((project / "metrics/grpo.json").read_text())["metrics"]
    for check in decision.checks:
        assert check.candidate == pytest.approx(found[check.metric], abs=1e-7)


@pytest.mark.parametrize("key", ["ndcg", "full/ndcg@10", "train/full/ndcg@10", "test/sampled/hit@5", "test/full/ndcg"])
def test_gate_settings_are_checked(key: str) -> None:
    choices = r"expected FOLD/PROTOCOL/METRIC@K \(valid or test; full, full_unmasked or sampled<n>\)"
    with pytest.raises(ValueError, match=rf"compare\.gate\.metric\n.*{choices}"):
        Params.model_validate({"compare": {"gate": {"metric": key}}})
    with pytest.raises(ValueError, match=choices):
        Params.model_validate({"compare": {"gate": {"guards": {key: 0.1}}}})
