"""The bridge from a transformers Trainer (SFTTrainer, GRPOTrainer) to the monitor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rl4rec._console import Progress
from rl4rec.model.policy import SlatePolicy
from rl4rec.train.checkpoints import seal
from rl4rec.train.monitor import Monitor

Rename = Callable[[Mapping[str, float], int, float], dict[str, float]]


class MonitorCallback(TrainerCallback):
    """Hands a Trainer's log entries, validations and checkpoints to the monitor, and shows how far it is.

    Args:
        monitor: takes them.
        policy: the policy in training.
        checkpoints: the Trainer's output folder.
        rename: turns a log entry, and the steps and seconds since the last one, into a row under our names.
        every: steps between validations; the last step is always validated.
        samples_per_step: sequences or slates that one optimizer step consumes.
        name: of the training, for its progress.
        validate_start: validate before the first step too.
    """

    def __init__(
        self,
        monitor: Monitor,
        policy: SlatePolicy,
        checkpoints: Path,
        *,
        rename: Rename,
        every: int,
        samples_per_step: float,
        name: str,
        validate_start: bool = False,
    ) -> None:
        self._monitor = monitor
        self._policy = policy
        self._checkpoints = checkpoints
        self._rename = rename
        self._every = every
        self._samples_per_step = samples_per_step
        self._validate_start = validate_start
        self._logged_at = (0, 0.0)
        self._name = name
        self._progress: Progress | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Validate the start, and start the clock of the first log entry."""
        if self._validate_start and state.global_step == 0:
            self._monitor.validate(self._policy, step=0, samples=0, candidate=False)
        self._progress = Progress(self._name, total=state.max_steps, initial=state.global_step, unit="step")
        self._logged_at = (state.global_step, self._monitor.seconds)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Turn a log entry into a row."""
        if logs is None or "loss" not in logs:
            return
        step, seconds = self._logged_at
        now = self._monitor.seconds
        row = self._rename(logs, state.global_step - step, now - seconds)
        self._logged_at = (state.global_step, now)
        self._monitor.log(row, step=state.global_step, samples=self._samples(state))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Validate when it is time; stop when patience has run out."""
        if self._progress is not None:
            self._progress.update()
        due = state.global_step % self._every == 0 or state.global_step >= state.max_steps
        if due and self._monitor.validate(self._policy, step=state.global_step, samples=self._samples(state)):
            control.should_training_stop = True
        return control

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Complete the Trainer's checkpoint with the monitor's state, and seal it."""
        folder = self._checkpoints / f"checkpoint-{state.global_step}"
        self._monitor.save_state(folder, self._policy, step=state.global_step)
        PartialState().wait_for_everyone()  # each process writes its random generators
        seal(folder)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Close the log with the summary row."""
        if self._progress is not None:
            self._progress.close()
        self._monitor.finish(step=state.global_step, samples=self._samples(state))

    def _samples(self, state: TrainerState) -> int:
        return round(state.global_step * self._samples_per_step)
