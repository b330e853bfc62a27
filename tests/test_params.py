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

from rl4rec.errors import UserError
from rl4rec.params import GRPOParams, Params, PPOParams
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
    ],
)
def test_a_mistake_names_the_key_the_value_and_what_is_allowed(
    tmp_path: Path, key: str, value: object, parts: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        load_params(write(tmp_path, nested(key, value)))
    for part in [str(tmp_path / "params.yaml"), *parts]:
        assert part in str(caught.value)


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
