"""What a run logs, as operations on the server. Each may be repeated: done twice it is there once."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl4rec.data.dataset import PreparedData, load_prepared
from rl4rec.errors import UserError
from rl4rec.model.load import weights_digest
from rl4rec.ops.tracking.database import UnfitDatabase
from rl4rec.ops.tracking.model import log_policy_model
from rl4rec.ops.tracking.notes import NOTES
from rl4rec.ops.tracking.settings import PIPELINE_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient

Operation = dict[str, Any]

OUTBOX_TAG = "rl4rec.outbox"
TRAINED_TAG = "rl4rec.trained_weights"  # digest of the weights that a run made
_PARENT_TAG, _NOTE_TAG = "mlflow.parentRunId", "mlflow.note.content"
METRICS_A_REQUEST, _PARAMS_A_REQUEST = 1000, 100  # MLflow's limits
_LASTING = (  # errors of the request itself: it would fail again
    *("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "INVALID_STATE"),
)


class Delivery:
    """Carries out the operations of one run.

    Args:
        client: of the server.
        experiment: id of the experiment.
        name: of the run's outbox, by which the run is found again.
        run_id: of the run, if it was made before.
        system_metrics: log those of this process beside.
    """

    def __init__(
        self, client: MlflowClient, experiment: str, name: str, run_id: str | None, *, system_metrics: bool = False
    ) -> None:
        self.run_id = run_id or ""
        self._client, self._experiment, self._name = client, experiment, name
        self._measure = system_metrics
        self._system: Any = None  # mlflow's SystemMetricsMonitor
        self._parent: str | None = None

    def __call__(self, operation: Operation, data: PreparedData | None = None) -> None:
        """Do it, or raise what MLflow raises; `data`: those that it is about, if they are in memory."""
        match operation["do"]:
            case "start":
                self._start(operation)
            case "params":
                self._log_params(self.run_id, operation["values"])
            case "tags":
                for key, value in operation["values"].items():
                    self._client.set_tag(self.run_id, key, value)
            case "metrics":
                self._log_metrics(self.run_id, operation["rows"])
            case "result":
                self._result(operation)
            case "dataset":
                self._dataset(operation)
            case "policy":
                self._policy(operation, data)
            case "artifact":
                self._artifact(operation)
            case "end":
                self._end(operation)

    def server_is_well(self) -> bool:
        """Whether the server answers about this run: then an operation that fails has itself to blame."""
        try:
            self._client.get_run(self.run_id)
        except Exception:
            return False
        return True

    def _start(self, operation: Operation) -> None:
        from mlflow.tracking.context.registry import resolve_tags

        found = self._client.search_runs([self._experiment], f"tags.`{OUTBOX_TAG}` = '{self._name}'", max_results=1)
        if found:
            self.run_id = str(found[0].info.run_id)
            return
        self._parent = self._pipeline_run(operation)
        own = {_PARENT_TAG: self._parent, "rl4rec.stage": operation["stage"], OUTBOX_TAG: self._name}
        if operation["stage"] in NOTES:
            own[_NOTE_TAG] = NOTES[operation["stage"]]
        run = self._client.create_run(
            self._experiment, start_time=operation["time"], tags=resolve_tags(own), run_name=operation["name"]
        )
        self.run_id = str(run.info.run_id)
        if self._measure:
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            self._system = SystemMetricsMonitor(self.run_id)  # type: ignore[no-untyped-call]
            self._system.start()

    def _pipeline_run(self, operation: Operation) -> str:
        """Find or make the run of the pipeline."""
        pipeline = operation["pipeline"]
        found = self._client.search_runs([self._experiment], f"tags.`{PIPELINE_TAG}` = '{pipeline}'", max_results=1)
        if found:
            parent = str(found[0].info.run_id)
            self._client.update_run(parent, status="RUNNING")
            return parent
        run = self._client.create_run(
            self._experiment,
            start_time=operation["time"],
            tags={PIPELINE_TAG: pipeline, _NOTE_TAG: NOTES["pipeline"]},
            run_name=operation["pipeline_name"],
        )
        self._log_params(str(run.info.run_id), operation["settings"])
        return str(run.info.run_id)

    def _log_params(self, run_id: str, values: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        params = [Param(key, value) for key, value in values.items()]
        for start in range(0, len(params), _PARAMS_A_REQUEST):
            self._client.log_batch(run_id, params=params[start : start + _PARAMS_A_REQUEST])

    def _log_metrics(self, run_id: str, rows: Sequence[Sequence[Any]]) -> None:
        from mlflow.entities import Metric

        # MLflow stores a metric of equal name, value, time and step once
        metrics = [Metric(*row) for row in rows]
        for start in range(0, len(metrics), METRICS_A_REQUEST):
            self._client.log_batch(run_id, metrics=metrics[start : start + METRICS_A_REQUEST], synchronous=True)

    def _result(self, operation: Operation) -> None:
        """Log metrics to the run that trained the weights: the one of this pipeline, else the latest."""
        own = self._client.get_run(self.run_id).data.tags
        weights = f"tags.`{TRAINED_TAG}` = '{operation['digest']}'"
        newest_first = ["attributes.start_time DESC"]
        trained = self._client.search_runs([self._experiment], weights, order_by=newest_first)
        if trained:
            beside = [run for run in trained if run.data.tags.get(_PARENT_TAG) == own.get(_PARENT_TAG)]
            self._log_metrics(str((beside or trained)[0].info.run_id), operation["rows"])

    def _dataset(self, operation: Operation) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        tags = {"mlflow.data.context": operation["context"], **operation["tags"]}
        dataset = Dataset(
            operation["name"], operation["digest"], "local", json.dumps({"uri": operation["folder"]}), None, None
        )
        self._client.log_inputs(
            self.run_id, [DatasetInput(dataset, [InputTag(key, value) for key, value in tags.items()])]
        )

    def _policy(self, operation: Operation, data: PreparedData | None) -> None:
        import mlflow

        folder = Path(operation["folder"])
        if weights_digest(folder) != operation["digest"]:
            raise UserError(f"{folder} holds another policy by now")
        done = self._client.search_logged_models([self._experiment], f"source_run_id = '{self.run_id}'")
        if any(model.status == "READY" for model in done):
            return
        with mlflow.start_run(run_id=self.run_id, log_system_metrics=False):
            log_policy_model(folder, data or load_prepared(Path(operation["data"])))
        self._client.update_run(self.run_id, status="RUNNING")

    def _artifact(self, operation: Operation) -> None:
        path = Path(operation["path"])
        if not path.exists():
            raise FileNotFoundError(f"{path} is not there any more")
        log = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
        log(self.run_id, str(path), operation["folder"])

    def _end(self, operation: Operation) -> None:
        if self._system is not None:
            self._system.finish()
            self._system = None
        self._client.set_terminated(self.run_id, operation["status"], end_time=operation["time"])
        parent = self._parent or self._client.get_run(self.run_id).data.tags.get(_PARENT_TAG)
        if parent is not None:
            self._client.set_terminated(parent, operation["status"], end_time=operation["time"])


def is_lasting(error: Exception) -> bool:
    """Whether an operation would fail again for the same reason, on a server that is well."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, UnfitDatabase):
        return False  # all of it can go there once the database is mended
    if isinstance(error, MlflowException):
        return error.error_code in _LASTING
    if isinstance(error, OSError):  # requests' errors are of this class too
        return isinstance(error, FileNotFoundError)
    return isinstance(error, UserError | ValueError | TypeError | LookupError)


def now() -> int:
    """Milliseconds, as MLflow counts."""
    return int(time.time() * 1000)
