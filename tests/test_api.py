"""Training from Python: the weights and logs of the pipeline's stages, callbacks, resuming, and what is refused."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

import rl4rec
from rl4rec import api
from rl4rec.data.dataset import PreparedData
from rl4rec.evaluation.files import load_evaluation, load_slates, save_evaluation
from rl4rec.model.crossfit_embeddings import FILE, CrossfitEmbeddings
from rl4rec.ops.workspace import make_workspace, merge_settings
from rl4rec.params import Params, SimulatedShop
from rl4rec.settings import load_params
from tests.graph import ROOT, TINY
from tests.ops.sweep.test_stages import run_script
from tests.train.helpers import Interrupted, measured, raises_interrupted, same_weights, weights

pytestmark = pytest.mark.slow

TRAININGS = ("sft", "ppo", "grpo", "continue_sft")
Row = dict[str, float]
Train = Callable[..., rl4rec.Trained]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which the pipeline has run up to RL."""
    folder = tmp_path_factory.mktemp("library") / "shop"
    overrides = folder.with_name("overrides.yaml")
    overrides.write_text(yaml.safe_dump(merge_settings(TINY, {"tracking": {"enabled": False}})))
    make_workspace(ROOT, folder, overrides)
    for name in ("fingerprint", "prepare", "sft", "crossfit", "sft_continued"):
        run_script(folder, name)
    for variant in ("ppo", "grpo"):
        run_script(folder, "rl", variant)
    return folder


@pytest.fixture(scope="module")
def params(shop: Path) -> Params:
    return load_params(shop / "params.yaml")


@pytest.fixture(scope="module")
def data(shop: Path) -> PreparedData:
    return rl4rec.load_prepared(shop / "data/prepared")


@pytest.fixture(scope="module")
def warm(data: PreparedData, params: Params) -> rl4rec.Trained:
    return rl4rec.sft(data, params.policy, params.sft)


@pytest.fixture(scope="module")
def tables(data: PreparedData, params: Params, warm: rl4rec.Trained) -> CrossfitEmbeddings:
    found = rl4rec.crossfit(warm, data, params.sft, params.rl.crossfit)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def train(data: PreparedData, params: Params, warm: rl4rec.Trained, tables: CrossfitEmbeddings) -> Train:
    """Train by the name of the function."""

    def call(name: str, **more: Any) -> rl4rec.Trained:
        if name == "sft":
            return api.sft(data, params.policy, params.sft, **more)
        trained: rl4rec.Trained = getattr(api, name)(warm, data, params.rl, crossfit=tables, **more)
        return trained

    return call


def log_of(shop: Path, stage: str) -> list[Row]:
    """What a stage has logged, without clocks."""
    return measured([json.loads(line) for line in (shop / f"logs/{stage}.jsonl").read_text().splitlines()])


@pytest.mark.parametrize(
    ("name", "stage"), [("sft", "sft"), ("ppo", "ppo"), ("grpo", "grpo"), ("continue_sft", "sft_continued")]
)
def test_the_weights_and_the_log_are_those_of_the_stages(
    name: str, stage: str, shop: Path, params: Params, train: Train, tmp_path: Path
) -> None:
    trained = train(name)
    trained.save(tmp_path / name)
    assert same_weights(tmp_path / name, shop / "models" / stage)
    assert same_weights(trained.policy, shop / "models" / stage)
    assert measured(trained.log) == log_of(shop, stage)
    assert trained.log[-1]["summary"]
    if name != "sft":
        assert not same_weights(trained.policy, shop / "models/sft")
        assert next(row["step"] for row in trained.log if f"valid/full/ndcg@{params.rl.k}" in row) == 0
        prompts = params.rl.num_slates // params.rl.grpo.num_sample_generations
        assert trained.log[-1]["samples"] == (prompts if name == "continue_sft" else params.rl.num_slates)


def test_the_tables_and_their_log_are_those_of_the_stage(
    shop: Path, data: PreparedData, params: Params, warm: rl4rec.Trained, tmp_path: Path
) -> None:
    rows: list[Row] = []
    found = rl4rec.crossfit(warm, data, params.sft, params.rl.crossfit, on_log=rows.append)
    assert found is not None
    found.save(tmp_path)
    assert (tmp_path / FILE).read_bytes() == (shop / "models/crossfit" / FILE).read_bytes()
    assert measured(rows) == log_of(shop, "crossfit")
    assert {row["table"] for row in rows} == {0, 1}


def test_a_folder_is_as_good_a_start_as_a_policy_and_neither_is_changed(
    shop: Path, data: PreparedData, params: Params, warm: rl4rec.Trained, tables: CrossfitEmbeddings, train: Train
) -> None:
    before = {name: weight.clone() for name, weight in warm.policy.state_dict().items()}
    from_folder = rl4rec.grpo(shop / "models/sft", data, params.rl, crossfit=tables)
    assert same_weights(from_folder.policy, train("grpo").policy)
    after = warm.policy.state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert all(torch.equal(after[name], weight) for name, weight in weights(shop / "models/sft").items())


def test_a_saved_policy_is_one_of_the_pipelines(
    shop: Path, data: PreparedData, warm: rl4rec.Trained, tmp_path: Path
) -> None:
    warm.save(tmp_path / "sft")
    warm.save(str(tmp_path / "sft"))  # again, in its place
    files = {path.name for path in (shop / "models/sft").iterdir()}
    assert {path.name for path in (tmp_path / "sft").iterdir()} == files
    recommender = rl4rec.load_recommender(tmp_path / "sft", data.folder / "items.parquet")
    (listed,) = recommender.recommend([data.item_ids[:2]], k=3)
    assert len(listed.items) == 3 and not set(listed.items) & set(data.item_ids[:2])


def test_what_adapters_have_learned_is_in_the_policy(
    data: PreparedData, params: Params, warm: rl4rec.Trained, tables: CrossfitEmbeddings, tmp_path: Path
) -> None:
    rl = params.rl.model_copy(update={"trainable": "lora"})
    torch.manual_seed(99)  # what was drawn before is no part of it
    adapted = rl4rec.grpo(warm, data, rl, crossfit=tables)
    assert same_weights(adapted.policy, rl4rec.grpo(warm, data, rl, crossfit=tables).policy)
    before, after = weights(warm.policy), weights(adapted.policy)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and not any("wte" in name for name in changed)
    assert all(weight.requires_grad for weight in adapted.policy.parameters()) and not adapted.policy.training
    adapted.save(tmp_path / "adapted")
    assert same_weights(adapted.policy, tmp_path / "adapted")


@pytest.mark.parametrize("name", TRAININGS)
def test_a_callback_gets_the_rows_of_the_log(name: str, train: Train) -> None:
    rows: list[Row] = []
    trained = train(name, on_log=rows.append)
    assert rows == trained.log
    steps = [row["step"] for row in rows]
    assert steps == sorted(steps) and "summary" in rows[-1]


@pytest.mark.parametrize(("name", "validated"), [("sft", [6]), ("ppo", [0, 2]), ("grpo", [0, 2])])
def test_a_validation_may_stop_the_training(name: str, validated: list[int], params: Params, train: Train) -> None:
    seen: list[tuple[int, dict[str, float]]] = []

    def on_validation(step: int, metrics: dict[str, float]) -> bool | None:
        seen.append((step, dict(metrics)))
        return step > 0 or None

    trained = train(name, on_validation=on_validation)
    assert [step for step, _ in seen] == validated
    assert trained.log[-1]["steps"] == validated[-1]
    key = f"valid/full/ndcg@{10 if name == 'sft' else params.rl.k}"
    logged = [row[key] for row in trained.log if key in row]
    assert logged == [metrics[key] for _, metrics in seen]


def break_off(step: int, *, table: int | None = None) -> Callable[[Row], None]:
    def on_log(row: Row) -> None:
        if (row["step"], row.get("table")) == (step, table) and "train/loss" in row:
            raise Interrupted

    return on_log


@pytest.mark.parametrize(
    ("name", "step", "kept"),
    [("sft", 7, ["6"]), ("ppo", 5, ["2", "4"]), ("grpo", 3, ["2"]), ("continue_sft", 3, ["2"])],
)
def test_an_interrupted_training_goes_on_to_the_same_weights(
    name: str, step: int, kept: list[str], train: Train, tmp_path: Path
) -> None:
    whole = train(name)
    assert raises_interrupted(lambda: train(name, checkpoints=tmp_path, on_log=break_off(step)))
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == [f"checkpoint-{number}" for number in kept]
    rows: list[Row] = []
    resumed = train(name, checkpoints=tmp_path, on_log=rows.append)
    assert same_weights(whole.policy, resumed.policy)
    assert rows == resumed.log and measured(resumed.log) == measured(whole.log)


def test_interrupted_tables_go_on_to_the_same_numbers(
    data: PreparedData, params: Params, warm: rl4rec.Trained, tables: CrossfitEmbeddings, tmp_path: Path
) -> None:
    def fit(on_log: Callable[[Row], None]) -> CrossfitEmbeddings | None:
        return rl4rec.crossfit(warm, data, params.sft, params.rl.crossfit, checkpoints=tmp_path, on_log=on_log)

    assert raises_interrupted(lambda: fit(break_off(12, table=1)))
    resumed = fit(lambda row: None)
    assert resumed is not None and resumed.digest() == tables.digest()


def test_checkpoints_of_other_settings_are_not_used(
    data: PreparedData, params: Params, warm: rl4rec.Trained, tables: CrossfitEmbeddings, tmp_path: Path
) -> None:
    def tune(rate: float, **more: Any) -> rl4rec.Trained:
        rl = params.rl.model_copy(update={"grpo": params.rl.grpo.model_copy(update={"learning_rate": rate})})
        return rl4rec.grpo(warm, data, rl, crossfit=tables, **more)

    assert raises_interrupted(lambda: tune(1e-2, checkpoints=tmp_path, on_log=break_off(3)))
    assert same_weights(tune(1e-3, checkpoints=tmp_path).policy, tune(1e-3).policy)


@pytest.mark.parametrize("name", [*TRAININGS, "crossfit"])
def test_without_checkpoints_no_file_is_written(
    name: str,
    data: PreparedData,
    params: Params,
    warm: rl4rec.Trained,
    train: Train,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for folder in ("here", "temporary"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a temporary file")

    for function in ("mkdtemp", "mkstemp", "TemporaryDirectory", "NamedTemporaryFile"):
        monkeypatch.setattr(tempfile, function, refuse)
    if name == "crossfit":
        rl4rec.crossfit(warm, data, params.sft, params.rl.crossfit)
    else:
        train(name)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["here", "temporary"]


def test_a_function_is_reward_enough(data: PreparedData, params: Params, warm: rl4rec.Trained) -> None:
    called: list[tuple[int, ...]] = []

    def ones(slates: Tensor, targets: Tensor, data: PreparedData) -> Tensor:
        called.append(tuple(slates.shape))
        return torch.ones(slates.shape)

    free = params.rl.model_copy(update={"crossfit": params.rl.crossfit.model_copy(update={"split_points": 0})})
    tuned = rl4rec.grpo(warm, data, free, own_reward=ones)
    assert set(called) == {(32, 5)}
    assert [row["train/reward"] for row in tuned.log if "train/reward" in row] == [5.0] * 4


def test_every_stage_knows_a_split_by_time(params: Params, tmp_path: Path) -> None:
    """Two folds of different users; nothing of the windows is trained on."""
    settings = params.data.model_copy(update={"split": "time", "simulated": SimulatedShop(users=400, items=60)})
    data = rl4rec.prepare(settings, tmp_path / "prepared")
    valid, test = (set(data.split(fold).user_rows.tolist()) for fold in ("valid", "test"))
    assert valid - test and test - valid
    warm = rl4rec.sft(data, params.policy, params.sft)
    tables = rl4rec.crossfit(warm, data, params.sft, params.rl.crossfit)
    evaluations = {"sft": rl4rec.evaluate("sft", warm.policy, data, params.evaluate)}
    for name in ("ppo", "grpo"):
        trained = getattr(rl4rec, name)(warm, data, params.rl, crossfit=tables)
        evaluations[name] = rl4rec.evaluate(name, trained.policy, data, params.evaluate)
    oracle = rl4rec.evaluate_oracle(data, params.evaluate)
    assert oracle is not None
    comparison = rl4rec.compare_policies(evaluations | {"oracle": oracle}, params.compare, k=params.rl.k)
    assert comparison["protocol"]["split"].startswith("by time")
    assert comparison["protocol"]["targets"] == {"valid": len(valid), "test": len(test)}
    key = f"test/full/ndcg@{params.rl.k}"
    assert comparison["policies"]["oracle"][key]["mean"] > comparison["policies"]["grpo"][key]["mean"] > 0
    # a table, written and read again, has who has which target
    paths = tmp_path / "sft.json", tmp_path / "sft.parquet", tmp_path / "slates.parquet"
    save_evaluation(evaluations["sft"], *paths)
    again = load_evaluation(*paths[:2])
    assert again.users_of("test").to_list() == sorted(test)
    slates = load_slates(paths[2], users=again.users_of("test"), num_items=data.num_items)
    assert len(slates) == len(test)


def test_what_is_refused(data: PreparedData, params: Params, warm: rl4rec.Trained, tmp_path: Path) -> None:
    with pytest.raises(rl4rec.UserError, match=r"split_points is 2, but crossfit has 0 tables: hand over what"):
        rl4rec.ppo(warm, data, params.rl)
    champion = params.sft.model_copy(update={"init": "champion"})
    with pytest.raises(rl4rec.UserError, match=r"sft\.init: champion"):
        rl4rec.sft(data, params.policy, champion)
    with pytest.raises(rl4rec.UserError, match=r"nowhere/config\.json"):
        rl4rec.crossfit(tmp_path / "nowhere", data, params.sft, params.rl.crossfit)


def test_data_introduces_itself_in_a_line(data: PreparedData) -> None:
    said = repr(data)
    assert "\n" not in said and len(said) < 100 + len(str(data.folder))
    assert f"{len(data.users)} users" in said and f"{data.num_items} items" in said
