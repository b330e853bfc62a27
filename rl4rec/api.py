"""The stages as functions: what each does, once, in memory. The scripts of `pipelines/` call them and save.

Each takes the section of the settings that is named like it. `on_log` takes the rows of the training log as they are
made, `on_validation` the step and metrics of each validation and stops the training by returning True. With a folder
for `checkpoints` an interrupted training goes on where it stopped, to the same weights; the caller removes the folder
when it has saved the result. Under `torchrun` or `accelerate launch` several processes train together; the scripts
start them themselves.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rl4rec.algorithms import CONTROL, POLICIES, get_policy
from rl4rec.data.dataset import PreparedData
from rl4rec.data.oddities import describe_repeats, repeated_share
from rl4rec.data.prepare import prepare
from rl4rec.data.vocabulary import build_tokenizer
from rl4rec.errors import UserError
from rl4rec.evaluation.compare import compare_policies
from rl4rec.evaluation.protocols import evaluate, evaluate_oracle
from rl4rec.evaluation.validation import validate
from rl4rec.metrics import metric_key
from rl4rec.model.create import create_policy, start_from_champion
from rl4rec.model.crossfit_embeddings import CrossfitEmbeddings
from rl4rec.model.load import load_policy, policy_digest, save_policy
from rl4rec.model.policy import SlatePolicy
from rl4rec.params import ALGORITHMS, CrossfitParams, Feedback, PolicyParams, RLParams, SFTParams
from rl4rec.train.checkpoints import run_digest
from rl4rec.train.crossfit import fit_crossfit
from rl4rec.train.log import OnLog, OnValidation, Row, RunLog
from rl4rec.train.loop import Trainer
from rl4rec.train.prompts import check_slate_fits
from rl4rec.train.rewards import GainsFunction
from rl4rec.train.seeding import seed_everything
from rl4rec.train.sft import SFTTrainer
from rl4rec.train.trainable import without_adapters

__all__ = [
    "Trained",
    "compare_policies",
    "continue_sft",
    "crossfit",
    "evaluate",
    "evaluate_oracle",
    "fine_tune",
    "grpo",
    "ppo",
    "prepare",
    "sft",
]

_log = logging.getLogger(__name__)


TRAINED_ON_PROMPTS = tuple(policy.key for policy in POLICIES if policy.trainer is not None)


@dataclass(frozen=True)
class Trained:
    """A trained policy.

    Attributes:
        policy: in evaluation mode, on the accelerator where there is one.
        tokenizer: of its vocabulary.
        log: rows of the training log, as `docs/metrics.md` explains them; the last one is the summary.
    """

    policy: SlatePolicy
    tokenizer: PreTrainedTokenizerBase
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


def sft(
    data: PreparedData,
    policy: PolicyParams,
    params: SFTParams,
    *,
    champion: Path | None = None,
    batch_size: int = 512,
    checkpoints: Path | None = None,
    on_log: OnLog | None = None,
    on_validation: OnValidation | None = None,
) -> Trained:
    """Train a new policy by next-item cross-entropy.

    Args:
        data: its training parts are used, its validation fold chooses the best epoch.
        policy: the `policy` section.
        params: the `sft` section.
        champion: for `init: champion`, the folder that stage `champion` wrote.
        batch_size: users that are validated at once.
        checkpoints: folder for resuming; None: an interrupted training starts anew.
        on_log: takes each log row.
        on_validation: takes each validation.

    Returns:
        The best policy by validation.

    Raises:
        UserError: nothing to learn from, or training has diverged.

    Examples:
        >>> warm = rl4rec.sft(data, params.policy, params.sft)
    """
    if params.init == "champion" and champion is None:
        raise UserError(
            "sft.init: champion: name the folder of the champion (`champion=`), or use `sft.init: fresh`. "
            "The pipeline fetches it from the registry"
        )
    repeats = describe_repeats(repeated_share(data.stats)) if policy.mask_seen else None
    if repeats:
        _log.warning("%s", repeats)
    seed_everything(params.seed)
    created, tokenizer = create_policy(policy, data.item_ids, build_tokenizer(data.item_ids))
    warm = params.init == "champion" and champion is not None and start_from_champion(created, data.item_ids, champion)
    digest = _digest(checkpoints, policy=policy, sft=params, data=data.data_hash, start=warm and policy_digest(created))
    run = RunLog(
        validate=_validate(data, 10, batch_size) if params.feedback == "training" else None,
        metric=metric_key("valid", "full", "ndcg", 10),
        on_log=on_log,
        on_validation=on_validation,
        patience=params.early_stopping_patience,
    )
    trainer = SFTTrainer(created, data, params, run)
    trainer.train(checkpoints=checkpoints, digest=digest)
    return _trained(trainer.policy, tokenizer, run)


def crossfit(
    start: Trained | Path | str,
    data: PreparedData,
    sft: SFTParams,
    crossfit: CrossfitParams,
    *,
    feedback: Feedback = "training",
    batch_size: int = 512,
    checkpoints: Path | None = None,
    on_log: OnLog | None = None,
) -> CrossfitEmbeddings | None:
    """Fit item embeddings that never saw the targets RL is rewarded for.

    Args:
        start: the SFT policy, which stays as it is, or its folder.
        data: the data it was trained on.
        sft: the `sft` section: optimizer, loss and batches are the same here.
        crossfit: the `rl.crossfit` section.
        feedback: `rl.feedback`: `latest` if the validation targets belong to it.
        batch_size: users that are validated at once.
        checkpoints: folder for resuming; None: an interrupted training starts anew.
        on_log: takes each log row, with the number of its `table`.

    Returns:
        The tables for `ppo`, `grpo` and `continue_sft`; None with `rl.crossfit.split_points: 0`.

    Raises:
        UserError: nothing to learn from, or training has diverged.
    """
    policy, _ = _start(start)

    def make_run(earlier: PreparedData, table: int) -> RunLog:
        return RunLog(
            validate=_validate(earlier, 10, batch_size),
            metric=metric_key("valid", "full", "ndcg", 10),
            on_log=None if on_log is None else lambda row: on_log({"table": table, **row}),
            keep_last=True,  # the fold that is measured is what RL will be rewarded for: nothing is chosen by it
        )

    return fit_crossfit(
        policy,
        data,
        sft,
        crossfit,
        latest=feedback == "latest",
        make_run=make_run,
        checkpoints=checkpoints,
        digest=_digest(
            checkpoints,
            crossfit=crossfit,
            feedback=feedback,
            sft=sft,
            start=policy_digest(policy),
            data=data.data_hash,
        ),
    )


def fine_tune(
    algorithm: str,
    start: Trained | Path | str,
    data: PreparedData,
    rl: RLParams,
    *,
    crossfit: CrossfitEmbeddings | None = None,
    own_reward: GainsFunction | None = None,
    reward_source: str = "",
    batch_size: int = 512,
    checkpoints: Path | None = None,
    on_log: OnLog | None = None,
    on_validation: OnValidation | None = None,
) -> Trained:
    """Fine-tune a policy with one of the algorithms that train on RL's prompts (`rl4rec.algorithms`).

    Args:
        algorithm: its key, such as `ppo`.
        start: the SFT policy, which stays as it is, or its folder.
        data: the data it was trained on.
        rl: the `rl` section; the section of the algorithm's name has its own settings.
        crossfit: what `crossfit` returned.
        own_reward: a reward of your own instead of `rl.reward_type`: slates (n, k) of item rows, targets (n,) and the
            data -> the gain of each slot, (n, k) floats, whose sum is the slate's reward.
        reward_source: its text: a run with another reward is another run, whose checkpoints are not used.
        batch_size: users that are validated at once.
        checkpoints: folder for resuming; None: an interrupted training starts anew.
        on_log: takes each log row.
        on_validation: takes each validation.

    Returns:
        The last policy, or the best by validation with `rl.keep: best`.

    Raises:
        UserError: `crossfit` does not fit `rl.crossfit`, a slate does not fit the catalogue, your own reward fails, or
            training has diverged.
    """
    if own_reward is not None:
        rl = rl.model_copy(update={"reward_type": "custom"})
    tables = 0 if crossfit is None else crossfit.tables
    if tables != rl.crossfit.split_points:
        raise UserError(
            f"rl.crossfit.split_points is {rl.crossfit.split_points}, but crossfit has {tables} tables: hand over "
            "what `crossfit(start, data, sft, rl.crossfit)` returns, or set split_points: 0"
        )
    make_trainer = _trainer(algorithm)
    seed_everything(getattr(rl, algorithm).seed)
    policy, tokenizer = _start(start)
    latest = rl.feedback == "latest"
    check_slate_fits(
        data, k=rl.k, max_history=policy.config.max_history, mask_seen=policy.config.mask_seen, latest=latest
    )
    own = {algorithm, "grpo"} if algorithm == CONTROL else {algorithm}  # the control has GRPO's prompts
    digest = _digest(
        checkpoints,
        algorithm=algorithm,
        rl=rl.model_dump(exclude=set(ALGORITHMS) - own),
        start=policy_digest(policy),
        crossfit=crossfit and crossfit.digest(),
        data=data.data_hash,
        reward=reward_source,
    )
    run = RunLog(
        validate=None if latest else _validate(data, rl.k, batch_size),
        metric=metric_key("valid", "full", "ndcg", rl.k),
        on_log=on_log,
        on_validation=on_validation,
        keep_last=rl.keep == "last",
        section=f"rl.{algorithm}",
        max_kl=rl.max_kl,
    )
    trainer = make_trainer(policy, data, rl, run, crossfit=crossfit, own_reward=own_reward)
    trainer.train(checkpoints=checkpoints, digest=digest)
    return _trained(trainer.policy, tokenizer, run)


def ppo(
    start: Trained | Path | str,
    data: PreparedData,
    rl: RLParams,
    *,
    crossfit: CrossfitEmbeddings | None = None,
    own_reward: GainsFunction | None = None,
    batch_size: int = 512,
    checkpoints: Path | None = None,
    on_log: OnLog | None = None,
    on_validation: OnValidation | None = None,
) -> Trained:
    """Fine-tune a policy on the reward with PPO: `fine_tune("ppo", ...)`.

    Args:
        start: the SFT policy, which stays as it is, or its folder.
        data: the data it was trained on.
        rl: the `rl` section; `rl.ppo` has PPO's own settings.
        crossfit: what `crossfit` returned.
        own_reward: a reward of your own, see `fine_tune`.
        batch_size: users that are validated at once.
        checkpoints: folder for resuming; None: an interrupted training starts anew.
        on_log: takes each log row.
        on_validation: takes each validation.

    Returns:
        The last policy, or the best by validation with `rl.keep: best`.

    Raises:
        UserError: as `fine_tune`.
    """
    return fine_tune(
        "ppo",
        start,
        data,
        rl,
        crossfit=crossfit,
        own_reward=own_reward,
        batch_size=batch_size,
        checkpoints=checkpoints,
        on_log=on_log,
        on_validation=on_validation,
    )


def grpo(
    start: Trained | Path | str,
    data: PreparedData,
    rl: RLParams,
    *,
    crossfit: CrossfitEmbeddings | None = None,
    own_reward: GainsFunction | None = None,
    batch_size: int = 512,
    checkpoints: Path | None = None,
    on_log: OnLog | None = None,
    on_validation: OnValidation | None = None,
) -> Trained:
    """Fine-tune a policy on the reward with GRPO: `fine_tune("grpo", ...)`.

    Args:
        start: the SFT policy, which stays as it is, or its folder.
        data: the data it was trained on.
        rl: the `rl` section; `rl.grpo` has GRPO's own settings.
        crossfit: what `crossfit` returned.
        own_reward: a reward of your own, see `fine_tune`.
        batch_size: users that are validated at once.
        checkpoints: folder for resuming; None: an interrupted training starts anew.
        on_log: takes each log row.
        on_validation: takes each validation.

    Returns:
        The last policy, or the best by validation with `rl.keep: best`.

    Raises:
        UserError: as `fine_tune`.

    Examples:
        >>> tables = rl4rec.crossfit(warm, data, params.sft, params.rl.crossfit)
        >>> tuned = rl4rec.grpo(warm, data, params.rl, crossfit=tables)
    """
    return fine_tune(
        "grpo",
        start,
        data,
        rl,
        crossfit=crossfit,
        own_reward=own_reward,
        batch_size=batch_size,
        checkpoints=checkpoints,
        on_log=on_log,
        on_validation=on_validation,
    )


def continue_sft(
    start: Trained | Path | str,
    data: PreparedData,
    rl: RLParams,
    *,
    crossfit: CrossfitEmbeddings | None = None,
    batch_size: int = 512,
    checkpoints: Path | None = None,
    on_log: OnLog | None = None,
    on_validation: OnValidation | None = None,
) -> Trained:
    """The control: spend GRPO's updates, on its prompts, on more cross-entropy: `fine_tune("sft_continued", ...)`.

    Args:
        start: the SFT policy, which stays as it is, or its folder.
        data: the data it was trained on.
        rl: the `rl` section; `rl.sft_continued` has the control's own settings.
        crossfit: what `crossfit` returned.
        batch_size: users that are validated at once.
        checkpoints: folder for resuming; None: an interrupted training starts anew.
        on_log: takes each log row.
        on_validation: takes each validation.

    Returns:
        The last policy, or the best by validation with `rl.keep: best`.

    Raises:
        UserError: as `fine_tune`.
    """
    return fine_tune(
        CONTROL,
        start,
        data,
        rl,
        crossfit=crossfit,
        batch_size=batch_size,
        checkpoints=checkpoints,
        on_log=on_log,
        on_validation=on_validation,
    )


def _trainer(algorithm: str) -> Callable[..., Trainer]:
    """The class that the table names."""
    if algorithm not in TRAINED_ON_PROMPTS:
        raise UserError(f"{algorithm}: no algorithm on RL's prompts: expected one of {', '.join(TRAINED_ON_PROMPTS)}")
    module, _, name = str(get_policy(algorithm).trainer).partition(":")
    trainer: Callable[..., Trainer] = getattr(import_module(module), name)
    return trainer


def _validate(data: PreparedData, k: int, batch_size: int) -> Callable[[SlatePolicy], Mapping[str, float]]:
    return partial(validate, data=data, k=k, batch_size=batch_size)


def _digest(checkpoints: Path | None, **settings: object) -> str:
    """Digest of what a run depends on, for its checkpoints."""
    return "" if checkpoints is None else run_digest(settings)


def _start(start: Trained | Path | str) -> tuple[SlatePolicy, PreTrainedTokenizerBase]:
    """A policy to train, and its tokenizer; what is handed over stays as it is."""
    if isinstance(start, Trained):
        return copy.deepcopy(start.policy), start.tokenizer
    return load_policy(Path(start)), PreTrainedTokenizerFast.from_pretrained(start)


def _trained(policy: SlatePolicy, tokenizer: PreTrainedTokenizerBase, run: RunLog) -> Trained:
    merged = without_adapters(policy)
    merged.requires_grad_(True)
    torch.nn.Module.train(merged, False)
    return Trained(merged, tokenizer, run.rows)
