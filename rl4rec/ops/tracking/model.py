"""A policy as a servable MLflow model (`rl4rec/serve/mlflow_model.py`)."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import TYPE_CHECKING

from rl4rec.data.dataset import PreparedData

if TYPE_CHECKING:
    from mlflow.models.model import ModelInfo

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


def log_policy_model(folder: Path, data: PreparedData) -> ModelInfo:
    """Log a saved policy to the active run as a servable model, which holds the policy's folder and its vocabulary."""
    import mlflow
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, Array, ColSpec, DataType, ParamSchema, ParamSpec, Schema

    package = Path(__file__).parents[2]
    strings, doubles = Array(DataType.string), Array(DataType.double)
    # The model checks its lists itself: declared as arrays of strings, MLflow 3.17 would turn fractions and null into
    # text, refuse requests that exclude items for some histories only, and take ten times as long over it.
    anything = AnyType()  # type: ignore[no-untyped-call]
    signature = ModelSignature(
        inputs=Schema([ColSpec(anything, "history"), ColSpec(anything, "exclude", required=False)]),
        outputs=Schema([ColSpec(strings, "items"), ColSpec(doubles, "scores"), ColSpec(strings, "unknown")]),
        params=ParamSchema([ParamSpec("k", DataType.long, 10)]),
    )
    history = [data.item_ids[int(item)] for item in data.sequences[0][:3]]
    logged: ModelInfo = mlflow.pyfunc.log_model(
        name="policy",
        python_model=str(package / "serve" / "mlflow_model.py"),
        artifacts={"policy": str(folder), "items": str(data.folder / "items.parquet")},
        code_paths=[str(package)],
        signature=signature,
        input_example=(pd.DataFrame({"history": [history]}), {"k": 5}),
        pip_requirements=_serving_requirements(),
        metadata={"data_hash": data.data_hash},
    )
    return logged


def _serving_requirements() -> list[str]:
    """The pinned packages that serving needs, as installed."""
    return [f"{name}=={importlib.metadata.version(name).split('+')[0]}" for name in _SERVING_PACKAGES]
