"""What every training reports: rows of its log, validations, the policy to keep; and when to stop.

Trainers know neither MLflow nor files of results; they hand rows of numbers to a callback.
"""

from __future__ import annotations

import json
import logging
import math
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rl4rec._process import is_main_process
from rl4rec.errors import UserError
from rl4rec.model.policy import SlatePolicy
from rl4rec.model.sharding import spread, whole

logger = logging.getLogger(__name__)

Row = dict[str, float]
OnLog = Callable[[Row], None]
"""Takes every row of a training log as it is made: of training, of validation, and the summary at the end."""
OnValidation = Callable[[int, Mapping[str, float]], bool | None]
"""Takes the step and the metrics of each validation; True stops the training."""
Validate = Callable[[SlatePolicy], Mapping[str, float]]


class RunLog:
    """Clock, log rows, validation and the best policy of one training run.

    In a distributed run every process validates (the weights are equal).
    The clock stands still during validation, so `seconds` is training time.

    Args:
        validate: metrics of a policy on the validation fold, by keys such as `valid/full/ndcg@10`; None: it is not held
            out (a refit), keep the last policy.
        metric: the one of them that chooses the best policy.
        on_log: takes each log row.
        on_validation: takes each validation, and may stop the training.
        keep_last: keep the last policy, whatever validation says.
        patience: validations without a better one after which training stops; None: never.
        section: of the settings, such as `rl.ppo`, to name its learning rate when training diverges.
        max_kl: `train/kl` above which training has diverged; None: no limit.
    """

    def __init__(
        self,
        *,
        validate: Validate | None,
        metric: str,
        on_log: OnLog | None = None,
        on_validation: OnValidation | None = None,
        patience: int | None = None,
        keep_last: bool = False,
        section: str = "sft",
        max_kl: float | None = None,
    ) -> None:
        self.rows: list[Row] = []
        self._validate, self._metric = validate, metric
        self._on_log, self._on_validation = on_log, on_validation
        self._patience, self._keep_last = patience, keep_last or validate is None
        self._section, self._max_kl = section, max_kl
        self._best: float | None = None
        self._best_step = 0
        self._best_weights: dict[str, Tensor] = {}  # of the parameters that train
        self._since_best = 0
        self._spent = 0.0
        self._resumed_at = time.perf_counter()
        reset_peak_memory()

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
        names, weights = zip(*policy.named_parameters(), strict=True)
        sound = torch.stack([whole(torch.isfinite(weight).all()) for weight in weights]).tolist()
        if not all(sound):
            raise self._diverged(step, f"the weights {names[sound.index(False)]} are not finite")

    def _diverged(self, step: int, cause: str) -> UserError:
        penalty = f", raise {self._section}.kl_coef" if self._max_kl is not None else ""
        return UserError(
            f"training has diverged at step {step}: {cause}. Lower {self._section}.learning_rate{penalty} or lower "
            f"{self._section}.max_grad_norm. What was good is kept: the checkpoints before it, and its log up to here"
        )

    def validate(self, policy: SlatePolicy, *, step: int, samples: int, candidate: bool = True) -> bool:
        """Validate, and remember the policy if it is the best so far; True if training should stop.

        `candidate` False only measures: RL's start is shown in its curve, but a stage hands on what it has trained.
        Whether that is better than the start is for the comparison to say.
        """
        self.check(policy, step=step)
        if self._validate is None:
            return False
        self._spent = self.seconds
        training = policy.training
        policy.train(False)
        metrics = self._validate(policy)
        policy.train(training)
        score = metrics[self._metric]
        if candidate:
            if self._best is None or score > self._best:
                self._best, self._best_step, self._since_best = score, step, 0
                if not self._keep_last:
                    self._best_weights = {
                        name: whole(weight.detach()).cpu().clone()
                        for name, weight in policy.named_parameters()
                        if weight.requires_grad
                    }
            else:
                self._since_best += 1
        self._resumed_at = time.perf_counter()
        self._emit({"step": step, "samples": samples, "seconds": round(self._spent, 3), **metrics})
        compared = "start" if self._best is None else f"best {self._best:.5f}"
        logger.info("step %d: validation %s %.5f (%s)", step, self._metric, score, compared)
        stop = self._on_validation is not None and bool(self._on_validation(step, metrics))
        return stop or (self._patience is not None and self._since_best >= self._patience)

    def finish(self, policy: SlatePolicy, *, step: int, samples: int) -> None:
        """Give the policy the weights to keep, and report the summary row."""
        with torch.no_grad():
            for name, weight in policy.named_parameters():
                if name in self._best_weights:
                    weight.copy_(spread(self._best_weights[name], weight))
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

    def save_state(self, folder: Path, policy: SlatePolicy, *, step: int) -> None:
        """Write what a resumed run needs, the best weights included, into a checkpoint folder.

        Raises:
            UserError: training has diverged, the checkpoint would be of no use.
        """
        self.check(policy, step=step)
        state = {
            "rows": self.rows,
            "best": self._best,
            "best_step": self._best_step,
            "since_best": self._since_best,
            "spent": self.seconds,
        }
        if is_main_process():
            save_file(self._best_weights, folder / "best.safetensors")
            (folder / "log.json").write_text(json.dumps(state), encoding="utf-8")

    def load_state(self, folder: Path) -> None:
        """Continue from `save_state`; the rows logged before are reported again, so that logs are whole."""
        state: dict[str, Any] = json.loads((folder / "log.json").read_text(encoding="utf-8"))
        self._best, self._best_step, self._since_best = state["best"], state["best_step"], state["since_best"]
        self._spent, self._resumed_at = state["spent"], time.perf_counter()
        self._best_weights = load_file(folder / "best.safetensors")
        for row in state["rows"]:
            self._emit(row)

    def _emit(self, row: Row) -> None:
        self.rows.append(row)
        if self._on_log is not None:
            self._on_log(dict(row))


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
