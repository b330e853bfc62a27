"""SFT: windows and batches by hand, learning, determinism, resuming."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerBase

from rl4rec.data.dataset import PreparedData, Ragged
from rl4rec.errors import UserError
from rl4rec.model.create import create_policy
from rl4rec.model.policy import SlatePolicy
from rl4rec.params import PolicyParams, SFTParams
from rl4rec.train.cross_entropy import NONE, NextItemsLoss
from rl4rec.train.seeding import seed_everything
from rl4rec.train.sft import SFTTrainer, cut_windows, pad_windows, sum_over_positions
from tests.train.helpers import make_run, measured, raises_interrupted, same_weights

PARAMS = SFTParams(
    num_epochs=8, batch_size=16, learning_rate=1e-2, eval_every_epochs=2, logging_steps=4, precision="fp32"
)


def test_every_item_but_the_first_follows_a_position_of_one_window() -> None:
    cut = cut_windows(Ragged.from_rows([[1, 2, 3, 4, 5, 6, 7], [8, 9], [10]]), 4)
    assert [window.tolist() for window in cut] == [[4, 5, 6, 7], [1, 2, 3, 4], [8, 9]]


def test_windows_are_padded_on_the_right() -> None:
    assert pad_windows([np.array([5, 6, 7]), np.array([8, 9])]).tolist() == [[5, 6, 7], [8, 9, NONE]]


def test_the_loss_is_the_language_models_own_restricted_to_items(tiny_policy: SlatePolicy) -> None:
    tiny_policy.config.score = "dot"  # the language model's own
    windows = torch.tensor([[1, 2, 3, 9], [4, 5, 6, NONE]])
    loss = sum_over_positions(tiny_policy, windows, NextItemsLoss())
    offset = tiny_policy.config.item_offset
    logits = tiny_policy.lm(input_ids=windows[:, :-1].clamp_min(0) + offset).logits[..., offset:]
    labels = torch.tensor([[2, 3, 9], [5, 6, -100]])
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_loss_of_cosine_scores_is_that_of_the_policys_scores(tiny_policy: SlatePolicy) -> None:
    tiny_policy.config.score, tiny_policy.config.score_temperature = "cosine", 0.1
    loss = sum_over_positions(tiny_policy, torch.tensor([[1, 2, 3, 9]]), NextItemsLoss())
    scores = torch.cat([tiny_policy.scores([np.arange(1, end)]) for end in (2, 3, 4)])
    expected = torch.nn.functional.cross_entropy(scores, torch.tensor([2, 3, 9]), reduction="sum")
    assert loss.item() == pytest.approx(expected.item(), abs=1e-4)


def test_windows_of_all_lengths_together_have_the_sum_of_their_losses(tiny_policy: SlatePolicy) -> None:
    """Also with targets further ahead: what follows a position never reaches into another window."""
    windows = [np.arange(1, 8), np.array([4, 9]), np.array([3, 8, 2, 11, 20, 5])]
    loss = NextItemsLoss(window=3, decay=0.5, label_smoothing=0.1)
    together = sum_over_positions(tiny_policy, pad_windows(windows), loss)
    alone = [sum_over_positions(tiny_policy, pad_windows([window]), loss).item() for window in windows]
    assert together.item() == pytest.approx(sum(alone), rel=1e-5)


def trainer_for(
    data: PreparedData,
    tokenizer: PreTrainedTokenizerBase,
    *,
    params: SFTParams = PARAMS,
    rows: list[dict[str, float]] | None = None,
    interrupt_at: int | None = None,
    dropout: float = 0.1,
) -> SFTTrainer:
    seed_everything(params.seed)
    policy, _ = create_policy(
        PolicyParams(n_layer=1, n_embd=16, n_head=2, dropout=dropout, max_history=8), data.item_ids, tokenizer
    )
    return SFTTrainer(policy, data, params, make_run(data, [] if rows is None else rows, interrupt_at=interrupt_at))


@pytest.mark.parametrize("changes", [{}, {"target_window": 1}, {"softmax": "sampled", "sampled_items": 16}])
def test_learns_the_pattern_and_logs_it(
    tiny_data: PreparedData, tiny_tokenizer: PreTrainedTokenizerBase, changes: dict[str, object]
) -> None:
    params = PARAMS.model_copy(update={"num_epochs": 30} | changes)
    rows: list[dict[str, float]] = []
    trainer = trainer_for(tiny_data, tiny_tokenizer, params=params, rows=rows)
    trainer.train()
    validations = [row["valid/full/ndcg@3"] for row in rows if "valid/full/ndcg@3" in row]
    assert max(validations) > 0.7  # chance is below .1
    best = trainer.policy.train(False)
    split = tiny_data.split("valid")
    hits = [int(best.scores([split.history[u]])[0].argmax()) == split.targets[u] for u in range(60)]
    assert sum(hits) > 30
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert losses[-1] < losses[0] / 2
    assert rows[-1]["summary"] and rows[-1]["steps"] == rows[-2]["step"] == 30 * 4
    assert all(row["train/tokens_per_second"] > 0 for row in rows if "train/loss" in row)
    assert all("train/tokens" not in row for row in rows)  # it is in the rate
    assert [row["step"] for row in rows if "valid/full/ndcg@3" in row] == list(range(8, 121, 8))  # every 2 epochs


def test_same_seed_same_weights(tiny_data: PreparedData, tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    ends = []
    for seed in (0, 0, 1):
        trainer = trainer_for(tiny_data, tiny_tokenizer, params=PARAMS.model_copy(update={"seed": seed}))
        trainer.train()
        ends.append(trainer.policy)
    assert same_weights(ends[0], ends[1]) and not same_weights(ends[0], ends[2])


@pytest.mark.parametrize("softmax", ["full", "sampled"])
def test_resumed_equals_uninterrupted(
    tiny_data: PreparedData, tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path, softmax: str
) -> None:
    params = PARAMS.model_copy(update={"softmax": softmax, "sampled_items": 16})
    whole: list[dict[str, float]] = []
    resumed: list[dict[str, float]] = []
    reference = trainer_for(tiny_data, tiny_tokenizer, params=params, rows=whole)
    reference.train()
    broken = trainer_for(tiny_data, tiny_tokenizer, params=params, interrupt_at=20)
    assert raises_interrupted(lambda: broken.train(checkpoints=tmp_path, digest="d"))
    again = trainer_for(tiny_data, tiny_tokenizer, params=params, rows=resumed)
    again.train(checkpoints=tmp_path, digest="d")
    assert same_weights(reference.policy, again.policy)
    assert measured(whole) == measured(resumed)


def test_patience_stops_training(tiny_data: PreparedData, tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    rows: list[dict[str, float]] = []
    trainer = trainer_for(tiny_data, tiny_tokenizer, rows=rows)
    trainer.run._validate = lambda _: {"valid/full/ndcg@3": 0.5}  # never better than the first
    trainer.run._patience = 2
    trainer.train()
    assert rows[-1]["steps"] == 3 * 8  # validations every 2 epochs of 4 steps: the first, then two without a better one


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss_is_averaged_over_the_positions_of_the_whole_accumulated_batch(
    tiny_data: PreparedData, tiny_tokenizer: PreTrainedTokenizerBase, smoothing: float
) -> None:
    """Micro-batches of 8 with accumulation 2 give the weights of batches of 16, whatever the windows' lengths."""
    ends = []
    for size, accumulation in ((16, 1), (8, 2)):
        params = PARAMS.model_copy(
            update={
                "batch_size": size,
                "gradient_accumulation_steps": accumulation,
                "max_steps": 2,
                "label_smoothing": smoothing,
                "learning_rate": 1e-3,
            }
        )
        trainer = trainer_for(tiny_data, tiny_tokenizer, params=params, dropout=0.0)
        trainer.train()
        ends.append(trainer.policy.state_dict())
    assert all(torch.allclose(ends[0][key], ends[1][key], atol=1e-5) for key in ends[0])


def test_the_loss_of_a_step_is_the_mean_over_its_positions(
    tiny_data: PreparedData, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    trainer = trainer_for(tiny_data, tiny_tokenizer, dropout=0.0)
    windows = [trainer.windows[row] for row in trainer.step_windows(0).tolist()]
    scores = [trainer.policy.scores([window[:end]]) for window in windows for end in range(1, len(window))]
    targets = torch.tensor([item for window in windows for item in window[1:]])
    trainer.next_items_loss = NextItemsLoss()
    expected = torch.nn.functional.cross_entropy(torch.cat(scores), targets).item()
    stats = trainer.train_step(0, logged=True)
    assert stats["tokens"] == len(targets)
    assert float(stats["loss"]) == pytest.approx(expected, rel=1e-4)


def test_every_epoch_visits_each_window_once_in_an_order_of_its_own(
    tiny_data: PreparedData, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    trainer = trainer_for(tiny_data, tiny_tokenizer)  # 60 windows, 16 a step
    assert [len(trainer.step_windows(step)) for step in range(4)] == [16, 16, 16, 12]
    epochs = [torch.cat([trainer.step_windows(4 * epoch + place) for place in range(4)]).tolist() for epoch in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(60))
    assert epochs[0] != epochs[1]
    other = trainer_for(tiny_data, tiny_tokenizer, params=PARAMS.model_copy(update={"seed": 5}))
    assert other.step_windows(0).tolist() != trainer.step_windows(0).tolist()


def test_every_process_has_a_window_at_the_end_of_an_epoch(
    tiny_data: PreparedData, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    data = replace(tiny_data, sequences=tiny_data.sequences.take(np.arange(7)))
    params = PARAMS.model_copy(update={"batch_size": 2})
    trainer = trainer_for(data, tiny_tokenizer, params=params)
    trainer.accelerator = SimpleNamespace(process_index=0, num_processes=3)
    trainer.windows_per_step, trainer.steps_per_epoch = 6, 2  # 7 windows: the second step has one
    assert len(trainer.step_windows(0)) == 6
    assert len(trainer.step_windows(1)) == 3
    assert not set(trainer.step_windows(1)[:1].tolist()) & set(trainer.step_windows(0).tolist())


def test_data_without_any_window_is_a_users_error(
    tiny_data: PreparedData, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    data = replace(tiny_data, sequences=Ragged.from_rows([[1, 2, 3]]))
    with pytest.raises(UserError, match="nobody has two training items"):
        trainer_for(data, tiny_tokenizer)
