"""The policy as an MLflow model: raw item ids in, ranked item ids out.

MLflow stores this file itself ("models from code") beside the policy's folder and runs it to load the model, so
nothing is pickled. Serve it with

    mlflow models serve -m models:/rl4rec@champion --env-manager local

    POST /invocations  {"dataframe_records": [{"history": ["B001", "B002"], "exclude": ["B009"]}], "params": {"k": 5}}
    ->                 {"predictions": [{"items": ["B007", ...], "scores": [3.1, ...], "unknown": []}]}
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from rl4rec.recommender import Recommendation, load_recommender

MAX_ROWS = 10_000  # histories of one request


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
            ValueError: k is not between 1 and the size of the catalogue, or the request is too large.
        """
        if len(model_input) > MAX_ROWS:
            raise ValueError(f"at most {MAX_ROWS} histories a request, got {len(model_input)}; see `rl4rec recommend`")
        exclude = [_listed(row) for row in model_input["exclude"]] if "exclude" in model_input else None
        answers = self.recommender.recommend(
            [_listed(row) for row in model_input["history"]], k=int((params or {}).get("k", 10)), exclude=exclude
        )
        return pd.DataFrame(answers, columns=Recommendation._fields)


def _listed(value: Any) -> list[str]:
    """A cell as a list; one that is missing is empty."""
    return [] if value is None or (isinstance(value, float) and value != value) else list(value)


mlflow.models.set_model(PolicyModel())  # how MLflow finds the model in this file
