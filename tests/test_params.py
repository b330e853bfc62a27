"""Settings: what is accepted, and what every mistake says."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from rl4rec.data.dataset import PreparedData
from rl4rec.errors import UserError
from rl4rec.evaluation.protocols import evaluate
from rl4rec.metrics import MetricKey, metric_key
from rl4rec.model.ranking import PopularityPolicy
from rl4rec.ops.workspace import merge_settings
from rl4rec.params import EvaluateParams, GRPOParams, Params, PPOParams
from rl4rec.settings import load_params

ROOT = Path(__file__).parents[1]


def write(path: Path, settings: dict[str, Any]) -> Path:
    file = path / "params.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


def nested(key: str, value: object) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    assert isinstance(value, dict)
    return value


def test_committed_settings_are_the_defaults_of_the_models() -> None:
    assert load_params(ROOT / "params.yaml") == Params()


def test_an_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("")
    assert load_params(tmp_path / "params.yaml") == Params()


def test_a_reward_of_ones_own_is_a_setting(tmp_path: Path) -> None:
    assert load_params(write(tmp_path, nested("rl.reward_type", "custom"))).rl.reward_type == "custom"
    with pytest.raises(UserError, match=r"rl\.reward_type: .*'mixed' or 'custom' \(got 'costum'\)"):
        load_params(write(tmp_path, nested("rl.reward_type", "costum")))


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Params().sft.batch_size = 3  # type: ignore[misc]


@pytest.mark.parametrize("text", ["8e-05", "'8e-05'", "0.00008", "8.0e-5"])
def test_numbers_as_dvc_writes_them(tmp_path: Path, text: str) -> None:
    (tmp_path / "params.yaml").write_text(f"rl: {{grpo: {{learning_rate: {text}}}}}\n")
    assert load_params(tmp_path / "params.yaml").rl.grpo.learning_rate == 0.00008


@pytest.mark.parametrize(
    ("key", "value", "parts"),
    [
        ("sft.learning_rte", 0.1, ["sft.learning_rte", "unknown key", "did you mean 'learning_rate'?"]),
        ("rl.grpo.num_generations", 4, ["rl.grpo.num_generations", "num_sample_generations"]),
        ("modle", {}, ["modle", "unknown key", "data, policy, sft, rl, evaluate, compare, monitor, tracking"]),
        ("data.columns.usr", "u", ["data.columns.usr", "did you mean 'user'?"]),
        ("data.source", "amazon-buety", ["data.source", "'amazon-buety'", "did you mean 'amazon-beauty'?"]),
        ("sft.batch_size", "many", ["sft.batch_size", "integer", "'many'"]),
        ("sft.batch_size", 0, ["sft.batch_size", "greater than or equal to 1", "got 0"]),
        ("sft.batch_size", 1.5, ["sft.batch_size", "integer", "1.5"]),
        ("sft.batch_size", True, ["sft.batch_size", "expected a number, got a boolean"]),
        ("sft.learning_rate", True, ["sft.learning_rate", "expected a number, got a boolean"]),
        ("sft.learning_rate", float("nan"), ["sft.learning_rate", "finite"]),
        ("sft.learning_rate", -1, ["sft.learning_rate", "greater than 0", "got -1"]),
        ("policy.dropout", 1.0, ["policy.dropout", "less than 1"]),
        ("policy.n_head", 3, ["policy", "n_embd (64) must be divisible by n_head (3)"]),
        ("policy", None, ["policy", "None"]),
        ("rl.candidates.negatives", 5, ["k (10)", "1 target + 5 negatives = 6"]),
        ("rl.trainable", "all", ["rl", "set trainable: body or lora, or crossfit.split_points: 0"]),
        ("policy.generation", "autoregressive", ["needs rl.crossfit.split_points: 0"]),
        ("rl.k", 7, ["rl.k (7) must be one of evaluate.ks [5, 10, 20]"]),
        ("rl.ppo.mini_batch_size", 300, ["rl.ppo", "batch_size (1024) must be divisible by mini_batch_size (300)"]),
        ("rl.mixed", {"ndcg": 0, "hit": 0, "mrr": 0}, ["rl.mixed", "at least one weight"]),
        ("rl.grpo.num_sample_generations", 1, ["rl.grpo.num_sample_generations", "greater than or equal to 2"]),
        ("data.source", "sequences", ["data", "needs `path`"]),
        ("evaluate.ks", [10, 5], ["evaluate", "increasing"]),
        ("evaluate.ks", [], ["evaluate.ks", "at least 1"]),
        ("evaluate.ks", [5, 10, 200], ["evaluate", "(200)", "1 target + 100 negatives"]),
        ("compare.confidence", 95, ["compare.confidence", "less than 1"]),
        ("sft", {"max_steps": 5, "warmup_steps": 5}, ["sft", "warmup_steps (5) must be below max_steps (5)"]),
        ("rl.grpo", {"max_steps": 5, "num_epochs": 2}, ["rl.grpo", "max_steps (5) and num_epochs (2)", "to null"]),
        ("rl.ppo.kl_control", "adaptive", ["rl.ppo", "multiplies kl_coef, which is 0", "set kl_coef to a start"]),
        ("compare.gate.metric", "test/full/popularity@10", ["compare.gate.metric", "neither more nor less"]),
        ("compare.gate.metric", "test/full/hit@10", ["compare.gate", "metric and guards both have test/full/hit@10"]),
        ("compare.gate.guards", {"test/full/ndgc": None}, ["compare.gate.guards", "expected FOLD/PROTOCOL/METRIC@K"]),
    ],
)
def test_a_mistake_names_the_key_the_value_and_what_is_allowed(
    tmp_path: Path, key: str, value: object, parts: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        load_params(write(tmp_path, nested(key, value)))
    for part in [str(tmp_path / "params.yaml"), *parts]:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        (
            {"evaluate.negatives": 20},
            [
                "compare.gate.guards: test/sampled100/ndcg@10 is not measured. evaluate.negatives is 20",
                "write test/sampled20/ndcg@10, or set evaluate.negatives: 100",
            ],
        ),
        (
            {"evaluate.ks": [5, 20], "rl.k": 5, "compare.gate.guards": {}},
            ["compare.gate.metric: test/full/ndcg@10 is not measured. evaluate.ks is [5, 20]", "add 10 to evaluate.ks"],
        ),
        ({"compare.gate.metric": "test/full/precision@10"}, ["full has no precision: choose one of ndcg, hit, mrr"]),
        ({"compare.gate.guards": {"test/full/diversity@20": 0.1}}, ["diversity is measured up to 10"]),
        ({"compare.gate.guards": {"test/full_unmasked/diversity@10": 0.1}}, ["full_unmasked has no diversity"]),
        ({"compare.gate.guards": {"test/sampled100/coverage@10": 0.1}}, ["sampled100 has no coverage"]),
        (
            {"rl.feedback": "latest", "compare.gate.metric": "valid/full/ndcg@10"},
            ["compare.gate.metric: valid/full/ndcg@10", "feedback: latest trains on", "Write one of fold test"],
        ),
        (
            {"sft.feedback": "latest", "rl.keep": "best"},
            ["rl.keep: best", "sft.feedback: latest trains on: set rl.keep: last"],
        ),
        ({"rl.keep": "best", "rl.ppo.max_steps": 50}, ["rl.ppo makes 50 steps", "rl.eval_every: 50 only the last"]),
        ({"rl.keep": "best", "rl.num_slates": 20480}, ["rl.ppo makes 20 steps", "Lower rl.eval_every"]),
        ({"rl.logging_steps": 30, "rl.grpo.max_steps": 20}, ["rl.max_kl is watched every rl.logging_steps (30)"]),
        (
            {"data.source": "simulated", "data.simulated.items": 20, "rl.k": 20},
            ["rl.k (20) must be at most 19", "data.simulated.items"],
        ),
    ],
)
def test_settings_that_contradict_each_other_are_found_before_anything_runs(
    tmp_path: Path, settings: dict[str, object], parts: list[str]
) -> None:
    given: dict[str, Any] = {}
    for key, value in settings.items():
        given = merge_settings(given, nested(key, value))
    with pytest.raises(UserError) as caught:
        load_params(write(tmp_path, given))
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"rl.keep": "best", "rl.ppo.max_steps": 51},  # one validation before the last
        {"rl.keep": "best", "rl.ppo.num_epochs": 1},  # as many steps as the data have
        {"rl.max_kl": None, "rl.logging_steps": 300},
        {"rl.feedback": "latest", "sft.feedback": "latest"},
        {"compare.gate.metric": "valid/full/ndcg@10", "compare.gate.guards": {"test/full_unmasked/coverage@20": 0.1}},
        {"data.source": "simulated", "data.simulated.items": 20, "rl.k": 20, "policy.mask_seen": False},
    ],
)
def test_what_only_looks_like_a_contradiction_is_taken(tmp_path: Path, settings: dict[str, object]) -> None:
    given: dict[str, Any] = {}
    for key, value in settings.items():
        given = merge_settings(given, nested(key, value))
    load_params(write(tmp_path, given))


def test_a_guard_that_is_null_is_none(tmp_path: Path) -> None:
    """Settings that are put over others take a guard away so."""
    guards = {"test/sampled100/ndcg@10": None, "test/sampled20/ndcg@10": 0.1}
    settings = {"evaluate": {"negatives": 20}, "compare": {"gate": {"guards": guards}}}
    assert load_params(write(tmp_path, settings)).compare.gate.guards == {"test/sampled20/ndcg@10": 0.1}


@pytest.mark.parametrize(("ks", "negatives"), [((2, 3), 5), ((5, 10, 12), 20)])
def test_the_settings_know_what_an_evaluation_has(tiny_data: PreparedData, ks: tuple[int, ...], negatives: int) -> None:
    section = EvaluateParams(ks=ks, negatives=negatives)
    found = evaluate("popularity", PopularityPolicy(tiny_data.item_counts), tiny_data, section).metrics
    every = {
        metric_key(fold, protocol, metric, k)
        for fold in ("valid", "test")
        for protocol in ("full", "full_unmasked", f"sampled{negatives}", "sampled7")
        for metric in (*(MetricKey.parse(key).metric for key in found), "precision")
        for k in (1, *ks)
    }
    assert {key for key in every if section.missing(key) is None} == found.keys()


def test_all_mistakes_are_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="2 invalid settings"):
        load_params(write(tmp_path, {"sft": {"batch_size": 0}, "policy": {"dropout": 2}}))


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("sft: {seed: 1}\nsft: {seed: 2}\n", "key 'sft' is given twice"),
        ("sft: [", "not valid YAML"),
        ("- sft\n", "expected sections"),
        ("sft: 3\n", "sft"),
        ("? [a]\n: 1\n", "not valid YAML"),
    ],
)
def test_a_damaged_file(tmp_path: Path, text: str, part: str) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(UserError, match=r"params\.yaml") as caught:
        load_params(tmp_path / "params.yaml")
    assert part in str(caught.value)


def test_a_missing_file_and_bytes_that_are_no_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        load_params(tmp_path / "absent.yaml")
    (tmp_path / "params.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        load_params(tmp_path / "params.yaml")


def test_effective_batches() -> None:
    # One slate a prompt: 8 x 2; four slates a prompt: 4 x 4 x 1.
    assert PPOParams(batch_size=8, mini_batch_size=4, gradient_accumulation_steps=2).slates_per_step == 16
    assert GRPOParams(batch_size=4, num_sample_generations=4).slates_per_step == 16


def test_a_typo_fails_in_under_two_seconds_through_the_command(tmp_path: Path) -> None:
    file = write(tmp_path, {"sft": {"learning_rte": 0.1}})
    start = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-c", "from rl4rec.cli import main; main()", "check-params", str(file)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert time.monotonic() - start < 2
    assert result.returncode == 2
    assert "sft.learning_rte" in result.stderr
    assert "Traceback" not in result.stderr
