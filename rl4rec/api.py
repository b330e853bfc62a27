"""Training without the pipeline: what the stages sft, crossfit and rl do, from Python and without files to name.

The functions have the names of the stages, take the same sections of settings and give the same weights, to the last
bit. What they leave to the pipeline: resuming after an interruption, MLflow, and several processes.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import torch
from transformers import PreTrainedTokenizerFast

from rl4rec.data.dataset import PreparedData
from rl4rec.errors import UserError
from rl4rec.evaluation.validation import validate
from rl4rec.model.create import create_policy
from rl4rec.model.crossfit_embeddings import LeaveOutEmbeddings
from rl4rec.model.load import load_policy
from rl4rec.model.policy import SlatePolicy, SlatePolicyConfig
from rl4rec.params import PolicyParams, RLParams, SFTParams
from rl4rec.train.crossfit import fit_leave_out
from rl4rec.train.grpo import train_grpo
from rl4rec.train.monitor import Monitor, Row, save_policy
from rl4rec.train.ppo import PPOTrainer
from rl4rec.train.prompts import check_slate_fits
from rl4rec.train.rewards import GainsFunction
from rl4rec.train.seeding import seed_everything
from rl4rec.train.sft import train_sft


@dataclass(frozen=True)
class Trained:
    """A trained policy.

    Attributes:
        policy: in evaluation mode, on the accelerator where there is one.
        tokenizer: of its vocabulary.
        log: rows of the training log, as `docs/metrics.md` explains them; the last one is the summary.
    """

    policy: SlatePolicy
    tokenizer: PreTrainedTokenizerFast
    log: list[Row]

    def save(self, folder: Path | str) -> None:
        """Write a folder like the pipeline's `models/<name>`, for `load_policy`, `load_recommender` or `rl4rec serve`.

        Args:
            folder: replaced whole if it is there.
        """
        folder = Path(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        save_policy(self.policy, folder)
        self.tokenizer.save_pretrained(folder)


def sft(data: PreparedData, policy: PolicyParams, params: SFTParams) -> Trained:
    """Train a new policy by next-item cross-entropy, as stage `sft` does.

    Args:
        data: its training parts are used, its validation fold chooses the best epoch.
        policy: the `policy` section.
        params: the `sft` section.

    Returns:
        The best policy by validation.

    Raises:
        UserError: nothing to learn from, training has diverged, or a setting that only the pipeline can follow.

    Examples:
        >>> warm = rl4rec.sft(data, params.policy, params.sft)
    """
    if params.init == "champion":
        raise UserError("sft.init: champion: the champion is fetched by the pipeline only; use `sft.init: fresh`")
    with _workspace() as folder:
        best = folder / "best"
        seed_everything(params.seed)
        vocabulary = PreTrainedTokenizerFast.from_pretrained(data.tokenizer_folder)
        created, tokenizer = create_policy(policy, data.item_ids, vocabulary)
        rows: list[Row] = []
        monitor = Monitor(
            validate=(lambda p: validate(p.factors, data, k=10)) if params.feedback == "training" else None,
            metric="full/ndcg@10",
            report=lambda row: rows.append(dict(row)),
            best_folder=best,
            patience=params.early_stopping_patience,
        )
        train_sft(created, tokenizer, data, params, monitor, checkpoints=folder / "checkpoints", digest="")
        tokenizer.save_pretrained(best)
        return _read(best, rows)


def crossfit(
    start: Trained | Path | str, data: PreparedData, sft: SFTParams, rl: RLParams
) -> LeaveOutEmbeddings | None:
    """Fit item embeddings that never saw the targets RL is rewarded for, as stage `crossfit` does.

    Args:
        start: the SFT policy, or its folder.
        data: the data it was trained on.
        sft: the `sft` section: optimizer, loss and batches are the same here.
        rl: the `rl` section, of which `crossfit` and `feedback` count.

    Returns:
        The tables for `ppo` and `grpo`; None with `rl.crossfit.split_points: 0`.

    Raises:
        UserError: nothing to learn from, or training has diverged.
    """

    def monitor(earlier: PreparedData, table: int, best: Path) -> Monitor:
        return Monitor(
            validate=lambda p: validate(p.factors, earlier, k=10),
            metric="full/ndcg@10",
            report=lambda row: None,
            best_folder=best,
            keep_last=True,
        )

    with _workspace() as folder:
        origin = _folder_of(start, folder)
        return fit_leave_out(
            origin,
            PreTrainedTokenizerFast.from_pretrained(origin),
            data,
            sft,
            rl.crossfit,
            latest=rl.feedback == "latest",
            make_monitor=monitor,
            checkpoints=folder / "checkpoints",
            digest="",
        )


def ppo(
    start: Trained | Path | str,
    data: PreparedData,
    rl: RLParams,
    *,
    leave_out: LeaveOutEmbeddings | None = None,
    own_reward: GainsFunction | None = None,
) -> Trained:
    """Fine-tune a policy on the reward with PPO, as stage `rl@ppo` does.

    Args:
        start: the SFT policy, which stays as it is, or its folder.
        data: the data it was trained on.
        rl: the `rl` section; `rl.ppo` has PPO's own settings.
        leave_out: what `crossfit` returned.
        own_reward: a reward of your own instead of `rl.reward_type`: slates (n, k) of item rows, targets (n,) and the
            data -> the gain of each slot, (n, k) floats, whose sum is the slate's reward.

    Returns:
        The last policy, or the best by validation with `rl.keep: best`.

    Raises:
        UserError: `leave_out` does not fit `rl.crossfit`, a slate does not fit the catalogue, your own reward fails,
            or training has diverged.
    """
    return _rl("ppo", start, data, rl, leave_out, own_reward)


def grpo(
    start: Trained | Path | str,
    data: PreparedData,
    rl: RLParams,
    *,
    leave_out: LeaveOutEmbeddings | None = None,
    own_reward: GainsFunction | None = None,
) -> Trained:
    """Fine-tune a policy on the reward with GRPO, as stage `rl@grpo` does.

    Args:
        start: the SFT policy, which stays as it is, or its folder.
        data: the data it was trained on.
        rl: the `rl` section; `rl.grpo` has GRPO's own settings.
        leave_out: what `crossfit` returned.
        own_reward: as of `ppo`.

    Returns:
        The last policy, or the best by validation with `rl.keep: best`.

    Raises:
        UserError: as `ppo`.

    Examples:
        >>> leave_out = rl4rec.crossfit(warm, data, params.sft, params.rl)
        >>> tuned = rl4rec.grpo(warm, data, params.rl, leave_out=leave_out)
    """
    return _rl("grpo", start, data, rl, leave_out, own_reward)


def _rl(
    algorithm: Literal["ppo", "grpo"],
    start: Trained | Path | str,
    data: PreparedData,
    rl: RLParams,
    leave_out: LeaveOutEmbeddings | None,
    own_reward: GainsFunction | None,
) -> Trained:
    tables = 0 if leave_out is None else leave_out.tables
    if tables != rl.crossfit.split_points:
        raise UserError(
            f"rl.crossfit.split_points is {rl.crossfit.split_points}, but leave_out has {tables} tables: hand over "
            "what `crossfit(start, data, sft, rl)` returns, or set split_points: 0"
        )
    if own_reward is not None:
        rl = rl.model_copy(update={"reward_type": "custom"})
    with _workspace() as folder:
        origin, best, checkpoints = _folder_of(start, folder), folder / "best", folder / "checkpoints"
        config = SlatePolicyConfig.from_pretrained(origin)
        latest = rl.feedback == "latest"
        check_slate_fits(data, k=rl.k, max_history=config.max_history, mask_seen=config.mask_seen, latest=latest)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(origin)
        rows: list[Row] = []
        monitor = Monitor(
            validate=None if latest else lambda p: validate(p.factors, data, k=rl.k),
            metric=f"full/ndcg@{rl.k}",
            report=lambda row: rows.append(dict(row)),
            best_folder=best,
            keep_last=rl.keep == "last",
            section=f"rl.{algorithm}",
            max_kl=rl.max_kl,
        )
        if algorithm == "ppo":
            seed_everything(rl.ppo.seed)
            policy = SlatePolicy.from_pretrained(origin)
            trainer = PPOTrainer(policy, data, rl, monitor, checkpoints, leave_out=leave_out, own_reward=own_reward)
            trainer.train(digest="")
        else:
            seed_everything(rl.grpo.seed)
            train_grpo(
                origin,
                tokenizer,
                data,
                rl,
                monitor,
                checkpoints=checkpoints,
                digest="",
                leave_out=leave_out,
                own_reward=own_reward,
            )
        tokenizer.save_pretrained(best)
        return _read(best, rows)


@contextmanager
def _workspace() -> Iterator[Path]:
    """A folder for checkpoints and the best policy, gone afterwards; quiet about what a user cannot act on."""
    with TemporaryDirectory(prefix="rl4rec-") as folder, warnings.catch_warnings():
        # TRL 1.16 reads a property that transformers 5.23 has renamed.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield Path(folder)


def _folder_of(start: Trained | Path | str, scratch: Path) -> Path:
    if not isinstance(start, Trained):
        load_policy(Path(start))  # with its checks
        return Path(start)
    start.save(scratch / "start")
    return scratch / "start"


def _read(folder: Path, rows: list[Row]) -> Trained:
    policy = load_policy(folder)
    torch.nn.Module.to(policy, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    return Trained(policy, PreTrainedTokenizerFast.from_pretrained(folder), rows)
