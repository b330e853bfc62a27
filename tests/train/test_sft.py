"""SFT: windows and batches by hand, learning, determinism, resuming."""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from rl4rec.data.dataset import PreparedData, Ragged
from rl4rec.model.create import create_policy
from rl4rec.model.policy import SlatePolicy
from rl4rec.params import PolicyParams, SFTParams
from rl4rec.train.cross_entropy import IGNORE
from rl4rec.train.seeding import seed_everything
from rl4rec.train.sft import next_item_batch, train_sft, windows
from tests.train.helpers import make_monitor, raises_interrupted, same_weights

PARAMS = SFTParams(
    num_epochs=8, batch_size=16, learning_rate=1e-2, eval_every_epochs=2, logging_steps=4, precision="fp32"
)


def test_windows_label_every_item_but_the_first_exactly_once() -> None:
    cut = windows(Ragged.from_rows([[1, 2, 3, 4, 5, 6, 7], [8, 9], [10]]), 4)
    assert cut == [[4, 5, 6, 7], [1, 2, 3, 4], [8, 9]]


def test_batches_shift_the_labels_and_pad_on_the_right() -> None:
    batch = next_item_batch([{"input_ids": [5, 6, 7]}, {"input_ids": [8, 9]}])
    assert batch["input_ids"].tolist() == [[5, 6], [8, -1]]
    assert batch["labels"].tolist() == [[6, 7], [9, IGNORE]]


def run(
    data: PreparedData,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    params: SFTParams = PARAMS,
    interrupt_at: int | None = None,
) -> list[dict[str, float]]:
    rows: list[dict[str, float]] = []
    seed_everything(params.seed)
    policy, _ = create_policy(
        PolicyParams(n_layer=1, n_embd=16, n_head=2, dropout=0.1, max_history=8), data.item_ids, tokenizer
    )
    monitor = make_monitor(data, folder / "best", rows, interrupt_at=interrupt_at)
    train_sft(policy, tokenizer, data, params, monitor, checkpoints=folder / "checkpoints", digest="d")
    return rows


@pytest.mark.parametrize("changes", [{}, {"target_window": 1}, {"softmax": "sampled", "sampled_items": 16}])
def test_learns_the_pattern_and_logs_it(
    tiny_data: PreparedData, tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path, changes: dict[str, object]
) -> None:
    params = PARAMS.model_copy(update={"num_epochs": 30} | changes)
    rows = run(tiny_data, tiny_tokenizer, tmp_path, params=params)
    validations = [row["valid/full/ndcg@3"] for row in rows if "valid/full/ndcg@3" in row]
    assert max(validations) > 0.7  # chance is below .1
    best = SlatePolicy.from_pretrained(tmp_path / "best").train(False)
    split = tiny_data.split("valid")
    hits = [int(best.scores([split.history[u]])[0].argmax()) == split.targets[u] for u in range(60)]
    assert sum(hits) > 30
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert losses[-1] < losses[0] / 2
    assert rows[-1]["summary"] and rows[-1]["steps"] == rows[-2]["step"] == 30 * 4
    assert all(row["train/tokens_per_second"] > 0 for row in rows if "train/loss" in row)


def test_same_seed_same_weights(
    tiny_data: PreparedData, tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        run(tiny_data, tiny_tokenizer, tmp_path / name)
    run(tiny_data, tiny_tokenizer, tmp_path / "c", params=PARAMS.model_copy(update={"seed": 1}))
    assert same_weights(tmp_path / "a/best", tmp_path / "b/best")
    assert not same_weights(tmp_path / "a/best", tmp_path / "c/best")


@pytest.mark.parametrize("softmax", ["full", "sampled"])
def test_resumed_equals_uninterrupted(
    tiny_data: PreparedData, tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path, softmax: str
) -> None:
    params = PARAMS.model_copy(update={"softmax": softmax, "sampled_items": 16})
    whole = run(tiny_data, tiny_tokenizer, tmp_path / "whole", params=params)
    assert raises_interrupted(lambda: run(tiny_data, tiny_tokenizer, tmp_path / "cut", params=params, interrupt_at=20))
    resumed = run(tiny_data, tiny_tokenizer, tmp_path / "cut", params=params)
    assert same_weights(tmp_path / "whole/best", tmp_path / "cut/best")
    clocks = {"seconds", "train/tokens_per_second", "train_seconds", "peak_memory_mb"}
    strip = [[{k: v for k, v in row.items() if k not in clocks} for row in rows] for rows in (whole, resumed)]
    assert strip[0] == strip[1]


def test_patience_stops_training(
    tiny_data: PreparedData, tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    rows: list[dict[str, float]] = []
    policy, _ = create_policy(
        PolicyParams(n_layer=1, n_embd=16, n_head=2, max_history=8), tiny_data.item_ids, tiny_tokenizer
    )
    monitor = make_monitor(tiny_data, tmp_path / "best", rows)
    monitor._validate = lambda _: {"full/ndcg@3": 0.5}  # never better than the first
    monitor._patience = 2
    train_sft(policy, tiny_tokenizer, tiny_data, PARAMS, monitor, checkpoints=tmp_path / "ck", digest="d")
    assert rows[-1]["steps"] == 3 * 8  # validations every 2 epochs of 4 steps: the first, then two without a better one


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss_is_averaged_over_the_positions_of_the_whole_accumulated_batch(
    tiny_data: PreparedData, tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path, smoothing: float
) -> None:
    """Two micro-batches of 8 give the weights of one batch of 16."""
    for name, size, accumulation in (("one", 16, 1), ("two", 8, 2)):
        params = PARAMS.model_copy(
            update={
                "batch_size": size,
                "gradient_accumulation_steps": accumulation,
                "max_steps": 1,
                "label_smoothing": smoothing,
                "learning_rate": 1e-3,
            }
        )
        seed_everything(0)
        policy, _ = create_policy(
            PolicyParams(n_layer=1, n_embd=16, n_head=2, dropout=0.0, max_history=8),
            tiny_data.item_ids,
            tiny_tokenizer,
        )
        # rows of one length, so that both runs draw the same sixteen sequences
        from dataclasses import replace

        data = replace(tiny_data, sequences=Ragged.from_rows([list(range(r % 9, r % 9 + 7)) for r in range(16)]))
        monitor = make_monitor(data, tmp_path / name, [])
        train_sft(policy, tiny_tokenizer, data, params, monitor, checkpoints=tmp_path / f"{name}-ck", digest="d")
    one, two = (SlatePolicy.from_pretrained(tmp_path / name).state_dict() for name in ("one", "two"))
    assert all(torch.allclose(one[key], two[key], atol=1e-5) for key in one)
