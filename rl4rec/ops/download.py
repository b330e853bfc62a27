"""The policy inside a model of MLflow."""

from __future__ import annotations

from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException

from rl4rec.errors import UserError


def download_policy(uri: str, folder: Path) -> tuple[Path, Path]:
    """Fetch a logged or registered model; the policy's folder, and its vocabulary `items.parquet`.

    Args:
        uri: such as `models:/rl4rec@champion`.
        folder: where to put it.

    Raises:
        UserError: there is no such model, or it was not made by this project.
    """
    try:
        model = Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(folder)))
        artifacts = mlflow.models.Model.load(str(model)).flavors["python_function"]["artifacts"]
        policy, items = (model / artifacts[name]["path"] for name in ("policy", "items"))
    except (MlflowException, OSError) as error:
        raise UserError(
            f"{uri}: cannot be fetched ({str(error).splitlines()[0][:300]}). "
            "Check the name and the MLflow server. `rl4rec promote` makes the champion; a folder such as models/grpo "
            "needs no server."
        ) from None
    except (KeyError, TypeError):
        raise UserError(
            f"{uri}: not a model that rl4rec has logged. Name a version that `rl4rec promote` has registered."
        ) from None
    for path in (policy, items):
        if not path.resolve().is_relative_to(model.resolve()):
            raise UserError(f"{uri}: names a file outside of the model: {path}. Do not use it: name another version.")
    return policy, items
