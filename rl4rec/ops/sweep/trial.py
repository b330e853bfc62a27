"""One training run of a trial: the stage's own script in a scratch folder, its validations listened to."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from rl4rec._console import wiped_out
from rl4rec.data.dataset import PreparedData
from rl4rec.errors import UserError
from rl4rec.ops.sweep.space import SweptStage
from rl4rec.ops.tracking import StageRun, replace_run
from rl4rec.params import Params

Listener = Callable[[int, int, float], None]


class Listening(StageRun):
    """What a stage's script takes for its MLflow run: passes validations on, and logs neither data nor policies.

    Args:
        metric: the one to listen to, as `valid/full/ndcg@10`.
        listen: takes step, samples so far and the metric's value at each validation, of which the one at step 0 is
            RL's start; what it raises ends the training.
        forward: takes all metrics of a validation and the step.
    """

    def __init__(self, metric: str, listen: Listener, forward: Callable[[Mapping[str, float], int], None]) -> None:
        super().__init__()
        self._metric, self._listen, self._forward = metric, listen, forward

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Listen to rows of validations."""
        if step is None or self._metric not in metrics:
            return
        self._forward({name: value for name, value in metrics.items() if name.startswith("valid/")}, step)
        self._listen(step, int(metrics["samples"]), metrics[self._metric])

    def log_dataset(self, data: PreparedData, context: str) -> None:
        """The sweep's run has it."""


def train(stage: SweptStage, params: Params, run: StageRun, *, root: Path, scratch: Path) -> None:
    """Run a stage's script in a folder that borrows the stage's inputs and is removed again."""
    shutil.rmtree(scratch, ignore_errors=True)  # of a trial that was cut off
    for name in stage.inputs:
        (scratch / name).parent.mkdir(parents=True, exist_ok=True)
        (scratch / name).symlink_to((root / name).resolve())
    spec = importlib.util.spec_from_file_location(f"pipelines_{stage.script.stem}", stage.script)
    if spec is None or spec.loader is None:
        raise UserError(f"{stage.script}: cannot be loaded. Restore it from the repository")
    script = importlib.util.module_from_spec(spec)
    beside = str(stage.script.parent)  # where a script finds its own modules, such as pipelines/reward.py
    sys.path.insert(0, beside)
    try:
        spec.loader.exec_module(script)
        with contextlib.chdir(scratch), replace_run(run), wiped_out():
            script.main(params, *stage.variant)
    finally:
        sys.path.remove(beside)
        shutil.rmtree(scratch, ignore_errors=True)
        gc.collect()  # a trainer and its callbacks refer to each other; the next trial wants the memory
