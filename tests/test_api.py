"""Training from Python: the weights of the pipeline's stages, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

import rl4rec
from rl4rec.data.dataset import PreparedData
from rl4rec.ops.workspace import make_workspace, merge_settings
from rl4rec.params import Params
from rl4rec.settings import load_params
from tests.graph import ROOT, TINY
from tests.ops.sweep.test_stages import run_script
from tests.train.helpers import same_weights, weights

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which the pipeline has run up to RL."""
    folder = tmp_path_factory.mktemp("library") / "shop"
    overrides = folder.with_name("overrides.yaml")
    overrides.write_text(yaml.safe_dump(merge_settings(TINY, {"tracking": {"enabled": False}})))
    make_workspace(ROOT, folder, overrides)
    for name in ("fingerprint", "prepare", "sft", "crossfit"):
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


def test_the_weights_and_the_log_are_those_of_the_stages(
    shop: Path, data: PreparedData, params: Params, warm: rl4rec.Trained, tmp_path: Path
) -> None:
    warm.save(tmp_path / "models/sft")
    assert same_weights(tmp_path / "models/sft", shop / "models/sft")
    leave_out = rl4rec.crossfit(warm, data, params.sft, params.rl)
    assert leave_out is not None
    leave_out.save(tmp_path)
    name = "leave_out.safetensors"
    assert (tmp_path / name).read_bytes() == (shop / "models/crossfit" / name).read_bytes()
    for algorithm, start in (("ppo", warm), ("grpo", shop / "models/sft")):
        tuned = getattr(rl4rec, algorithm)(start, data, params.rl, leave_out=leave_out)
        tuned.save(tmp_path / algorithm)
        assert same_weights(tmp_path / algorithm, shop / "models" / algorithm)
        assert not same_weights(tmp_path / algorithm, shop / "models/sft")
        assert next(row["step"] for row in tuned.log if f"valid/full/ndcg@{params.rl.k}" in row) == 0
        assert tuned.log[-1]["summary"] and tuned.log[-1]["samples"] == params.rl.num_slates
    after = warm.policy.state_dict()
    assert all(torch.equal(after[key], value) for key, value in weights(tmp_path / "models/sft").items())


def test_a_saved_policy_is_one_of_the_pipelines(
    shop: Path, data: PreparedData, params: Params, warm: rl4rec.Trained, tmp_path: Path
) -> None:
    warm.save(tmp_path / "sft")
    warm.save(str(tmp_path / "sft"))  # again, in its place
    files = {path.name for path in (shop / "models/sft").iterdir()}
    assert {path.name for path in (tmp_path / "sft").iterdir()} == files
    recommender = rl4rec.load_recommender(tmp_path / "sft", data.folder / "items.parquet")
    (listed,) = recommender.recommend([data.item_ids[:2]], k=3)
    assert len(listed.items) == 3 and not set(listed.items) & set(data.item_ids[:2])


def test_a_function_is_reward_enough(data: PreparedData, params: Params, warm: rl4rec.Trained) -> None:
    called: list[tuple[int, ...]] = []

    def ones(slates: Tensor, targets: Tensor, data: PreparedData) -> Tensor:
        called.append(tuple(slates.shape))
        return torch.ones(slates.shape)

    free = params.rl.model_copy(update={"crossfit": params.rl.crossfit.model_copy(update={"split_points": 0})})
    tuned = rl4rec.grpo(warm, data, free, own_reward=ones)
    assert set(called) == {(32, 5)}
    assert [row["train/reward"] for row in tuned.log if "train/reward" in row] == [5.0] * 4


def test_what_is_refused(shop: Path, data: PreparedData, params: Params, warm: rl4rec.Trained, tmp_path: Path) -> None:
    with pytest.raises(rl4rec.UserError, match=r"split_points is 2, but leave_out has 0 tables: hand over what"):
        rl4rec.ppo(warm, data, params.rl)
    champion = params.sft.model_copy(update={"init": "champion"})
    with pytest.raises(rl4rec.UserError, match=r"sft\.init: champion"):
        rl4rec.sft(data, params.policy, champion)
    with pytest.raises(rl4rec.UserError, match=r"nowhere/config\.json"):
        rl4rec.crossfit(tmp_path / "nowhere", data, params.sft, params.rl)
