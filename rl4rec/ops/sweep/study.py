"""The search: proposals by Optuna, trials one after the other, all of it in `.sweep/` so that it can go on later.

What a trial proposes depends on the sampler's seed, on how many trials were before it and on their results, and on
nothing else: a sweep that was interrupted goes on as if it had not been. A trial that was cut off is repeated.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.pruners import MedianPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from rl4rec._console import Progress
from rl4rec.data.dataset import load_prepared
from rl4rec.errors import UserError
from rl4rec.ops.sweep.results import BASELINE, ERROR, SEED_VALUES, START, STATES, Row, counted, write_results
from rl4rec.ops.sweep.settings import SamplerParams, SweepParams
from rl4rec.ops.sweep.space import (
    Settings,
    SweptStage,
    changed,
    check_sweep,
    present,
    propose,
    read_stage,
    study_digest,
    value_at,
)
from rl4rec.ops.sweep.tracked import SweepRun
from rl4rec.ops.sweep.trial import Listening, train
from rl4rec.ops.tracking import StageRun
from rl4rec.params import Params
from rl4rec.settings import load_params

FOLDER = ".sweep"
logger = logging.getLogger(__name__)


def run_sweep(root: Path, settings: SweepParams, where: Path) -> list[Row]:
    """Run the trials that are still to be run; all of them, also in `.sweep/trials.json`, the best in `best.yaml`.

    Args:
        root: the project or a workspace, with the results of the stages before the swept one.
        settings: what to do.
        where: the file they are from, for messages.

    Raises:
        UserError: the space does not fit the stage, an earlier stage's result is missing, another sweep is under way,
            or no trial succeeded.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError("a sweep is one process: run it without `accelerate launch` or `torchrun`")
    params = load_params(root / "params.yaml")
    base = params.model_dump(mode="json")
    stage = read_stage(root, settings.stage, base)
    check_sweep(where, settings, stage, base, root)
    name = f"{stage.name}-{study_digest(settings, stage, base, root)}"
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with _alone(root / FOLDER):
        study = _open_study(root / FOLDER, name, settings)
        tracked = SweepRun.start(params.tracking, root, stage.name, name)
        status = "KILLED"
        try:
            tracked.log_params({"sweep": settings.model_dump(mode="json", exclude={"trials", "timeout_s"})})
            tracked.log_dataset(load_prepared(root / "data" / "prepared"), context="training")
            Sweep(settings, stage, base, root, study, tracked).run()
            rows = write_results(study, settings, root / FOLDER)
            for file in ("trials.json", "best.yaml"):
                tracked.log_artifact(root / FOLDER / file, folder="sweep")
            status = "FINISHED"
        except UserError:
            status = "FAILED"
            raise
        finally:
            tracked.end(status)
    return rows


@dataclass(frozen=True)
class Sweep:
    """What all trials share."""

    settings: SweepParams
    stage: SweptStage
    base: Settings  # params.yaml
    root: Path
    study: optuna.Study
    tracked: SweepRun

    def run(self) -> None:
        """Run trials until there are enough, or time is up."""
        since, limit = time.monotonic(), self.settings.timeout_s
        done, trials = len(counted(self.study)), self.settings.trials
        with Progress("sweep", total=trials, initial=done, unit="trial") as progress:
            for index in range(done, trials):
                self._run_trial(index)
                progress.update()
                self._log_state(index + 1)
                if limit is not None and time.monotonic() - since > limit:
                    logger.info("timeout_s has passed after %d of %d trials", index + 1, self.settings.trials)
                    return

    def _log_state(self, done: int) -> None:
        """The best so far and how the trials ended, after so many of them."""
        states = [trial.state for trial in counted(self.study)]
        if TrialState.COMPLETE in states:
            self.tracked.log_metrics({"sweep/best_value": self.study.best_value}, step=done)
            best = self.study.best_params
            self.tracked.set_tags({f"rl4rec.best.{key}": value for key, value in best.items()})
        counts = {f"sweep/{name}": states.count(state) for state, name in STATES.items()}
        self.tracked.log_metrics(counts, step=done)

    def _run_trial(self, index: int) -> None:
        """Propose, train, tell; whatever goes wrong in training is a failed trial. `index` trials were before it."""
        study, space = self.study, self.settings.space
        study.sampler = _sampler(self.settings.sampler, index)
        own = present(space, self.base) if index == 0 else None
        if own is not None and not study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            study.enqueue_trial(own)
        trial = study.ask()
        changes = propose(trial, space, self.base)
        trial.set_user_attr(BASELINE, own is not None)
        logger.info("trial %d of %d: %s", index + 1, self.settings.trials, changes)
        try:
            with self.tracked.trial(trial.number, changes) as run:
                values = self._values(trial, changed(self.base, changes), run)
                run.log_metrics({"sweep/value": statistics.fmean(values)})
        except optuna.TrialPruned:
            logger.info("trial %d: pruned", index + 1)
            study.tell(trial, state=TrialState.PRUNED)
        except Exception as error:
            logger.warning("trial %d: failed: %s", index + 1, error, exc_info=not isinstance(error, UserError))
            trial.set_user_attr(ERROR, f"{type(error).__name__}: {error}"[:2000])
            study.tell(trial, state=TrialState.FAIL)
        else:
            trial.set_user_attr(SEED_VALUES, values)
            study.tell(trial, statistics.fmean(values))

    def _values(self, trial: optuna.Trial, params: Params, run: StageRun) -> list[float]:
        """For each seed the metric of the policy that the stage hands on. Only the first seed can be pruned."""
        keeps_last = self.stage.name != "sft" and params.rl.keep == "last"
        given = params.model_dump(mode="json")
        values = []
        for offset in range(self.settings.seeds):
            seed = value_at(given, self.stage.seed_key) + offset
            watch = Watch(trial, run, self.settings, offset)
            listening = Listening(self.settings.metric, watch.listen, watch.forward)
            seeded = changed(given, {self.stage.seed_key: seed})
            train(self.stage, seeded, listening, root=self.root, scratch=self.root / FOLDER / "trial")
            values.append(watch.seen[-1] if keeps_last else max(watch.seen))
        return values


class Watch:
    """The validations of one training run, for Optuna and for MLflow."""

    def __init__(self, trial: optuna.Trial, run: StageRun, settings: SweepParams, offset: int) -> None:
        self.seen: list[float] = []
        self._trial, self._run, self._pruner, self._offset = trial, run, settings.pruner, offset

    def listen(self, step: int, samples: int, value: float) -> None:
        """Note a value; raise `TrialPruned` if it is too low. Trials are compared after equally many samples."""
        if step == 0:
            self._trial.set_user_attr(START, value)
            return
        self.seen.append(value)
        if self._offset == 0:
            self._trial.report(value, step=samples)
            if self._pruner is not None and step > self._pruner.warmup_steps and self._trial.should_prune():
                raise optuna.TrialPruned

    def forward(self, metrics: Mapping[str, float], step: int) -> None:
        """Log a validation."""
        prefix = f"seed{self._offset}/" if self._offset else ""
        self._run.log_metrics({f"{prefix}{name}": value for name, value in metrics.items()}, step=step)


def _sampler(params: SamplerParams, index: int) -> BaseSampler:
    """A sampler with a seed of its own for each trial: no random state to keep between two runs of a sweep."""
    seed = int.from_bytes(hashlib.sha256(f"{params.seed} {index}".encode()).digest()[:4])
    if params.name == "random":
        return RandomSampler(seed=seed)
    return TPESampler(seed=seed, n_startup_trials=params.startup_trials)


def _open_study(folder: Path, name: str, settings: SweepParams) -> optuna.Study:
    """The study of this name in the journal; what was cut off there is closed."""
    journal = folder / "journal.log"
    if journal.exists():
        whole = journal.read_bytes().rfind(b"\n") + 1
        os.truncate(journal, whole)  # the last line may have been cut off
    journal.with_name(f"{journal.name}.lock").unlink(missing_ok=True)  # ours is held
    pruner = MedianPruner(n_startup_trials=settings.pruner.startup_trials) if settings.pruner else NopPruner()
    try:
        study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(journal))),
            study_name=name,
            direction="maximize",
            pruner=pruner,
            load_if_exists=True,
        )
    except (ValueError, KeyError) as error:
        raise UserError(f"{journal}: damaged ({error}). Remove it to start anew.") from None
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
    return study


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which the system gives back whatever happens to this process."""
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{folder}: another sweep is under way here. Wait for it, or end it.") from None
        yield
