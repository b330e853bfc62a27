"""What every trainer shares: rows for the training log, validation, the best checkpoint, patience.

Trainers know neither MLflow nor files of results; they hand rows of numbers to `report`.
"""

from __future__ import annotations

import json
import logging
import math
import resource
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from rl4rec._process import is_main_process
from rl4rec.errors import UserError
from rl4rec.model.policy import SlatePolicy
from rl4rec.train.trainable import without_adapters

logger = logging.getLogger(__name__)

Row = dict[str, float]
Report = Callable[[Mapping[str, float]], None]
Validate = Callable[[SlatePolicy], Mapping[str, float]]


class Monitor:
    """Clock, log rows, validation and the best policy of one training run.

    In a distributed run every process validates (the weights are equal), and the main one writes.
    The clock stands still during validation, so `seconds` is training time.

    Args:
        validate: metrics of a policy on the validation fold; None: it is not held out (a refit), keep the last policy.
        metric: the one of them that chooses the best policy.
        report: takes each log row.
        best_folder: where the best policy is kept.
        keep_last: keep the last policy instead, whatever validation says.
        patience: validations without a better one after which `validate` says stop; None: never.
        section: of the settings, such as `rl.ppo`, to name its learning rate when training diverges.
        max_kl: `train/kl` above which training has diverged; None: no limit.
    """

    def __init__(
        self,
        *,
        validate: Validate | None,
        metric: str,
        report: Report,
        best_folder: Path,
        patience: int | None = None,
        keep_last: bool = False,
        section: str = "sft",
        max_kl: float | None = None,
    ) -> None:
        self._metric = metric
        self._validate = validate
        self._report = report
        self._best_folder = best_folder
        self._patience = patience
        self._keep_last = keep_last
        self._section, self._max_kl = section, max_kl
        self._rows: list[Row] = []
        self._best: float | None = None
        self._kept = False
        self._best_step = 0
        self._since_best = 0
        self._validated_at = -1
        self._spent = 0.0
        self._resumed_at = time.perf_counter()
        reset_peak_memory()
        transformers_logging.disable_progress_bar()  # of saving and loading weights; training has a bar of its own

    @property
    def seconds(self) -> float:
        """Training time so far."""
        return self._spent + time.perf_counter() - self._resumed_at

    @property
    def best_step(self) -> int:
        """Step of the best validation so far."""
        return self._best_step

    def log(self, metrics: Mapping[str, float], *, step: int, samples: int) -> None:
        """Report one row of training metrics.

        Raises:
            UserError: training has diverged: a number of the row is not finite, or the KL is beyond `max_kl`.
        """
        self._emit({"step": step, "samples": samples, "seconds": round(self.seconds, 3), **metrics})
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise self._diverged(step, f"{name} is {value}")
        kl = metrics.get("train/kl", 0.0)
        if self._max_kl is not None and kl > self._max_kl:
            raise self._diverged(step, f"train/kl is {kl:.4g}, above rl.max_kl ({self._max_kl:g})")

    def check(self, policy: SlatePolicy, *, step: int) -> None:
        """See that all weights are finite.

        Raises:
            UserError: training has diverged.
        """
        for name, weight in policy.named_parameters():
            if not torch.isfinite(weight).all():
                raise self._diverged(step, f"the weights {name} are not finite")

    def _diverged(self, step: int, cause: str) -> UserError:
        penalty = f", raise {self._section}.kl_coef" if self._max_kl is not None else ""
        return UserError(
            f"training has diverged at step {step}: {cause}. Lower {self._section}.learning_rate{penalty} or lower "
            f"{self._section}.max_grad_norm. What was good is kept: the checkpoints before it, and its log up to here"
        )

    def validate(self, policy: SlatePolicy, *, step: int, samples: int, candidate: bool = True) -> bool:
        """Validate, keep the policy if it is the best so far; True if patience has run out.

        `candidate` False only measures: RL's start is shown in its curve, but a stage hands on what it has trained.
        Whether that is better than the start is for the comparison to say.
        """
        if step == self._validated_at:
            return False
        self.check(policy, step=step)
        self._spent = self.seconds
        training = policy.training
        if self._validate is None:
            self._validated_at = step
            if candidate:
                self._keep(policy)
            self._resumed_at = time.perf_counter()
            return False
        policy.train(False)
        metrics = self._validate(policy)
        self._validated_at = step
        score = metrics[self._metric]
        if candidate:
            better = self._best is None or score > self._best
            if better:
                self._best, self._best_step, self._since_best = score, step, 0
            else:
                self._since_best += 1
            if better or self._keep_last:
                self._keep(policy)
        policy.train(training)
        self._resumed_at = time.perf_counter()
        self._emit(
            {
                "step": step,
                "samples": samples,
                "seconds": round(self._spent, 3),
                **{f"valid/{name}": value for name, value in metrics.items()},
            }
        )
        logger.info("step %d: validation %s %.5f (best %.5f)", step, self._metric, score, self._best or score)
        return self._patience is not None and self._since_best >= self._patience

    def _keep(self, policy: SlatePolicy) -> None:
        self._kept = True
        if is_main_process():
            save_policy(policy, self._best_folder)

    def finish(self, *, step: int, samples: int) -> Row:
        """Report the summary row and return it."""
        summary: Row = {
            "summary": True,
            "steps": step,
            "samples": samples,
            "train_seconds": round(self.seconds, 3),
            "peak_memory_mb": peak_memory_mb(),
        }
        if self._best is not None:
            summary["best_step"] = self._best_step
        self._emit({"step": step, "seconds": summary["train_seconds"], **summary})
        return summary

    def save_state(self, folder: Path, policy: SlatePolicy, *, step: int) -> None:
        """Write what a resumed run needs, best policy included, into a checkpoint folder.

        Raises:
            UserError: training has diverged, the checkpoint would be of no use.
        """
        self.check(policy, step=step)
        state = {
            "kept": self._kept,
            "rows": self._rows,
            "best": self._best,
            "best_step": self._best_step,
            "since_best": self._since_best,
            "validated_at": self._validated_at,
            "spent": self.seconds,
        }
        if not is_main_process():
            return
        if self._kept:
            shutil.copytree(self._best_folder, folder / "best", dirs_exist_ok=True)
        (folder / "monitor.json").write_text(json.dumps(state), encoding="utf-8")

    def load_state(self, folder: Path) -> None:
        """Continue from `save_state`; the rows logged before are reported again, so that logs are whole."""
        state: dict[str, Any] = json.loads((folder / "monitor.json").read_text(encoding="utf-8"))
        self._best, self._best_step = state["best"], state["best_step"]
        self._since_best, self._validated_at = state["since_best"], state["validated_at"]
        self._spent, self._resumed_at = state["spent"], time.perf_counter()
        self._kept = state["kept"]
        if self._kept and is_main_process():
            shutil.copytree(folder / "best", self._best_folder, dirs_exist_ok=True)
        for row in state["rows"]:
            self._emit(row)

    def _emit(self, row: Row) -> None:
        self._rows.append(row)
        self._report(row)


def save_policy(policy: SlatePolicy, folder: Path) -> None:
    """Save a policy's weights (adapters merged) and configuration, replacing the folder in one step."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    without_adapters(policy).save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def reset_peak_memory() -> None:
    """Start the peak-memory count anew (CUDA only: the process's peak on CPU cannot be reset)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory_mb() -> float:
    """Peak memory in MiB: allocated on the CUDA device, or the process's resident set on CPU."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    scale = 2**20 if sys.platform == "darwin" else 2**10
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale, 1)
