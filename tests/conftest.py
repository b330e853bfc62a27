"""Shared fixtures: a tiny catalogue with a pattern that a tiny policy can learn."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from transformers import PreTrainedTokenizerBase

from rl4rec.data.dataset import PreparedData, Ragged
from rl4rec.data.vocabulary import build_tokenizer
from rl4rec.model.create import create_policy
from rl4rec.model.policy import SlatePolicy
from rl4rec.params import PolicyParams
from tests.accelerator import register

NUM_ITEMS = 24

register()  # before the first backward pass of this process: autograd then counts its devices


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without runs; making one takes seconds, so tests copy it."""
    from mlflow import MlflowClient

    folder = tmp_path_factory.mktemp("mlflow")
    MlflowClient(f"sqlite:///{folder}/mlflow.db").search_experiments()
    return folder / "mlflow.db"


@pytest.fixture
def tiny_data(tmp_path: Path) -> PreparedData:
    """60 users who walk through 24 items in steps of 1 or, every fourth user, of 5."""
    rows = []
    for user in range(60):
        step = 5 if user % 4 == 0 else 1
        rows.append([(3 * user + step * t) % NUM_ITEMS for t in range(6 + user % 3)])
    sequences = Ragged.from_rows(rows)
    counts = np.bincount(sequences.values, minlength=NUM_ITEMS)
    return PreparedData(
        folder=tmp_path / "prepared",
        users=[f"u{row}" for row in range(60)],
        item_ids=[f"i{item}" for item in range(NUM_ITEMS)],
        item_counts=counts.astype(np.int64),
        sequences=sequences,
        stats={"data_hash": "tiny", "users": 60, "items": NUM_ITEMS},
    )


@pytest.fixture
def tiny_tokenizer(tiny_data: PreparedData) -> PreTrainedTokenizerBase:
    return build_tokenizer(tiny_data.item_ids)


@pytest.fixture(params=["cosine", "dot"])
def tiny_policy(
    request: pytest.FixtureRequest, tiny_data: PreparedData, tiny_tokenizer: PreTrainedTokenizerBase
) -> SlatePolicy:
    """An untrained two-layer policy without dropout, with weights large enough to have opinions."""
    torch.manual_seed(0)
    params = PolicyParams(
        n_layer=2, n_embd=16, n_head=2, dropout=0.0, max_history=8, score=request.param, score_temperature=0.5
    )
    policy, _ = create_policy(params, tiny_data.item_ids, tiny_tokenizer)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return policy.train(False)


@pytest.fixture
def save_prepared(tiny_data: PreparedData) -> PreparedData:
    """The tiny data written to its folder, as `prepare` would."""
    import json

    tiny_data.folder.mkdir(parents=True)
    rows = [tiny_data.sequences[row].tolist() for row in range(len(tiny_data.sequences))]
    windows = {"before_valid": tiny_data.windows.valid, "before_test": tiny_data.windows.test}
    pl.DataFrame({"user": tiny_data.users, "items": rows, **windows}).with_columns(
        pl.col("items").cast(pl.List(pl.Int32))
    ).write_parquet(tiny_data.folder / "sequences.parquet")
    pl.DataFrame({"item": tiny_data.item_ids, "count": tiny_data.item_counts}).write_parquet(
        tiny_data.folder / "items.parquet"
    )
    (tiny_data.folder / "stats.json").write_text(json.dumps(tiny_data.stats))
    build_tokenizer(tiny_data.item_ids).save_pretrained(tiny_data.tokenizer_folder)
    return tiny_data
