"""Supervised warm start on TRL's SFTTrainer: next-item cross-entropy over every position of a sequence.

One override: `compute_loss`, which TRL documents as the place for a loss of one's own. TRL's fused head scores every
token of the vocabulary in float32; ours scores the items only, in chunks, with bfloat16 products where they are fast.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PrinterCallback
from trl import SFTConfig, SFTTrainer

from rl4rec._process import refuse_data_parallel
from rl4rec.data.dataset import PreparedData, Ragged
from rl4rec.errors import UserError
from rl4rec.model.policy import SlatePolicy
from rl4rec.params import SFTParams
from rl4rec.train.callback import MonitorCallback
from rl4rec.train.checkpoints import SafeCheckpoints, latest_checkpoint
from rl4rec.train.cross_entropy import IGNORE, NextItemsLoss, fast_matmul_dtype
from rl4rec.train.item_sampler import ItemSampler
from rl4rec.train.monitor import Monitor


def train_sft(
    policy: SlatePolicy,
    tokenizer: PreTrainedTokenizerBase,
    data: PreparedData,
    params: SFTParams,
    monitor: Monitor,
    *,
    checkpoints: Path,
    digest: str,
    name: str = "sft",
) -> None:
    """Train `policy` in place; the best one by validation is in the monitor's folder.

    Args:
        policy: the policy to train.
        tokenizer: of the policy's vocabulary.
        data: training parts of the sequences are used.
        params: the `sft` section.
        monitor: takes log rows and validations.
        checkpoints: folder for resuming an interrupted run, removed by the caller after success.
        digest: identifies the run; only its own checkpoints are resumed.
        name: of the training, for its progress.
    """
    sequences = data.train_sequences(latest=params.feedback == "latest")
    cut = windows(sequences, policy.config.max_history + 1)
    if not cut:
        raise UserError(
            "no user has two training items (the last two of each are held out): there is nothing to learn. "
            "Bring more data"
        )
    dataset = Dataset.from_dict({"input_ids": cut})
    resume = latest_checkpoint(checkpoints, digest)
    arguments = sft_arguments(params, checkpoints, steps_per_epoch=-(-len(dataset) // _sequences_per_step(params)))
    refuse_data_parallel(arguments.n_gpu)
    policy.next_items_loss = NextItemsLoss(
        window=params.target_window,
        decay=params.target_decay,
        label_smoothing=params.label_smoothing,
        matmul_dtype=fast_matmul_dtype(params.precision, arguments.device),
    )
    trainer = SlateSFTTrainer(
        model=policy,
        args=arguments,
        train_dataset=dataset,
        processing_class=tokenizer,
        data_collator=next_item_batch,
    )
    if params.softmax == "sampled":
        counts = torch.from_numpy(data.item_counts)
        trainer.sampler = ItemSampler(counts, draws=params.sampled_items, exponent=params.sampling_exponent)
    trainer.remove_callback(PrinterCallback)  # the monitor has the numbers
    trainer.add_callback(
        MonitorCallback(
            monitor,
            policy,
            checkpoints,
            rename=trainer.rename,
            every=int(arguments.save_steps),
            samples_per_step=_sequences_per_step(params),
            name=name,
        )
    )
    if resume is not None:
        monitor.load_state(resume)
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    trainer.accelerator.wait_for_everyone()  # nobody may still be writing when the caller cleans up


class SlateSFTTrainer(SafeCheckpoints, SFTTrainer):
    """SFTTrainer with the policy's own loss over item tokens."""

    tokens_in_window = 0  # labelled positions since the last log entry
    sampler: ItemSampler | None = None  # None: softmax over the whole catalogue

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Mean cross-entropy over the labelled positions of the (accumulated, global) batch."""
        self.tokens_in_window += int((inputs["labels"] != IGNORE).sum())
        sampled = None if self.sampler is None else self.sampler.draw(inputs["labels"].device)
        loss: Tensor = model(**inputs, num_items_in_batch=num_items_in_batch, sampled=sampled).loss
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes
        return loss

    def rename(self, logs: Mapping[str, float], steps: int, seconds: float) -> dict[str, float]:
        """A log entry under our names; `steps` and `seconds` have passed since the last one."""
        row = {f"train/{name}": logs[name] for name in ("loss", "grad_norm", "learning_rate") if name in logs}
        row["train/tokens_per_second"] = self.tokens_in_window / max(seconds, 1e-9)
        self.tokens_in_window = 0
        return row


def windows(sequences: Ragged, size: int) -> list[list[int]]:
    """Sequences cut, from their end, into windows of at most `size` items that overlap by one.

    Every item but a sequence's first is the label of exactly one position. Sequences of one item are left out.
    """
    cut = []
    for row in range(len(sequences)):
        items = sequences[row].tolist()
        end = len(items)
        while end >= 2:
            start = max(0, end - size)
            cut.append(items[start:end])
            end = start + 1
    return cut


def next_item_batch(examples: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    """Right-padded inputs (b, l) and the item that follows each position as label (b, l)."""
    longest = max(len(example["input_ids"]) for example in examples) - 1
    inputs = np.full((len(examples), longest), -1, dtype=np.int64)
    labels = np.full((len(examples), longest), IGNORE, dtype=np.int64)
    for row, example in enumerate(examples):
        items = example["input_ids"]
        inputs[row, : len(items) - 1] = items[:-1]
        labels[row, : len(items) - 1] = items[1:]
    return {"input_ids": torch.from_numpy(inputs), "labels": torch.from_numpy(labels)}


def _sequences_per_step(params: SFTParams) -> int:
    world = int(os.environ.get("WORLD_SIZE", "1"))
    return params.batch_size * params.gradient_accumulation_steps * world


def sft_arguments(params: SFTParams, folder: Path, *, steps_per_epoch: int) -> SFTConfig:
    """The Trainer's settings, every one explicit: TRL's defaults (bf16, checkpointing) drift between releases."""
    every = max(1, params.eval_every_epochs * steps_per_epoch)
    return SFTConfig(
        output_dir=str(folder),
        num_train_epochs=params.num_epochs,
        max_steps=params.max_steps or -1,
        per_device_train_batch_size=params.batch_size,
        gradient_accumulation_steps=params.gradient_accumulation_steps,
        learning_rate=params.learning_rate,
        weight_decay=params.weight_decay,
        adam_beta1=params.adam_beta1,
        adam_beta2=params.adam_beta2,
        adam_epsilon=1e-8,
        optim="adamw_torch",
        lr_scheduler_type=params.lr_scheduler,
        warmup_steps=params.warmup_steps,
        max_grad_norm=params.max_grad_norm,
        logging_steps=params.logging_steps,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=every,
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,  # MonitorCallback has the progress
        seed=params.seed,
        data_seed=params.seed,
        bf16=False,
        fp16=False,
        tf32=None,
        activation_checkpointing=False,
        train_sampling_strategy="random",  # `length_groups` keeps padding low, not the sampler
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        max_length=None,
        packing=False,
        padding_free=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
