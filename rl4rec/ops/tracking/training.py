"""What the scripts of training stages do around a function of `rl4rec.api`: log its rows, save and log its policy."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

from rl4rec._process import is_main_process
from rl4rec.data.dataset import PreparedData
from rl4rec.ops.tracking.run import StageRun, stage_run
from rl4rec.params import Params
from rl4rec.report.logs import LogWriter


class Saved(Protocol):
    """What can be saved to a folder, such as `rl4rec.api.Trained`."""

    def save(self, folder: Path) -> None:
        """Write the folder."""


class TrainingRun:
    """The tracked run of a training stage."""

    def __init__(self, tracked: StageRun, log: LogWriter, data: PreparedData, checkpoints: Path) -> None:
        self.tracked, self.checkpoints = tracked, checkpoints
        self._log, self._data = log, data

    def on_log(self, row: Mapping[str, float]) -> None:
        """Take a row of the training log."""
        self._log(row)

    def save(self, trained: Saved, folder: Path) -> None:
        """Save the policy, log it as a servable model, and remove the checkpoints."""
        if is_main_process():
            trained.save(folder)
            self.tracked.log_policy(folder, self._data)
            self.clean_up()

    def clean_up(self) -> None:
        """Remove the checkpoints: what they were for is saved."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)


@contextlib.contextmanager
def training_run(stage: str, params: Params, data: PreparedData, *, variant: str = "") -> Iterator[TrainingRun]:
    """Track a training stage, and write its log to `logs/<variant or stage>.jsonl`.

    Args:
        stage: the stage, such as `rl`.
        params: all settings.
        data: what it trains on.
        variant: such as `ppo`.
    """
    name = variant or stage
    with (
        stage_run(stage, params, name=f"{stage}-{variant}" if variant else stage) as tracked,
        LogWriter(Path("logs", f"{name}.jsonl"), tracked.log_metrics) as log,
    ):
        tracked.log_dataset(data, context="training")
        yield TrainingRun(tracked, log, data, Path("checkpoints", name))
