"""The policy inside a model of MLflow."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.models_artifact_repo import ModelsArtifactRepository
from mlflow.store.artifact.runs_artifact_repo import RunsArtifactRepository

from rl4rec.errors import UserError


def download_policy(uri: str, folder: Path) -> tuple[Path, Path]:
    """Fetch a logged or registered model; the policy's folder, and its vocabulary `items.parquet`.

    Args:
        uri: such as `models:/rl4rec@champion`.
        folder: where to put it.

    Raises:
        UserError: there is no such model, its files are gone, or it was not made by this project.
    """
    try:
        model = Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(folder)))
        artifacts = mlflow.models.Model.load(str(model)).flavors["python_function"]["artifacts"]
        policy, items = (model / artifacts[name]["path"] for name in ("policy", "items"))
    except (MlflowException, OSError) as error:
        raise UserError(_unfetched(uri, error)) from None
    except (KeyError, TypeError):
        raise UserError(
            f"{uri}: not a model that rl4rec has logged. Name a version that `rl4rec promote` has registered."
        ) from None
    for path in (policy, items):
        if not path.resolve().is_relative_to(model.resolve()):
            raise UserError(f"{uri}: names a file outside of the model: {path}. Do not use it: name another version.")
    if not (items.is_file() and any(policy.glob("*.safetensors"))):
        raise UserError(_unfetched(uri, FileNotFoundError("its policy or its vocabulary is missing")))
    return policy, items


def _unfetched(uri: str, error: Exception) -> str:
    """Why a model cannot be had: MLflow does not know it, or knows it and its files are not there."""
    reason, place = str(error).splitlines()[0][:300], _place(uri)
    if place is None:
        return (
            f"{uri}: cannot be fetched ({reason}). Check the name and the MLflow server. `rl4rec promote` makes the "
            "champion; a folder such as models/grpo needs no server."
        )
    return (
        f"{uri}: is known to MLflow, but its files cannot be read ({reason}). They are expected in {place}. Put them "
        "back there, go back to another version with `rl4rec rollback`, or register a policy again with "
        "`rl4rec promote`; a folder such as models/grpo needs no server."
    )


def _place(uri: str) -> str | None:
    """Where MLflow expects the files of a model; None: it knows no such model, or does not answer."""
    repository = RunsArtifactRepository if uri.startswith("runs:") else ModelsArtifactRepository
    try:
        place = str(repository.get_underlying_uri(uri))
    except MlflowException:
        return None
    return url2pathname(urlsplit(place).path) if place.startswith("file:///") else place
