"""The policy as an MLflow model: raw item ids in, ranked item ids out.

MLflow stores this file itself ("models from code") beside the policy's folder and runs it to load the model, so
nothing is pickled. Serve it with

    mlflow models serve -m models:/rl4rec@champion --env-manager local

or with `rl4rec serve` (`server.py`), which is stricter and bounds what it reads:

    POST /invocations  {"dataframe_records": [{"history": ["B001", "B002"], "exclude": ["B009"]}], "params": {"k": 5}}
    ->                 {"predictions": [{"items": ["B007", ...], "scores": [3.1, ...], "unknown": []}]}
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from rl4rec.serve.recommender import InvalidRequest, Recommendation, load_recommender


class PolicyModel(PythonModel):
    """A `Recommender` behind MLflow's interface."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the policy and the vocabulary from the model's artifacts."""
        self.recommender = load_recommender(Path(context.artifacts["policy"]), Path(context.artifacts["items"]))

    # MLflow hands over the context only to a `predict` that has a parameter for it.
    def predict(  # type: ignore[override]
        self, model_input: pd.DataFrame, params: Mapping[str, Any] | None = None
    ) -> pd.DataFrame:
        """Rank `k` items (`params`, default 10) for each row of the column `history`, without those of `exclude`.

        Returns:
            A row for each history: `items` (list of raw ids, best first), `scores` (list of floats) and `unknown` (ids
            of the request that the catalogue does not have; they were ignored).

        Raises:
            MlflowException: the request is not of this form or too large; MLflow's server answers with status 400.
        """
        if "history" not in model_input:
            raise MlflowException.invalid_parameter_value(
                f"expected a column `history` of lists of item ids, got the columns {list(model_input)[:10]}"
            )
        exclude = [_cell(row, missing=[]) for row in model_input["exclude"]] if "exclude" in model_input else None
        histories = [_cell(row) for row in model_input["history"]]
        try:
            answers = self.recommender.answer(histories, k=(params or {}).get("k", 10), exclude=exclude)
        except InvalidRequest as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None
        return pd.DataFrame(answers, columns=Recommendation._fields)


def _cell(value: Any, missing: Any = None) -> Any:
    """A cell, as a list if it is an array (of a parquet file, say); `missing` if it is."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    return missing if value is None or (isinstance(value, float) and value != value) else value


mlflow.models.set_model(PolicyModel())  # how MLflow finds the model in this file
