"""Fitting the cross-fitted item embeddings: SFT with the body frozen, on data moved back by each split point."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import torch

from rl4rec.data.dataset import PreparedData
from rl4rec.errors import UserError
from rl4rec.model.crossfit_embeddings import CrossfitEmbeddings
from rl4rec.model.policy import SlatePolicy
from rl4rec.params import CrossfitParams, SFTParams
from rl4rec.train.log import RunLog
from rl4rec.train.seeding import seed_everything
from rl4rec.train.sft import SFTTrainer


def split_data(data: PreparedData, crossfit: CrossfitParams, *, latest: bool) -> list[PreparedData]:
    """The data that each table is fitted to: without everyone's last 1, 2, ... items of the training part.

    The held-out targets of table t, which RL's prompts ask for, are the validation fold of entry t.
    """
    return [data.hold_out(table, latest=latest) for table in range(crossfit.split_points)]


def fit_crossfit(
    start: SlatePolicy,
    data: PreparedData,
    sft: SFTParams,
    crossfit: CrossfitParams,
    *,
    latest: bool,
    make_run: Callable[[PreparedData, int], RunLog],
    checkpoints: Path | None = None,
    digest: str = "",
) -> CrossfitEmbeddings | None:
    """Item embeddings that have not seen the held-out targets, under the body of `start`, which stays as it is.

    They start from noise: fine-tuned from the policy's own they would still remember (Beauty: NDCG@10 .12 on targets
    that were held out of the fine-tuning, against .07 from noise).

    Args:
        start: the SFT policy.
        data: all of it; `split_data` says what each table sees.
        sft: how SFT trained; loss, optimizer and batches are the same here.
        crossfit: the `rl.crossfit` section.
        latest: the validation targets belong to the feedback.
        make_run: of (a table's data, its number).
        checkpoints: for resuming, one folder per table; None: it cannot be resumed.
        digest: identifies the run.

    Returns:
        The tables, or None if there are none to fit.
    """
    settings = sft.model_copy(update={"num_epochs": crossfit.num_epochs, "max_steps": None, "feedback": "training"})
    inputs, outputs = [], []
    rows = slice(start.config.item_offset, start.config.item_offset + start.num_items)
    for table, earlier in enumerate(split_data(data, crossfit, latest=latest)):
        if earlier.windows.valid.max(initial=0) < 2:
            raise UserError(
                f"rl.crossfit.split_points: table {table + 1} of {crossfit.split_points} is fitted without the last "
                f"{table + 1} training items of each user, and nobody has two more than that. Lower split_points, or "
                "bring more data"
            )
        seed_everything(crossfit.seed)
        policy = copy.deepcopy(start)
        _forget_items(policy)
        name = f"crossfit, table {table + 1} of {crossfit.split_points}"
        trainer = SFTTrainer(policy, earlier, settings, make_run(earlier, table), name=name)
        folder = None if checkpoints is None else checkpoints / f"table-{table}"
        trainer.train(checkpoints=folder, digest=f"{digest}-{table}")
        inputs.append(policy.get_input_embeddings().get_parameter("weight").detach()[rows].cpu().clone())
        outputs.append(policy.item_embeddings().detach().cpu().clone())
    if not inputs:
        return None
    return CrossfitEmbeddings(torch.stack(inputs), torch.stack(outputs), start.config.item_offset)


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
