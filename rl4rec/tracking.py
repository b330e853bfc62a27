"""MLflow: one parent run a pipeline, a child run a stage.

Tracking never stops a stage: whatever MLflow raises becomes a warning, unsent metrics are tried again at the next
flush, and the training logs in `logs/` hold them in any case. Step metrics are buffered and sent in batches.

DVC starts every stage as a process of its own. Stages belong together when they have the same `RL4REC_PIPELINE_ID`
or, without it, the same `dvc` process above them; a stage run by hand is a pipeline of its own.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from rl4rec.data.prepared import PreparedData
from rl4rec.distributed import is_main_process
from rl4rec.messages import redact
from rl4rec.params import Params, TrackingParams

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric
    from mlflow.models.model import ModelInfo

logger = logging.getLogger(__name__)

PIPELINE_TAG = "rl4rec.pipeline"
_FLUSH_SECONDS = 15.0  # between two batches of metrics
_RETRY_SECONDS = 60.0  # after a failure
_BATCH = 1000  # metrics a request, MLflow's limit
_PARAM_CHARACTERS = 6000  # of a value, MLflow's limit
_PARAMS_BATCH = 100
_SERVING_PACKAGES = (
    "mlflow",
    "numpy",
    "pandas",
    "polars",
    "pydantic",
    "pyyaml",
    "safetensors",
    "torch",
    "transformers",
)

# A server that is down costs seconds, not MLflow's default of four minutes; no chatter.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "5",
    "GIT_PYTHON_REFRESH": "quiet",
}
_PATIENT = {**_ENVIRONMENT, "MLFLOW_HTTP_REQUEST_TIMEOUT": "60"}


class StageRun:
    """The MLflow run of one stage; without a run (tracking off, or it failed to start) every method does nothing."""

    def __init__(self, client: MlflowClient | None = None, run_id: str | None = None) -> None:
        self.run_id = run_id
        self._client = client
        self._pending: list[Metric] = []
        self._next_flush = 0.0

    def log_params(self, values: Mapping[str, object]) -> None:
        """Log settings: nested mappings flattened with dots, `@` as `_at_`, values too long for MLflow cut."""
        if self._client is None or self.run_id is None:
            return
        with guard("params"):
            from mlflow.entities import Param

            params = [Param(key.replace("@", "_at_"), _param_text(value)) for key, value in flatten(values).items()]
            for start in range(0, len(params), _PARAMS_BATCH):
                self._client.log_batch(self.run_id, params=params[start : start + _PARAMS_BATCH])

    def set_tags(self, tags: Mapping[str, object]) -> None:
        """Set tags, which unlike params may change."""
        if self._client is None or self.run_id is None:
            return
        with guard("tags"):
            for key, value in tags.items():
                self._client.set_tag(self.run_id, key.replace("@", "_at_"), _param_text(value))

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics at a step (buffered); `@` becomes `_at_`, which MLflow accepts in a name."""
        if self._client is None:
            return
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._pending.extend(
            Metric(name.replace("@", "_at_"), float(value), now, step or 0) for name, value in metrics.items()
        )
        if time.monotonic() >= self._next_flush or len(self._pending) >= _BATCH:
            self.flush()

    def flush(self) -> None:
        """Send the buffered metrics; those that could not be sent stay buffered."""
        if self._client is None or self.run_id is None or not self._pending:
            return
        wait = _RETRY_SECONDS
        with guard("metrics"):
            while self._pending:
                self._client.log_batch(self.run_id, metrics=self._pending[:_BATCH], synchronous=True)
                del self._pending[:_BATCH]
            wait = _FLUSH_SECONDS
        self._next_flush = time.monotonic() + wait

    def log_dataset(self, data: PreparedData, context: str) -> None:
        """Log the prepared data as an input of the run: digest, source and size; `context` is e.g. `training`."""
        if self._client is None:
            return
        with guard("dataset"):
            import mlflow
            from mlflow.data.dataset_source_registry import get_dataset_source_from_json
            from mlflow.data.meta_dataset import MetaDataset

            source = get_dataset_source_from_json(json.dumps({"uri": str(data.folder.resolve())}), "local")
            stats = {k: v for k, v in data.stats.items() if isinstance(v, str | int | float)}
            name = str(stats.get("source", "prepared"))
            dataset = MetaDataset(source, name=name, digest=data.data_hash)  # type: ignore[abstract]
            mlflow.log_input(dataset, context=context, tags={k: str(v)[:500] for k, v in stats.items()})

    def log_policy(self, folder: Path, data: PreparedData) -> None:
        """Log a saved policy as a servable model (`rl4rec/serving.py`): raw item ids in, ranked item ids out."""
        if self._client is None:
            return
        with guard("policy"):
            log_policy_model(folder, data)

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Log a file, or a folder with all it holds."""
        if self._client is None or self.run_id is None:
            return
        with guard(f"artifact {path}"):
            log = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
            log(self.run_id, str(path), folder)


_REPLACEMENT: ContextVar[StageRun | None] = ContextVar("replacement", default=None)


def log_policy_model(folder: Path, data: PreparedData) -> ModelInfo:
    """Log a saved policy to the active run as a servable model, which holds the policy's folder and its vocabulary."""
    import mlflow
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types.schema import Array, ColSpec, DataType, ParamSchema, ParamSpec, Schema

    package = Path(__file__).parent
    strings, doubles = Array(DataType.string), Array(DataType.double)
    signature = ModelSignature(
        inputs=Schema([ColSpec(strings, "history"), ColSpec(strings, "exclude", required=False)]),
        outputs=Schema([ColSpec(strings, "items"), ColSpec(doubles, "scores"), ColSpec(strings, "unknown")]),
        params=ParamSchema([ParamSpec("k", DataType.long, 10)]),
    )
    history = [data.item_ids[int(item)] for item in data.sequences[0][:3]]
    logged: ModelInfo = mlflow.pyfunc.log_model(
        name="policy",
        python_model=str(package / "serving.py"),
        artifacts={"policy": str(folder), "items": str(data.folder / "items.parquet")},
        code_paths=[str(package)],
        signature=signature,
        input_example=(pd.DataFrame({"history": [history]}), {"k": 5}),
        pip_requirements=_serving_requirements(),
        metadata={"data_hash": data.data_hash},
    )
    return logged


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
        The run, which does nothing when tracking is off or could not start.
    """
    replacement = _REPLACEMENT.get()
    if replacement is not None:
        yield replacement
        return
    name = name or stage
    if not params.tracking.enabled or not is_main_process():
        yield StageRun()
        return
    run = StageRun()
    parent = None
    with guard("the start of the run"):
        client, parent, run_id = _start(stage, params, name)
        run = StageRun(client, run_id)
    run.log_params(stage_settings(params, stage, name.removeprefix(stage).strip("-@")))
    status = "FAILED"
    try:
        yield run
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        run.flush()
        if run.run_id is not None:
            with guard("the end of the run"):
                _end(parent, status)


def flatten(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Nested mappings as one level, keys joined with dots."""
    flat: dict[str, object] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def stage_settings(params: Params, stage: str, variant: str = "") -> dict[str, object]:
    """The settings a stage works with; those of `rl.ppo` and `rl.grpo` are named alike, so that both line up."""
    settings: dict[str, Any] = params.model_dump(mode="json")
    match stage:
        case "prepare":
            return {"data": settings["data"]}
        case "sft":
            return {"policy": settings["policy"], "sft": settings["sft"]}
        case "crossfit":
            return {"sft": settings["sft"], "rl": {"crossfit": settings["rl"]["crossfit"]}}
        case "rl" | "sft_continued":
            variant = variant or stage
            rl = settings["rl"]
            algorithms = {name: rl.pop(name) for name in ("ppo", "grpo", "sft_continued")}
            return {"policy": settings["policy"], "rl": {"algorithm": variant, **rl, **algorithms.get(variant, {})}}
        case "evaluate":
            return {"evaluated": variant, "evaluate": settings["evaluate"]}
        case _:
            return {stage: settings.get(stage, {})}


def pipeline_id() -> str | None:
    """What the stages of one pipeline share: `RL4REC_PIPELINE_ID`, or the `dvc` process above this one, or None."""
    given = os.environ.get("RL4REC_PIPELINE_ID")
    if given:
        return given
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process().parents():
            with contextlib.suppress(psutil.Error):
                if any(Path(part).name in ("dvc", "dvc.exe") for part in process.cmdline()[:3]):
                    experiment = os.environ.get("DVC_EXP_NAME", "")  # a queue's worker runs several experiments
                    return "-".join(filter(None, ["dvc", str(process.pid), f"{process.create_time():.2f}", experiment]))
    return None


def use_server(params: TrackingParams, root: Path = Path(), *, patient: bool = False) -> None:
    """Point MLflow at the server of the environment or the settings, or at the database file below `root`.

    `patient`: wait a minute for an answer, where nothing but the answer is wanted; tracking gives up after seconds.
    """
    for key, value in (_PATIENT if patient else _ENVIRONMENT).items():
        os.environ.setdefault(key, value)
    import mlflow

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    given = os.environ.get("MLFLOW_TRACKING_URI") or params.uri
    relative = "sqlite:///"
    if root != Path() and given.startswith(relative) and not given.startswith(f"{relative}/"):
        given = f"{relative}{root.resolve() / given.removeprefix(relative)}"
    mlflow.set_tracking_uri(given)


def connect(params: TrackingParams, root: Path = Path(), *, patient: bool = False) -> tuple[MlflowClient, str]:
    """Use the server; the client, and the id of the experiment, made active. `root` is that of `use_server`.

    Raises:
        MlflowException: the server does not answer.
    """
    use_server(params, root, patient=patient)
    import mlflow

    experiment = mlflow.set_experiment(params.experiment)
    return mlflow.MlflowClient(), str(experiment.experiment_id)


def _start(stage: str, params: Params, name: str) -> tuple[MlflowClient, str, str]:
    """Find or make the pipeline's run, start the stage's run below it; client, parent's id, own id."""
    import mlflow

    client, experiment = connect(params.tracking)
    parent = _pipeline_run(client, experiment, params)
    run = mlflow.start_run(
        run_name=name,
        nested=True,
        parent_run_id=parent,
        tags={"rl4rec.stage": stage},
        log_system_metrics=params.tracking.system_metrics,
    )
    return client, parent, run.info.run_id


def _pipeline_run(client: MlflowClient, experiment: str, params: Params) -> str:
    pipeline = pipeline_id() or f"{os.getpid()}-{time.time():.3f}"
    found = client.search_runs([experiment], f"tags.`{PIPELINE_TAG}` = '{pipeline}'", max_results=1)
    if found:
        client.update_run(found[0].info.run_id, status="RUNNING")
        return str(found[0].info.run_id)
    name = os.environ.get("DVC_EXP_NAME") or time.strftime("pipeline-%Y%m%d-%H%M%S")
    run = client.create_run(experiment, tags={PIPELINE_TAG: pipeline}, run_name=name)
    run_id = str(run.info.run_id)
    StageRun(client, run_id).log_params(params.model_dump(mode="json"))
    return run_id


def _end(parent: str | None, status: str) -> None:
    import mlflow

    try:
        mlflow.end_run(status)
    finally:
        if parent is not None:
            mlflow.MlflowClient().set_terminated(parent, status)


@contextlib.contextmanager
def guard(what: str) -> Iterator[None]:
    """Turn whatever MLflow raises into a warning."""
    try:
        yield
    except Exception as error:
        logger.warning("MLflow: %s not tracked: %s", what, redact(str(error)).split("\n")[0][:300])


def _param_text(value: object) -> str:
    text = redact(value if isinstance(value, str) else json.dumps(value, default=str))
    return text if len(text) <= _PARAM_CHARACTERS else text[: _PARAM_CHARACTERS - 3] + "..."


def _serving_requirements() -> list[str]:
    """The pinned packages that serving needs, as installed."""
    return [f"{name}=={importlib.metadata.version(name).split('+')[0]}" for name in _SERVING_PACKAGES]
