"""The MLflow server of the settings: which one, and how long to wait for it."""

from __future__ import annotations

import contextlib
import http.client
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rl4rec._console import redact
from rl4rec.params import TrackingParams

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger("rl4rec.tracking")

# Requests fail early, and are not repeated by MLflow: the outbox tries again, and a command says what happened.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "5",
    "GIT_PYTHON_REFRESH": "quiet",
}
_PATIENT = {**_ENVIRONMENT, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "60"}


def use_server(params: TrackingParams, root: Path = Path(), *, patient: bool = False) -> None:
    """Point MLflow at the server of the environment or the settings, or at the database file below `root`.

    `patient`: for a command that can do nothing without an answer: wait a minute, and ask again.
    """
    for key, value in (_PATIENT if patient else _ENVIRONMENT).items():
        os.environ.setdefault(key, value)
    import mlflow

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    mlflow.set_tracking_uri(server_address(params, root))


def server_address(params: TrackingParams, root: Path = Path()) -> str:
    """The address of the environment, else of the settings, with a database file below `root`."""
    given = os.environ.get("MLFLOW_TRACKING_URI") or params.uri
    relative = "sqlite:///"
    if root != Path() and given.startswith(relative) and not given.startswith(f"{relative}/"):
        given = f"{relative}{root.resolve() / given.removeprefix(relative)}"
    return given


def answers(address: str, timeout: float) -> bool:
    """Whether a server answers anything at all; True where there is none to ask (a database file)."""
    if not address.startswith(("http://", "https://")):
        return True
    try:
        urllib.request.urlopen(f"{address.rstrip('/')}/health", timeout=timeout).close()
    except urllib.error.HTTPError:
        return True  # it has no such page, or lets nobody in
    except (OSError, http.client.HTTPException):
        return False
    return True


def connect(params: TrackingParams, root: Path = Path(), *, patient: bool = False) -> tuple[MlflowClient, str]:
    """Use the server; the client, and the id of the experiment, made active. `root` is that of `use_server`.

    Raises:
        MlflowException: the server does not answer.
    """
    use_server(params, root, patient=patient)
    import mlflow

    _make_database(mlflow.get_tracking_uri())
    experiment = mlflow.set_experiment(params.experiment)
    return mlflow.MlflowClient(), str(experiment.experiment_id)


def _make_database(address: str) -> None:
    """Make a database file that is not there yet, in one step.

    MLflow needs seconds to build its tables, and cannot go on with a database whose building was interrupted.
    """
    prefix = "sqlite:///"
    path = Path(address.removeprefix(prefix))
    if not address.startswith(prefix) or path.exists():
        return
    import mlflow

    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    mlflow.MlflowClient(f"{prefix}{draft}").search_experiments(max_results=1)
    with contextlib.suppress(FileExistsError):  # another process was faster
        os.link(draft, path)
    draft.unlink()


@contextlib.contextmanager
def guard(what: str) -> Iterator[None]:
    """Turn whatever MLflow raises into a warning."""
    try:
        yield
    except Exception as error:
        logger.warning("MLflow: %s not tracked: %s", what, redact(str(error)).split("\n")[0][:300])
