"""The served model, with a policy whose scores are known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy.typing as npt
import pandas as pd
import polars as pl
import pytest
import torch

from rl4rec.policy import SlatePolicy
from rl4rec.serving import PolicyModel


class Known:
    """Scores item i with i, and with 10 what follows the last item of the history."""

    def __init__(self, mask_seen: bool) -> None:
        self.config = SimpleNamespace(mask_seen=mask_seen)

    def train(self, mode: bool) -> Known:
        assert not mode
        return self

    def scores(self, histories: Sequence[npt.NDArray[Any]]) -> torch.Tensor:
        scores = torch.arange(5.0).repeat(len(histories), 1)
        for row, history in enumerate(histories):
            scores[row, (int(history[-1]) + 1) % 5] = 10.0
        return scores


def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, mask_seen: bool = True) -> PolicyModel:
    items = pl.DataFrame({"item": list("ABCDE"), "count": [5, 1, 9, 1, 2]})
    items.write_parquet(tmp_path / "items.parquet")
    monkeypatch.setattr(SlatePolicy, "from_pretrained", lambda folder: Known(mask_seen))
    served = PolicyModel()
    served.load_context(SimpleNamespace(artifacts={"policy": "models/grpo", "items": str(tmp_path / "items.parquet")}))
    return served


def predict(served: PolicyModel, *histories: list[str], k: int) -> list[tuple[list[str], list[float]]]:
    frame = served.predict(pd.DataFrame({"history": list(histories)}), {"k": k})
    return list(zip(frame["items"], frame["scores"], strict=True))


def test_ranks_unseen_items_by_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = model(tmp_path, monkeypatch)
    # After A comes B (10), then E and D; C is left out by k.
    assert predict(served, ["A"], k=3) == [(["B", "E", "D"], [10.0, 4.0, 3.0])]
    # After E comes A, which was seen, like E: D, C, B.
    assert predict(served, ["A", "E"], k=3) == [(["D", "C", "B"], [3.0, 2.0, 1.0])]


def test_fewer_than_k_unseen_items(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert predict(model(tmp_path, monkeypatch), ["A", "B", "C", "D"], k=5) == [(["E"], [10.0])]


def test_seen_items_stay_where_the_policy_was_trained_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = model(tmp_path, monkeypatch, mask_seen=False)
    assert predict(served, ["A", "E"], k=2) == [(["A", "E"], [10.0, 4.0])]


def test_unknown_items_are_ignored_and_strangers_get_what_is_popular(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = model(tmp_path, monkeypatch)
    rows = predict(served, ["?"], ["A", "?"], [], k=2)
    # Counts: C 9, A 5.
    assert rows == [(["C", "A"], [9.0, 5.0]), (["B", "E"], [10.0, 4.0]), (["C", "A"], [9.0, 5.0])]


@pytest.mark.parametrize("k", [0, 6])
def test_k_outside_of_the_catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, k: int) -> None:
    with pytest.raises(ValueError, match="between 1 and 5"):
        predict(model(tmp_path, monkeypatch), ["A"], k=k)
