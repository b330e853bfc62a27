"""What the gate compares: a policy's evaluation, and the champion's on the same data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor

from rl4rec.data.dataset import IntArray, PreparedData
from rl4rec.evaluation.protocols import METRICS, Evaluation, evaluate
from rl4rec.metrics import MetricKey, rank_gains
from rl4rec.model.device import to_best_device, to_device
from rl4rec.model.load import load_policy
from rl4rec.model.policy import SlatePolicy
from rl4rec.ops.gate import Measured
from rl4rec.params import EvaluateParams
from rl4rec.serve.recommender import read_items


def measured(evaluation: Evaluation, keys: Iterable[str]) -> Measured:
    """What the gate needs of an evaluation: per-user values of accuracy metrics, the value of any other.

    Args:
        evaluation: of a policy.
        keys: such as `test/full/ndcg@10`, all of them measured.
    """
    users, values = {}, {}
    for key in keys:
        fold, protocol, name, k = MetricKey.parse(key)
        if name in METRICS:
            ranks = torch.from_numpy(evaluation.ranks_of(f"{fold}/{protocol}"))
            users[key] = rank_gains(ranks, k=k, metric=name).numpy()
        else:
            values[key] = evaluation.metrics[key]
    return Measured(users, values)


def comparable(first: Evaluation, second: Evaluation) -> bool:
    """Whether two evaluations are of the same users, data and protocol."""
    cards = [{key: value for key, value in each.protocol.items() if key != "versions"} for each in (first, second)]
    return cards[0] == cards[1]


def evaluate_elsewhere(folder: Path, items: Path, data: PreparedData, params: EvaluateParams) -> Evaluation:
    """Evaluate a policy on data other than those that it was trained on.

    Items that the policy does not know are never proposed and ignored in histories; histories without any known item
    are ranked by the popularity the policy was served with. So it stands on the new data as it would in production.

    Args:
        folder: the saved policy.
        items: its vocabulary, `items.parquet`.
        data: what to evaluate on.
        params: the protocol.
    """
    policy, known = load_policy(folder), read_items(items)
    to_best_device(policy)
    return evaluate("champion", TransferredPolicy(policy, known["item"].to_list(), known["count"], data), data, params)


class TransferredPolicy:
    """Ranks the catalogue of `data` with a policy of another catalogue.

    Args:
        policy: of the other catalogue.
        item_ids: raw ids of its items.
        counts: their popularity, the scores for histories without an item that the policy knows.
        data: whose catalogue is ranked.
    """

    def __init__(self, policy: SlatePolicy, item_ids: Sequence[str], counts: pl.Series, data: PreparedData) -> None:
        place = {item: row for row, item in enumerate(item_ids)}
        self._policy = policy
        self._own = np.array([place.get(item, -1) for item in data.item_ids], np.int64)  # (I,) the policy's index
        self._popularity = to_device(torch.from_numpy(counts.to_numpy().copy()).float(), policy.device)
        self._unknown = to_device(torch.from_numpy(self._own < 0), policy.device)

    def encode(self, histories: Sequence[IntArray]) -> list[IntArray]:
        """Each history as the policy knows it."""
        translated = [self._own[history] for history in histories]
        return [items[items >= 0] for items in translated]

    def score(self, states: list[IntArray]) -> Tensor:
        """(b, I); -inf for items that the policy does not know."""
        scores = self._popularity.repeat(len(states), 1)  # (b, the policy's I)
        rows = [row for row, history in enumerate(states) if len(history)]
        if rows:
            scores[to_device(torch.tensor(rows), scores.device)] = self._policy.scores([states[row] for row in rows])
        ours = scores[:, to_device(torch.from_numpy(self._own), scores.device)]
        return ours.masked_fill_(self._unknown, -torch.inf)
