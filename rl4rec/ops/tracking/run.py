"""The run of a stage, as the pipeline's scripts see it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from rl4rec._process import is_main_process
from rl4rec.data.dataset import PreparedData
from rl4rec.model.load import weights_digest
from rl4rec.ops.tracking.delivery import TRAINED_TAG, Delivery, Operation, now
from rl4rec.ops.tracking.outbox import Outbox
from rl4rec.ops.tracking.server import guard
from rl4rec.ops.tracking.settings import flatten, param_text, pipeline_id, stage_settings
from rl4rec.params import Params

if TYPE_CHECKING:
    from mlflow import MlflowClient


class Send(Protocol):
    """Takes an operation (`delivery`), with the prepared data that it is about, if any."""

    def __call__(self, operation: Operation, data: PreparedData | None = None) -> None:
        """Send it, or put it where it is sent from."""


class StageRun:
    """What can be logged to one run.

    Args:
        send: takes the operations; None: nothing is logged (tracking is off, or another process does it).
    """

    def __init__(self, send: Send | None = None) -> None:
        self._send: Send = send or _drop
        self._latest: dict[str, int] = {}  # step of each series

    def log_params(self, values: Mapping[str, object]) -> None:
        """Log settings: nested mappings flattened with dots, `@` as `_at_`, values too long for MLflow cut."""
        self._send({"do": "params", "values": params_of(values)})

    def set_tags(self, tags: Mapping[str, object]) -> None:
        """Set tags, which unlike params may change."""
        self._send({"do": "tags", "values": params_of(tags)})

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics at a step; `@` becomes `_at_`, which MLflow accepts in a name.

        A series has one value a step, the first: rows of training and of validation share `samples` and `seconds`.
        """
        fresh = {name: value for name, value in metrics.items() if step is None or self._latest.get(name) != step}
        if step is not None:
            self._latest.update(dict.fromkeys(fresh, step))
        if fresh:
            self._send({"do": "metrics", "rows": _rows(fresh, step or 0)})

    def log_result(self, metrics: Mapping[str, float], folder: Path) -> None:
        """Log what was measured of a saved policy to the run that trained it, beside that run's learning curve.

        Nothing is logged for a folder without weights, or if no run on the server trained them.
        """
        if self._send is _drop or not any(folder.glob("*.safetensors")):
            return
        self._send({"do": "result", "digest": weights_digest(folder), "rows": _rows(metrics, 0)})

    def log_dataset(self, data: PreparedData, context: str) -> None:
        """Log the prepared data as an input of the run: digest, source and size; `context` is e.g. `training`."""
        tags = {key: str(value)[:500] for key, value in data.stats.items() if isinstance(value, str | int | float)}
        self._send(
            {
                "do": "dataset",
                "name": str(data.stats.get("source", "prepared")),
                "digest": data.data_hash,
                "folder": str(data.folder.resolve()),
                "context": context,
                "tags": tags,
            }
        )

    def log_policy(self, folder: Path, data: PreparedData) -> None:
        """Log a saved policy as a servable model (`serve/mlflow_model.py`): raw item ids in, ranked item ids out."""
        if self._send is _drop:
            return  # the digest takes a while
        digest = weights_digest(folder)
        self.set_tags({TRAINED_TAG: digest})
        self._send(
            {
                "do": "policy",
                "folder": str(folder.resolve()),
                "data": str(data.folder.resolve()),
                "digest": digest,
            },
            data,
        )

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Log a file, or a folder with all it holds."""
        self._send({"do": "artifact", "path": str(path.resolve()), "folder": folder})


def _rows(metrics: Mapping[str, float], step: int) -> list[tuple[str, float, int, int]]:
    """Metrics as MLflow takes them: name, value, milliseconds, step."""
    return [(named(name), float(value), now(), step) for name, value in metrics.items()]


def _drop(operation: Operation, data: PreparedData | None = None) -> None:
    pass


def directly(client: MlflowClient, experiment: str, run_id: str) -> Send:
    """Send to a run that exists, at once; what MLflow raises becomes a warning."""
    delivery = Delivery(client, experiment, "", run_id)

    def send(operation: Operation, data: PreparedData | None = None) -> None:
        with guard(operation["do"]):
            delivery(operation, data)

    return send


_REPLACEMENT: ContextVar[StageRun | None] = ContextVar("replacement", default=None)


@contextlib.contextmanager
def replace_run(run: StageRun) -> Iterator[None]:
    """Within, every `stage_run` is this run: a sweep runs a stage's script as it is, and listens."""
    token = _REPLACEMENT.set(run)
    try:
        yield
    finally:
        _REPLACEMENT.reset(token)


@contextlib.contextmanager
def stage_run(stage: str, params: Params, *, name: str | None = None) -> Iterator[StageRun]:
    """Track a stage as a child run of its pipeline.

    Args:
        stage: the stage, e.g. `rl`; decides which settings are logged.
        params: all settings.
        name: of the run, e.g. `rl-ppo`; what follows the stage's name is its variant. Default: the stage.

    Yields:
        The run, which does nothing when tracking is off.
    """
    replacement = _REPLACEMENT.get()
    if replacement is not None:
        yield replacement
        return
    if not params.tracking.enabled or not is_main_process():
        yield StageRun()
        return
    name = name or stage
    outbox = Outbox(params.tracking)
    outbox.put(
        {
            "do": "start",
            "stage": stage,
            "name": name,
            "time": now(),
            "pipeline": pipeline_id() or f"{os.getpid()}-{time.time():.3f}",
            "pipeline_name": os.environ.get("DVC_EXP_NAME") or time.strftime("pipeline-%Y%m%d-%H%M%S"),
            "settings": params_of(params.model_dump(mode="json")),
        }
    )
    run = StageRun(outbox.put)
    run.log_params(stage_settings(params, stage, name.removeprefix(stage).strip("-@")))
    status = "FAILED"
    try:
        yield run
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        outbox.put({"do": "end", "status": status, "time": now()})
        outbox.close()


def named(key: str) -> str:
    """A key as MLflow accepts it."""
    return key.replace("@", "_at_")


def params_of(values: Mapping[str, object]) -> dict[str, str]:
    """Settings as MLflow takes them."""
    return {named(key): param_text(value) for key, value in flatten(values).items()}
