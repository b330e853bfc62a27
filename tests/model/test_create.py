"""Starting from a pretrained checkpoint: tiny ones, written by the test."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from rl4rec.data.dataset import PreparedData
from rl4rec.errors import UserError
from rl4rec.model.create import create_policy
from rl4rec.model.policy import SlatePolicy
from rl4rec.params import PolicyParams
from tests.tiny_checkpoints import text_tokenizer, write_checkpoint


@pytest.fixture(params=["gpt2", "llama"])
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write_checkpoint(request.param, tmp_path / "lm")


def test_item_tokens_are_added_and_scored(checkpoint: Path, tiny_data: PreparedData, tmp_path: Path) -> None:
    params = PolicyParams(init="pretrained", model_name=str(checkpoint), max_history=8, score="dot")
    policy, tokenizer = create_policy(params, tiny_data.item_ids, build := text_tokenizer())
    assert tokenizer is not build
    offset = policy.config.item_offset
    assert tokenizer.convert_ids_to_tokens(offset + 3) == "<|item:i3|>"
    assert tokenizer("<|item:i3|><|item:i0|>")["input_ids"][-2:] == [offset + 3, offset]

    assert {parameter.dtype for parameter in policy.parameters()} == {torch.float32}
    policy.train(False)
    history = np.array([3, 5, 1])
    logits = policy.lm(input_ids=torch.tensor([[3, 5, 1]]) + offset).logits[0, -1]
    assert torch.allclose(policy.scores([history])[0], logits[offset : offset + policy.num_items], atol=1e-4)

    policy.save_pretrained(tmp_path / "policy")
    loaded = SlatePolicy.from_pretrained(tmp_path / "policy")
    weights = policy.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in loaded.state_dict().items())
    # Weights that lie elsewhere in memory may be multiplied by another kernel: the last bit is not theirs.
    assert torch.allclose(loaded.scores([history]), policy.scores([history]), rtol=1e-5, atol=1e-6)


def test_new_embeddings_start_like_the_old_ones(checkpoint: Path, tiny_data: PreparedData) -> None:
    many = [f"item {n}" for n in range(2000)]
    params = PolicyParams(init="pretrained", model_name=str(checkpoint), max_history=8)
    policy, _ = create_policy(params, many, text_tokenizer())
    weight = policy.get_input_embeddings().weight.detach()  # type: ignore[operator]
    old, new = weight[: policy.config.item_offset - 1], weight[policy.config.item_offset :]
    assert torch.allclose(new.mean(0), old.mean(0), atol=0.01)
    assert 0 < new.std() <= 2 * old.std()


def test_an_unknown_model_is_a_users_error(tiny_data: PreparedData, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    params = PolicyParams(init="pretrained", model_name=str(tmp_path / "empty"))
    with pytest.raises(UserError, match=r"policy.model_name: cannot load the folder .*empty"):
        create_policy(params, tiny_data.item_ids, text_tokenizer())


def test_pickled_weights_are_refused(checkpoint: Path, tiny_data: PreparedData) -> None:
    weights = checkpoint / "model.safetensors"
    weights.unlink()
    torch.save({}, checkpoint / "pytorch_model.bin")
    params = PolicyParams(init="pretrained", model_name=str(checkpoint), max_history=8)
    with pytest.raises(UserError, match="safetensors"):
        create_policy(params, tiny_data.item_ids, text_tokenizer())


def test_a_history_longer_than_the_model_reads_is_a_users_error(checkpoint: Path, tiny_data: PreparedData) -> None:
    params = PolicyParams(init="pretrained", model_name=str(checkpoint), max_history=50)
    with pytest.raises(UserError, match=r"policy.max_history: 50 .* needs 50 positions, more than .* \(32\)"):
        create_policy(params, tiny_data.item_ids, text_tokenizer())
    params = params.model_copy(update={"max_history": 30, "generation": "autoregressive"})
    with pytest.raises(UserError, match=r"needs 94 positions"):
        create_policy(params, tiny_data.item_ids, text_tokenizer())


def test_new_items_can_be_told_apart_by_their_directions(checkpoint: Path, tiny_data: PreparedData) -> None:
    lm = AutoModelForCausalLM.from_pretrained(checkpoint)
    for layer in (lm.get_input_embeddings(), lm.get_output_embeddings()):
        torch.nn.init.normal_(layer.weight, mean=2.0, std=3.0)
    lm.save_pretrained(checkpoint)
    params = PolicyParams(init="pretrained", model_name=str(checkpoint), max_history=8)
    policy, _ = create_policy(params, tiny_data.item_ids, text_tokenizer())
    directions = policy.item_vectors().detach()
    cosines = (directions @ directions.T).fill_diagonal_(0.0)
    assert params.score == "cosine" and cosines.max() < 0.99
    old = policy.lm.get_output_embeddings().weight[: policy.config.item_offset]
    new = policy.item_embeddings()
    assert new.mean().item() == pytest.approx(2.0, abs=0.6)
    assert new.std(0).mean().item() == pytest.approx(old.std(0).mean().item(), rel=0.3)
