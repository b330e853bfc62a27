"""Loading a saved policy for evaluation: what can be wrong is said, and the right one is evaluated."""

from pathlib import Path

import numpy as np
import pytest
import torch

from rl4rec.data.dataset import PreparedData, Ragged
from rl4rec.errors import UserError
from rl4rec.evaluation.policies import load_ranking_policy
from rl4rec.evaluation.protocols import evaluate
from rl4rec.model.policy import SlatePolicy, SlatePolicyConfig
from rl4rec.params import EvaluateParams

SEQUENCES = [[0, 1, 2, 3], [3, 2, 1, 0], [4, 0, 5, 1]]


def data(num_items: int = 6) -> PreparedData:
    return PreparedData(
        folder=Path("data/prepared"),
        users=["a", "b", "c"],
        item_ids=[str(item) for item in range(num_items)],
        item_counts=np.arange(num_items, dtype=np.int64),
        sequences=Ragged.from_rows(SEQUENCES),
        stats={"data_hash": "abc", "source": "simulated"},
    )


@pytest.fixture
def models(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    sizes = {"model_type": "gpt2", "vocab_size": 8, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 1}
    policy = SlatePolicy(SlatePolicyConfig(lm_config=sizes, num_items=6, item_offset=0, max_history=4))
    policy.save_pretrained(tmp_path / "sft")
    return tmp_path


def test_a_saved_policy_scores_as_in_memory_and_without_dropout(models: Path) -> None:
    loaded = load_ranking_policy("sft", data(), models)
    histories = [np.array([0, 1]), np.array([2])]
    found, again = (loaded.score(loaded.encode(histories)) for _ in range(2))
    own = SlatePolicy.from_pretrained(models / "sft").eval().scores(histories)
    assert torch.allclose(found.dense().cpu(), own, atol=1e-6)
    assert torch.equal(found.states, again.states) and torch.equal(found.items, again.items)
    result = evaluate("sft", loaded, data(), EvaluateParams(ks=(2,), negatives=2))
    assert result.ranks["test/full"].max() <= 5


def test_popularity_needs_no_model(tmp_path: Path) -> None:
    popular = load_ranking_policy("popularity", data(), tmp_path)
    scores = popular.score(popular.encode([np.array([0])])).dense()
    assert scores.tolist() == [data().item_counts.tolist()]


def test_a_missing_policy_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"grpo: no policy there.*dvc repro rl@grpo"):
        load_ranking_policy("grpo", data(), tmp_path)


def test_a_policy_of_another_catalogue_is_refused(models: Path) -> None:
    with pytest.raises(UserError, match=r"catalogue of 6 items, but .* has 9"):
        load_ranking_policy("sft", data(9), models)


def test_a_damaged_policy_is_refused(models: Path) -> None:
    (models / "sft" / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match="cannot be read as a policy"):
        load_ranking_policy("sft", data(), models)
