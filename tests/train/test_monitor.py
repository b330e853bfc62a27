"""The monitor, the training log, checkpoints of the right run, and what may be trained."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from rl4rec.data.dataset import PreparedData
from rl4rec.model.create import create_policy
from rl4rec.model.policy import SlatePolicy
from rl4rec.params import LoraParams, PolicyParams
from rl4rec.train.log import TrainingLog
from rl4rec.train.monitor import Monitor, save_policy
from rl4rec.train.trainable import frozen_copy, set_dropout, set_trainable, without_adapters
from tests.tiny_checkpoints import text_tokenizer, write_checkpoint

HISTORIES = [np.array([1, 2, 3]), np.array([7])]


def test_the_best_policy_is_kept_and_patience_runs_out(tiny_policy: SlatePolicy, tmp_path: Path) -> None:
    scores = iter([0.1, 0.3, 0.2, 0.3])
    rows: list[dict[str, float]] = []
    monitor = Monitor(
        validate=lambda _: {"full/ndcg@10": next(scores)},
        metric="full/ndcg@10",
        report=lambda row: rows.append(dict(row)),
        best_folder=tmp_path / "best",
        patience=2,
    )
    stops = []
    for step in (1, 2, 3, 4):
        with torch.no_grad():
            tiny_policy.lm.get_input_embeddings().weight.fill_(float(step))
        stops.append(monitor.validate(tiny_policy, step=step, samples=10 * step))
    assert stops == [False, False, False, True]
    assert monitor.best_step == 2
    best = SlatePolicy.from_pretrained(tmp_path / "best")
    assert (best.lm.get_input_embeddings().weight == 2.0).all()
    assert [row["valid/full/ndcg@10"] for row in rows] == [0.1, 0.3, 0.2, 0.3]
    assert rows[1]["samples"] == 20


def test_a_step_is_validated_once(tiny_policy: SlatePolicy, tmp_path: Path) -> None:
    calls = []
    monitor = Monitor(
        validate=lambda _: calls.append(1) or {"m": 1.0},
        metric="m",
        report=lambda _: None,
        best_folder=tmp_path / "best",
    )
    monitor.validate(tiny_policy, step=5, samples=5)
    monitor.validate(tiny_policy, step=5, samples=5)
    assert len(calls) == 1


def test_the_log_takes_its_name_only_after_success(tmp_path: Path) -> None:
    forwarded = []
    path = tmp_path / "logs/run.jsonl"
    with TrainingLog(path, lambda metrics, step: forwarded.append((dict(metrics), step))) as log:
        log({"step": 3, "samples": 6, "train/loss": 0.5})
        log({"step": 3, "summary": True, "steps": 3})
        assert not path.exists()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 3, "samples": 6, "train/loss": 0.5},
        {"step": 3, "summary": True, "steps": 3},
    ]
    assert forwarded == [({"samples": 6, "train/loss": 0.5}, 3), ({"summary/steps": 3}, None)]

    broken = tmp_path / "logs/broken.jsonl"
    with pytest.raises(RuntimeError), TrainingLog(broken, lambda metrics, step: None):
        raise RuntimeError
    assert not broken.exists()


def test_body_leaves_the_item_embeddings_alone(tiny_policy: SlatePolicy) -> None:
    set_trainable(tiny_policy, "body", LoraParams())
    frozen = {name for name, parameter in tiny_policy.named_parameters() if not parameter.requires_grad}
    assert frozen == {"lm.transformer.wte.weight"}
    set_trainable(tiny_policy, "all", LoraParams())
    assert all(parameter.requires_grad for parameter in tiny_policy.parameters())


def test_body_of_an_untied_model_leaves_both_embedding_matrices_alone(tiny_data: PreparedData, tmp_path: Path) -> None:
    checkpoint = write_checkpoint("llama", tmp_path / "lm")
    params = PolicyParams(init="pretrained", model_name=str(checkpoint), max_history=8)
    policy, _ = create_policy(params, tiny_data.item_ids, text_tokenizer())
    set_trainable(policy, "body", LoraParams())
    frozen = {name for name, parameter in policy.named_parameters() if not parameter.requires_grad}
    assert frozen == {"lm.model.embed_tokens.weight", "lm.lm_head.weight"}


def test_adapters_start_neutral_train_alone_and_merge_exactly(tiny_policy: SlatePolicy, tmp_path: Path) -> None:
    before = tiny_policy.scores(HISTORIES)
    set_trainable(tiny_policy, "lora", LoraParams(r=4, alpha=8))
    assert torch.allclose(tiny_policy.scores(HISTORIES), before, atol=1e-6)
    trained = {name for name, parameter in tiny_policy.named_parameters() if parameter.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    assert not any("lm_head" in name for name in trained)
    with torch.no_grad():
        for name, parameter in tiny_policy.named_parameters():
            if "lora_" in name:
                parameter.add_(0.3)
    adapted = tiny_policy.train(False).scores(HISTORIES)
    assert not torch.allclose(adapted, before, atol=1e-2)
    assert torch.allclose(without_adapters(tiny_policy).scores(HISTORIES), adapted, atol=1e-4)
    save_policy(tiny_policy, tmp_path / "policy")
    loaded = SlatePolicy.from_pretrained(tmp_path / "policy")
    assert torch.allclose(loaded.scores(HISTORIES), adapted, atol=1e-4)


def test_the_reference_is_frozen_and_apart(tiny_policy: SlatePolicy) -> None:
    reference = frozen_copy(tiny_policy)
    before = reference.scores(HISTORIES)
    with torch.no_grad():
        for parameter in tiny_policy.parameters():
            parameter.mul_(2.0)
    assert torch.equal(reference.scores(HISTORIES), before)
    assert not any(parameter.requires_grad for parameter in reference.parameters())


def test_dropout_can_be_turned_off(tiny_policy: SlatePolicy) -> None:
    for module in tiny_policy.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    set_dropout(tiny_policy, True)
    assert any(m.p == 0.5 for m in tiny_policy.modules() if isinstance(m, torch.nn.Dropout))
    set_dropout(tiny_policy, False)
    assert all(m.p == 0.0 for m in tiny_policy.modules() if isinstance(m, torch.nn.Dropout))


def test_without_a_validation_fold_the_last_policy_is_kept(tiny_policy: SlatePolicy, tmp_path: Path) -> None:
    rows: list[dict[str, float]] = []
    monitor = Monitor(
        validate=None, metric="full/ndcg@10", report=lambda row: rows.append(dict(row)), best_folder=tmp_path / "best"
    )
    for step in (0, 1, 2):
        with torch.no_grad():
            tiny_policy.lm.get_input_embeddings().weight.fill_(float(step))
        assert monitor.validate(tiny_policy, step=step, samples=step, candidate=step > 0) is False
    best = SlatePolicy.from_pretrained(tmp_path / "best")
    assert (best.lm.get_input_embeddings().weight == 2.0).all()
    assert rows == []
    (tmp_path / "state").mkdir()
    monitor.save_state(tmp_path / "state", tiny_policy, step=2)
    assert (tmp_path / "state/best/model.safetensors").is_file()


def test_the_last_policy_is_kept_where_that_is_asked_for(tiny_policy: SlatePolicy, tmp_path: Path) -> None:
    scores = iter([0.3, 0.1])
    monitor = Monitor(
        validate=lambda _: {"full/ndcg@10": next(scores)},
        metric="full/ndcg@10",
        report=lambda row: None,
        best_folder=tmp_path / "best",
        keep_last=True,
    )
    for step in (1, 2):
        with torch.no_grad():
            tiny_policy.lm.get_input_embeddings().weight.fill_(float(step))
        monitor.validate(tiny_policy, step=step, samples=step)
    assert (SlatePolicy.from_pretrained(tmp_path / "best").lm.get_input_embeddings().weight == 2.0).all()
    assert monitor.best_step == 1
    assert monitor.finish(step=2, samples=2)["best_step"] == 1
