"""Fitting the leave-out item embeddings: SFT with the body frozen, on data moved back by each split point."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import PreTrainedTokenizerBase

from rl4rec.data.dataset import PreparedData
from rl4rec.model.crossfit_embeddings import LeaveOutEmbeddings
from rl4rec.model.policy import SlatePolicy
from rl4rec.params import CrossfitParams, SFTParams
from rl4rec.train.monitor import Monitor
from rl4rec.train.seeding import seed_everything
from rl4rec.train.sft import train_sft


def split_data(data: PreparedData, crossfit: CrossfitParams, *, latest: bool) -> list[PreparedData]:
    """The data that each table is fitted to: without everyone's last 1, 2, ... items of the feedback.

    The held-out targets of table t, which RL's prompts ask for, are the validation fold of entry t.
    """
    first = 0 if latest else 1
    return [data.shortened(first + table) for table in range(crossfit.split_points)]


def fit_leave_out(
    start: Path,
    tokenizer: PreTrainedTokenizerBase,
    data: PreparedData,
    sft: SFTParams,
    crossfit: CrossfitParams,
    *,
    latest: bool,
    make_monitor: Callable[[PreparedData, int, Path], Monitor],
    checkpoints: Path,
    digest: str,
) -> LeaveOutEmbeddings | None:
    """Item embeddings that have not seen the held-out targets, under the body of the policy in `start`.

    They start from noise: fine-tuned from the policy's own they would still remember (Beauty: NDCG@10 .12 on targets
    that were held out of the fine-tuning, against .07 from noise).

    Args:
        start: the SFT policy.
        tokenizer: of its vocabulary.
        data: all of it; `split_data` says what each table sees.
        sft: how SFT trained; loss, optimizer and batches are the same here.
        crossfit: the `rl.crossfit` section.
        latest: the validation targets belong to the feedback.
        make_monitor: of (a table's data, its number, the folder for its best policy).
        checkpoints: for resuming, one folder a table.
        digest: identifies the run.

    Returns:
        The tables, or None if there are none to fit.
    """
    settings = sft.model_copy(update={"num_epochs": crossfit.num_epochs, "max_steps": None, "feedback": "training"})
    inputs, outputs, offset = [], [], 0
    for table, earlier in enumerate(split_data(data, crossfit, latest=latest)):
        seed_everything(crossfit.seed)
        policy = SlatePolicy.from_pretrained(start)
        _forget_items(policy)
        folder = checkpoints / f"table-{table}"
        monitor = make_monitor(earlier, table, folder / "best")
        train_sft(
            policy,
            tokenizer,
            earlier,
            settings,
            monitor,
            checkpoints=folder / "training",
            digest=f"{digest}-{table}",
            name=f"crossfit, table {table + 1} of {crossfit.split_points}",
        )
        best = SlatePolicy.from_pretrained(folder / "best")
        offset = best.config.item_offset
        rows = slice(offset, offset + best.num_items)
        inputs.append(best.get_input_embeddings().get_parameter("weight").detach()[rows].clone())
        outputs.append(best.item_embeddings().detach().clone())
    if not inputs:
        return None
    PartialState().wait_for_everyone()  # all have read what the caller is about to remove
    return LeaveOutEmbeddings(torch.stack(inputs), torch.stack(outputs), offset)


def _forget_items(policy: SlatePolicy) -> None:
    """Draw the item embeddings anew, as the architecture initialises them, and freeze everything else."""
    deviation = getattr(policy.lm.config.get_text_config(), "initializer_range", 0.02)
    rows = slice(policy.config.item_offset, policy.config.item_offset + policy.num_items)
    policy.requires_grad_(False)
    for layer in (policy.get_input_embeddings(), policy.get_output_embeddings()):
        weight = layer.get_parameter("weight")
        with torch.no_grad():
            weight[rows] = torch.randn_like(weight[rows]) * deviation
        weight.requires_grad_(True)
