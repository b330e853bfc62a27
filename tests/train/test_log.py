"""What a run reports and keeps, the file of its log, and what may be trained."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from rl4rec.data.dataset import PreparedData
from rl4rec.model.create import create_policy
from rl4rec.model.load import save_policy
from rl4rec.model.policy import SlatePolicy
from rl4rec.params import LoraParams, PolicyParams
from rl4rec.report.logs import LogWriter
from rl4rec.train.log import RunLog
from rl4rec.train.trainable import frozen_copy, set_trainable, without_adapters
from tests.tiny_checkpoints import text_tokenizer, write_checkpoint

HISTORIES = [np.array([1, 2, 3]), np.array([7])]


def fill(policy: SlatePolicy, value: float) -> None:
    """Embeddings that are this number everywhere."""
    with torch.no_grad():
        policy.lm.get_input_embeddings().weight.fill_(value)


def holds(policy: SlatePolicy, value: float) -> bool:
    return bool((policy.lm.get_input_embeddings().weight == value).all())


def test_the_best_policy_is_kept_and_patience_runs_out(tiny_policy: SlatePolicy) -> None:
    scores = iter([0.1, 0.3, 0.2, 0.3])
    rows: list[dict[str, float]] = []
    run = RunLog(
        validate=lambda _: {"valid/full/ndcg@10": next(scores)},
        metric="valid/full/ndcg@10",
        on_log=rows.append,
        patience=2,
    )
    stops = []
    for step in (1, 2, 3, 4):
        fill(tiny_policy, float(step))
        stops.append(run.validate(tiny_policy, step=step, samples=10 * step))
    assert stops == [False, False, False, True]
    assert run.best_step == 2
    assert [row["valid/full/ndcg@10"] for row in rows] == [0.1, 0.3, 0.2, 0.3]
    assert rows[1]["samples"] == 20
    run.finish(tiny_policy, step=4, samples=40)
    assert holds(tiny_policy, 2.0)
    assert rows[-1]["summary"] and rows[-1]["steps"] == 4 and rows[-1]["best_step"] == 2
    assert run.rows == rows


def test_the_start_is_measured_and_never_kept(tiny_policy: SlatePolicy) -> None:
    scores = iter([0.9, 0.3])
    run = RunLog(validate=lambda _: {"m": next(scores)}, metric="m")
    for step in (0, 1):
        fill(tiny_policy, float(step))
        run.validate(tiny_policy, step=step, samples=step, candidate=step > 0)
    run.finish(tiny_policy, step=1, samples=1)
    assert holds(tiny_policy, 1.0) and run.rows[-1]["best_step"] == 1
    assert [row["m"] for row in run.rows[:2]] == [0.9, 0.3]


def test_validation_is_without_dropout_and_leaves_the_mode(tiny_policy: SlatePolicy) -> None:
    modes = []
    run = RunLog(validate=lambda policy: modes.append(policy.training) or {"m": 1.0}, metric="m")
    for training in (True, False):
        tiny_policy.train(training)
        run.validate(tiny_policy, step=1, samples=1)
        assert tiny_policy.training is training
    assert modes == [False, False]


@pytest.mark.parametrize(("answer", "stop"), [(None, False), (False, False), (True, True)])
def test_whoever_takes_a_validation_may_stop(tiny_policy: SlatePolicy, answer: bool | None, stop: bool) -> None:
    taken = []
    run = RunLog(
        validate=lambda _: {"m": 0.5},
        metric="m",
        on_validation=lambda step, metrics: taken.append((step, dict(metrics))) or answer,
    )
    assert run.validate(tiny_policy, step=7, samples=1) is stop
    assert taken == [(7, {"m": 0.5})]


def test_a_row_is_the_takers_own(tiny_policy: SlatePolicy) -> None:
    run = RunLog(validate=None, metric="m", on_log=dict.clear)
    run.log({"train/loss": 0.5}, step=3, samples=6)
    assert {name: value for name, value in run.rows[0].items() if name != "seconds"} == {
        "step": 3, "samples": 6, "train/loss": 0.5,
    }  # fmt: skip


def test_an_interrupted_run_goes_on_with_its_rows_and_its_best_policy(tiny_policy: SlatePolicy, tmp_path: Path) -> None:
    scores = iter([0.3, 0.1, 0.2, 0.2])
    first, second = (RunLog(validate=lambda _: {"m": next(scores)}, metric="m", patience=3) for _ in range(2))
    for step in (1, 2):
        fill(tiny_policy, float(step))
        first.validate(tiny_policy, step=step, samples=step)
    first.save_state(tmp_path, tiny_policy, step=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.safetensors", "log.json"]
    second.load_state(tmp_path)
    assert second.rows == first.rows and second.seconds >= first.rows[-1]["seconds"]
    stops = [second.validate(tiny_policy, step=step, samples=step) for step in (3, 4)]
    assert stops == [False, True]  # patience counts on
    second.finish(tiny_policy, step=4, samples=4)
    assert holds(tiny_policy, 1.0) and second.rows[-1]["best_step"] == 1


def test_the_log_takes_its_name_only_after_success(tmp_path: Path) -> None:
    forwarded = []
    path = tmp_path / "logs/run.jsonl"
    with LogWriter(path, lambda metrics, step: forwarded.append((dict(metrics), step))) as log:
        log({"step": 3, "samples": 6, "train/loss": 0.5})
        log({"step": 3, "summary": True, "steps": 3})
        assert not path.exists()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 3, "samples": 6, "train/loss": 0.5},
        {"step": 3, "summary": True, "steps": 3},
    ]
    assert forwarded == [({"samples": 6, "train/loss": 0.5}, 3), ({"summary/steps": 3}, None)]

    broken = tmp_path / "logs/broken.jsonl"
    with pytest.raises(RuntimeError), LogWriter(broken, lambda metrics, step: None):
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
    save_policy(without_adapters(tiny_policy), tmp_path / "policy")
    loaded = SlatePolicy.from_pretrained(tmp_path / "policy")
    assert torch.allclose(loaded.scores(HISTORIES), adapted, atol=1e-4)
    assert torch.equal(tiny_policy.scores(HISTORIES), adapted)  # the policy itself keeps its adapters


def test_of_adapters_too_the_best_are_kept(tiny_policy: SlatePolicy) -> None:
    set_trainable(tiny_policy, "lora", LoraParams(r=4, alpha=8))
    scores, rankings = iter([0.3, 0.1]), []
    run = RunLog(validate=lambda _: {"m": next(scores)}, metric="m")
    for step in (1, 2):
        with torch.no_grad():
            for name, parameter in tiny_policy.named_parameters():
                if "lora_" in name:
                    parameter.fill_(0.2 * step)
        run.validate(tiny_policy, step=step, samples=step)
        rankings.append(tiny_policy.scores(HISTORIES))
    run.finish(tiny_policy, step=2, samples=2)
    assert torch.equal(tiny_policy.scores(HISTORIES), rankings[0]) and not torch.equal(*rankings)


def test_the_reference_is_frozen_and_apart(tiny_policy: SlatePolicy) -> None:
    reference = frozen_copy(tiny_policy)
    before = reference.scores(HISTORIES)
    with torch.no_grad():
        for parameter in tiny_policy.parameters():
            parameter.mul_(2.0)
    assert torch.equal(reference.scores(HISTORIES), before)
    assert not any(parameter.requires_grad for parameter in reference.parameters())


def test_without_a_validation_fold_the_last_policy_is_kept(tiny_policy: SlatePolicy, tmp_path: Path) -> None:
    rows: list[dict[str, float]] = []
    run = RunLog(validate=None, metric="valid/full/ndcg@10", on_log=rows.append)
    for step in (0, 1, 2):
        fill(tiny_policy, float(step))
        assert run.validate(tiny_policy, step=step, samples=step, candidate=step > 0) is False
    assert rows == []
    run.save_state(tmp_path, tiny_policy, step=2)
    resumed = RunLog(validate=None, metric="valid/full/ndcg@10")
    resumed.load_state(tmp_path)
    for each in (run, resumed):
        each.finish(tiny_policy, step=2, samples=2)
        assert holds(tiny_policy, 2.0) and "best_step" not in each.rows[-1]


def test_the_last_policy_is_kept_where_that_is_asked_for(tiny_policy: SlatePolicy) -> None:
    scores = iter([0.3, 0.1])
    run = RunLog(validate=lambda _: {"valid/full/ndcg@10": next(scores)}, metric="valid/full/ndcg@10", keep_last=True)
    for step in (1, 2):
        fill(tiny_policy, float(step))
        run.validate(tiny_policy, step=step, samples=step)
    run.finish(tiny_policy, step=2, samples=2)
    assert holds(tiny_policy, 2.0)
    assert run.best_step == 1
    assert run.rows[-1]["best_step"] == 1


def test_what_is_kept_is_a_copy(tiny_policy: SlatePolicy) -> None:
    run = RunLog(validate=lambda _: {"m": 1.0}, metric="m")
    before = copy.deepcopy(tiny_policy.state_dict())
    run.validate(tiny_policy, step=1, samples=1)
    with torch.no_grad():
        for parameter in tiny_policy.parameters():
            parameter.zero_()
    run.finish(tiny_policy, step=2, samples=2)
    assert all(torch.equal(weight, before[name]) for name, weight in tiny_policy.state_dict().items())
