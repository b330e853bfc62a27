"""The MLflow server of the settings: which one, and how long to wait for it."""

from __future__ import annotations

import contextlib
import http.client
import logging
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rl4rec._console import redact
from rl4rec.errors import UserError
from rl4rec.ops.tracking.database import UnfitDatabase, check_version, database_file, make_database
from rl4rec.ops.tracking.places import mend_places
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

    `patient`: for a command that can do nothing without an answer: wait a minute, and ask again. The places of
    artifacts in a database file are mended where the project was moved (`places`).

    Raises:
        UserError: the database file is of another MLflow, or cannot be named.
    """
    for key, value in (_PATIENT if patient else _ENVIRONMENT).items():
        os.environ.setdefault(key, value)
    import mlflow

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    address = server_address(params, root)
    mlflow.set_tracking_uri(address)
    file = database_file(address)
    if file is not None and file.exists():
        check_version(file)
        mend_places(file, root)


def server_address(params: TrackingParams, root: Path = Path()) -> str:
    """The address of the environment, else of the settings, with a database file below `root`."""
    given = os.environ.get("MLFLOW_TRACKING_URI") or params.uri
    relative = "sqlite:///"
    if root != Path() and given.startswith(relative) and not given.startswith(f"{relative}/"):
        if re.search("[%?]", str(root.resolve())):  # SQLAlchemy reads the address as if it were quoted, MLflow does not
            raise UserError(
                f"{root.resolve()}: from another folder MLflow cannot open a database whose path has % or ? in it. "
                "Go there and leave out --root, or rename the folder."
            )
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
        UserError: its database is of another MLflow.
    """
    use_server(params, root, patient=patient)
    import mlflow
    from mlflow.exceptions import MlflowException

    address = mlflow.get_tracking_uri()
    file = database_file(address)
    if file is not None:
        make_database(file)
    try:
        experiment = mlflow.set_experiment(params.experiment)
        if file is not None and mend_places(file, root):  # of a new experiment
            experiment = mlflow.set_experiment(params.experiment)
    except MlflowException as error:
        if "database schema" not in str(error):
            raise
        raise UnfitDatabase(
            f"{redact(address)}: another MLflow than {mlflow.__version__} has written this database. Back it up, "
            "then run `mlflow db upgrade` with its address"
        ) from None
    return mlflow.MlflowClient(), str(experiment.experiment_id)


@contextlib.contextmanager
def guard(what: str) -> Iterator[None]:
    """Turn whatever MLflow raises into a warning."""
    try:
        yield
    except Exception as error:
        logger.warning("MLflow: %s not tracked: %s", what, redact(str(error)).split("\n")[0][:300])
