"""The policy as an MLflow model: raw item ids in, ranked item ids out.

MLflow stores this file itself ("models from code") beside the policy's folder and runs it to load the model, so
nothing is pickled. Serve it with

    mlflow models serve -m "models:/<model id>" --env-manager local

    POST /invocations  {"dataframe_records": [{"history": ["B001", "B002"]}], "params": {"k": 5}}
    ->                 {"predictions": [{"items": ["B007", ...], "scores": [3.1, ...]}]}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import polars as pl
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from rl4rec.data.prepared import IntArray
from rl4rec.policy import SlatePolicy


class PolicyModel(PythonModel):
    """Ranks the catalogue for each history of raw item ids, oldest first.

    Ids outside the catalogue are ignored; a history without a known id gets the most popular items, scored by
    their count. Items of the history are never recommended, unless the policy was trained with `mask_seen: false`.
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Load the policy and the vocabulary from the model's artifacts."""
        self.policy = SlatePolicy.from_pretrained(context.artifacts["policy"]).train(False)
        items = pl.read_parquet(context.artifacts["items"], columns=["item", "count"])
        self.item_ids: list[str] = items["item"].to_list()
        self.index = {item: row for row, item in enumerate(self.item_ids)}
        self.popularity = items["count"].to_numpy().astype(np.float32)

    # MLflow hands over the context only to a `predict` that has a parameter for it.
    def predict(  # type: ignore[override]
        self, model_input: pd.DataFrame, params: Mapping[str, Any] | None = None
    ) -> pd.DataFrame:
        """Rank `k` items (`params`, default 10) for each row of the column `history`.

        Returns:
            A row for each history: `items` (list of raw ids, best first) and `scores` (list of floats).

        Raises:
            ValueError: k is not between 1 and the size of the catalogue.
        """
        k = int((params or {}).get("k", 10))
        if not 1 <= k <= len(self.item_ids):
            raise ValueError(f"k must be between 1 and {len(self.item_ids)}, the size of the catalogue; got {k}")
        histories = [self._known(row) for row in model_input["history"]]
        scores = np.tile(self.popularity, (len(histories), 1))  # (b, I)
        known = [row for row, history in enumerate(histories) if len(history)]
        if known:
            scores[known] = self.policy.scores([histories[row] for row in known]).numpy()
        rows = [self._ranked(row, history, k) for row, history in zip(scores, histories, strict=True)]
        return pd.DataFrame(rows, columns=["items", "scores"])

    def _known(self, history: Sequence[str]) -> IntArray:
        return np.array([self.index[item] for item in history if item in self.index], dtype=np.int64)

    def _ranked(self, scores: np.ndarray[Any, Any], history: IntArray, k: int) -> tuple[list[str], list[float]]:
        if self.policy.config.mask_seen:
            scores[history] = -np.inf
        best = np.argsort(-scores, kind="stable")[:k]
        best = best[np.isfinite(scores[best])]
        return [self.item_ids[item] for item in best], [float(scores[item]) for item in best]


mlflow.models.set_model(PolicyModel())  # how MLflow finds the model in this file
