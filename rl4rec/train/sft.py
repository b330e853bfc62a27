"""Supervised warm start: next-item cross-entropy over every position of a sequence.

Sequences are cut into windows, which are visited epoch by epoch in a seeded order. Items are scored in chunks, with
bfloat16 products where they are fast (`rl4rec.train.cross_entropy`).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from rl4rec.data.dataset import PreparedData, Ragged
from rl4rec.errors import UserError
from rl4rec.model.batch import Histories, place_parts
from rl4rec.model.device import to_device
from rl4rec.model.policy import IntArray, SlatePolicy
from rl4rec.params import SFTParams
from rl4rec.train.cross_entropy import NONE, ItemSampler, NextItemsLoss, SampledItems
from rl4rec.train.log import RunLog
from rl4rec.train.loop import Stats, Trainer
from rl4rec.train.precision import FLOAT32, Precision
from rl4rec.train.seeding import seed_everything


class SFTTrainer(Trainer):
    """Trains a policy to predict what came next.

    Args:
        policy: trained in place.
        data: whose training parts are used.
        params: the `sft` section.
        run: takes log rows and validations.
        name: of the training, for its progress.

    Raises:
        UserError: there is nothing to learn from.
    """

    name, unit, validate_start = "sft", "tokens", False

    def __init__(
        self, policy: SlatePolicy, data: PreparedData, params: SFTParams, run: RunLog, *, name: str = "sft"
    ) -> None:
        self.name, self.params = name, params
        sequences = data.train_sequences(latest=params.feedback == "latest")
        self.windows = cut_windows(sequences, policy.config.max_history + 1)
        if not self.windows:
            raise UserError(
                f"{name}: nobody has two training items (validation and test targets are held out): there is nothing "
                "to learn. Bring more data"
            )
        self.windows_per_step = params.batch_size * params.gradient_accumulation_steps  # of all processes
        seed_everything(params.seed)  # of dropout and of the sampled softmax
        super().__init__(policy, run, eval_every=1, logging_steps=params.logging_steps, precision=params.precision)
        self.steps_per_epoch = math.ceil(len(self.windows) / self.windows_per_step)
        self._eval_every = max(1, params.eval_every_epochs * self.steps_per_epoch)
        self.prepare(
            params,
            weight_decay=params.weight_decay,
            betas=(params.adam_beta1, params.adam_beta2),
            warmup_steps=params.warmup_steps,
            total_steps=params.max_steps or math.ceil(params.num_epochs * self.steps_per_epoch),
            samples_per_step=self.windows_per_step,
        )
        self.next_items_loss = NextItemsLoss(
            window=params.target_window,
            decay=params.target_decay,
            label_smoothing=params.label_smoothing,
            matmul_dtype=self.precision.softmax,
        )
        self.sampler: ItemSampler | None = None  # None: softmax over the whole catalogue
        if params.softmax == "sampled":
            counts = torch.from_numpy(data.item_counts)
            self.sampler = ItemSampler(counts, draws=params.sampled_items, exponent=params.sampling_exponent)

    def train_step(self, step: int, *, logged: bool) -> Stats:
        """One update on the mean over all positions of the step's windows, those of all processes."""
        self.policy.train()
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        chosen = self.step_windows(step)
        positions = sum(len(self.windows[row]) - 1 for row in chosen.tolist())
        mine = chosen[rank::processes]
        total = torch.zeros((), device=self.accelerator.device)
        for start in range(0, math.ceil(len(chosen) / processes), self.params.batch_size):
            rows = mine[start : start + self.params.batch_size].tolist()
            if not rows:
                self.backward(self.read_nothing())
                continue
            windows = pad_windows([self.windows[row] for row in rows])
            sampled = None if self.sampler is None else self.sampler.draw(self.accelerator.device)
            loss = sum_over_positions(self.policy, windows, self.next_items_loss, sampled, precision=self.precision)
            loss = loss / positions * processes
            self.backward(loss)
            total += loss.detach()
        return {"loss": total, "grad_norm": self.update(), "tokens": positions}

    def step_windows(self, step: int) -> Tensor:
        """Which windows a step visits: its part of the epoch's order, a function of the seed and the step."""
        epoch, place = divmod(step, self.steps_per_epoch)
        generator = torch.Generator().manual_seed(self.params.seed + epoch)
        order = torch.randperm(len(self.windows), generator=generator)
        chosen = order[place * self.windows_per_step : (place + 1) * self.windows_per_step]
        missing = self.accelerator.num_processes - len(chosen)
        return chosen if missing <= 0 else torch.cat([chosen, order[:missing]])  # every process has one at least


def sum_over_positions(
    policy: SlatePolicy,
    windows: Tensor,
    next_items_loss: NextItemsLoss,
    sampled: SampledItems | None = None,
    *,
    precision: Precision = FLOAT32,
) -> Tensor:
    """Summed SFT loss of all positions of some windows, () float32.

    Args:
        policy: what reads each window without its last item.
        windows: (b, l + 1) right-padded with `NONE`, on the host, where it is planned what is read together.
        next_items_loss: what each position should predict.
        sampled: estimate the softmax's sum from these items instead of the whole catalogue.
        precision: of the reading.
    """
    device = policy.device
    following = next_items_loss.following(windows[:, 1:])  # (b, l, window)
    histories = Histories(to_device(windows[:, :-1], device), (windows != NONE).sum(1) - 1)
    groups = policy.length_groups(histories.lengths)
    vectors: list[Tensor] = []
    expected: list[Tensor] = []
    for rows, (_, width) in zip(place_parts([rows for rows, _ in groups], device), groups, strict=True):
        with precision.reading():
            read = policy.encode_positions(histories[rows].first(width)).flatten(0, 1)
        next_items = following[rows.host, :width].flatten(0, 1)
        inside = (next_items[:, 0] != NONE).nonzero().squeeze(1)
        vectors.append(read[to_device(inside, device)])
        expected.append(next_items[inside])
    return next_items_loss(
        torch.cat(vectors),
        policy.item_embeddings(),
        to_device(torch.cat(expected), device),
        sampled,
        unit_rows=policy.config.score == "cosine",
    )


def cut_windows(sequences: Ragged, size: int) -> list[IntArray]:
    """Sequences cut, from their end, into windows of at most `size` items that overlap by one.

    Every item but a sequence's first follows exactly one position. Sequences of one item are left out.
    """
    cut = []
    for row in range(len(sequences)):
        items = sequences[row]
        end = len(items)
        while end >= 2:
            start = max(0, end - size)
            cut.append(items[start:end])
            end = start + 1
    return cut


def pad_windows(windows: list[IntArray]) -> Tensor:
    """Windows as one tensor (b, l + 1), right-padded with `NONE`."""
    padded = np.full((len(windows), max(map(len, windows))), NONE, dtype=np.int64)
    for row, items in enumerate(windows):
        padded[row, : len(items)] = items
    return torch.from_numpy(padded)
