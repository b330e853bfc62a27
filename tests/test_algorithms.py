"""The table of policies: what the report shows follows from it, and so does what settings may name."""

from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
from pydantic import ValidationError

from rl4rec import algorithms
from rl4rec._dvc import dvc_stages
from rl4rec._process import settings_to_lower
from rl4rec.algorithms import POLICIES, Policy, get_policy, pair_key, pairs
from rl4rec.ops.sweep.settings import SweepParams
from rl4rec.params import ALGORITHMS, CompareParams, GateParams
from rl4rec.report import compare_policies, comparison_table
from rl4rec.report.answers import questions
from rl4rec.report.examples import shown_policies
from rl4rec.report.logs import TrainingLog
from rl4rec.report.plots import draw_plots
from rl4rec.report.rows import pair_rows, policy_meanings
from tests.evaluation.test_compare import evaluation, four

ROOT = Path(__file__).parents[1]
NEW = Policy(
    key="reinforce",
    label="REINFORCE",
    colour="#b8860b",
    meaning="SFT, then REINFORCE.",
    stage="rl@reinforce",
    compared_with=("sft", "grpo"),
    trainer="rl4rec.train.reinforce:ReinforceTrainer",
    lower=("rl.reinforce.batch_size",),
)


@pytest.fixture
def one_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table with a new RL algorithm after GRPO."""
    *trained, oracle = POLICIES
    monkeypatch.setattr(algorithms, "POLICIES", (*trained, NEW, oracle))


def test_the_order_of_the_pairs() -> None:
    assert [pair_key(pair) for pair in pairs()] == [
        "grpo_vs_sft",
        "ppo_vs_sft",
        "grpo_vs_sft_continued",
        "ppo_vs_sft_continued",
        "sft_continued_vs_sft",
        "grpo_vs_ppo",
        "sft_vs_popularity",
    ]


def test_keys_labels_and_colours_are_unique() -> None:
    for name in ("key", "label", "colour"):
        values = [getattr(policy, name) for policy in POLICIES]
        assert len(set(values)) == len(values), name


def test_the_table_agrees_with_the_pipeline_and_the_settings() -> None:
    assert set(algorithms.training_stages()) < {name for name, _ in dvc_stages(ROOT)}
    evaluated = {name.partition("@")[2] for name, _ in dvc_stages(ROOT) if name.startswith("evaluate@")}
    assert set(algorithms.evaluated_keys()) == evaluated
    assert {policy.key for policy in algorithms.rl_algorithms()} < set(ALGORITHMS)


@pytest.mark.parametrize("policy", algorithms.rl_algorithms(), ids=lambda policy: policy.key)
def test_the_trainers_are_there(policy: Policy) -> None:
    module, _, name = str(policy.trainer).partition(":")
    assert isinstance(getattr(import_module(module), name), type)


def test_an_unknown_policy_is_answered_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r"unknown policy 'pop': expected one of popularity, sft, sft_continued, ppo"):
        get_policy("pop")


@pytest.mark.usefixtures("one_more")
def test_a_new_algorithm_joins_pairs_questions_tables_and_plots() -> None:
    # REINFORCE finds all of 40 users in first place, GRPO 21 of them.
    given = four() | {"reinforce": evaluation("reinforce", [0] * 40)}
    found = compare_policies(given, CompareParams(bootstrap_samples=200), k=2)
    assert {"reinforce_vs_sft", "reinforce_vs_grpo"} < found.keys() and "reinforce_vs_ppo" not in found
    asked = {question.text: question.answers[0].sentence for question in questions(found)}
    assert list(asked) == ["Is RL better than SFT?", "Is GRPO better than PPO?", "Is REINFORCE better than GRPO?"]
    assert asked["Is RL better than SFT?"] == "REINFORCE, GRPO and PPO are better than SFT."
    assert asked["Is REINFORCE better than GRPO?"] == "REINFORCE is better than GRPO."
    assert [row["name"] for row in pair_rows(found)][:2] == ["REINFORCE - SFT", "GRPO - SFT"]
    assert policy_meanings(found)[-1] == ("REINFORCE", "SFT, then REINFORCE.")
    assert "REINFORCE - GRPO" in list(comparison_table(found).columns[0].cells)
    log = TrainingLog([{"step": n, "samples": n, "seconds": n, "train/reward": 0.1 * n} for n in range(3)], {})
    plots, notes = draw_plots(found, {"reinforce": log})
    by_name = {plot.name: plot.svg for plot in plots}
    assert "REINFORCE" in by_name["reward"] and NEW.colour in by_name["reward"]
    assert "REINFORCE - SFT" in by_name["difference_full"] and NEW.colour in by_name["ndcg_full"]
    assert "No training log of GRPO." in notes and "No training log of REINFORCE." not in notes
    assert shown_policies() == ("sft", "ppo", "reinforce", "grpo")


@pytest.mark.usefixtures("one_more")
def test_a_new_algorithm_may_be_promoted_and_swept() -> None:
    assert GateParams.model_validate({"candidates": ["reinforce"]}).candidates == ("reinforce",)
    space = {"rl.reinforce.learning_rate": {"low": 0.1, "high": 0.2}}
    assert SweepParams.model_validate({"stage": "rl@reinforce", "space": space}).stage == "rl@reinforce"
    assert settings_to_lower("rl reinforce") == ("rl.reinforce.batch_size",)


def test_what_no_row_has_is_refused_with_the_choices() -> None:
    with pytest.raises(ValidationError, match="expected one of sft, sft_continued, ppo, grpo"):
        GateParams.model_validate({"candidates": ["ppo", "popularity"]})
    with pytest.raises(ValidationError, match="expected one of sft, sft_continued, rl@ppo, rl@grpo"):
        SweepParams.model_validate({"stage": "crossfit", "space": {"sft.seed": {"choices": [0]}}})


def test_a_pair_with_a_policy_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tuple(replace(row, compared_with=("ppo2",)) if row.key == "grpo" else row for row in POLICIES)
    monkeypatch.setattr(algorithms, "POLICIES", rows)
    with pytest.raises(ValueError, match="unknown policy 'ppo2'"):
        pairs()
