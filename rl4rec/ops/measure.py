"""What the gate compares: a policy's evaluation, and the champion's on the same data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import polars as pl
import torch
from torch import Tensor

from rl4rec.data.dataset import IntArray, PreparedData
from rl4rec.evaluation.protocols import METRICS, Evaluation, evaluate
from rl4rec.evaluation.ranking import Scorer
from rl4rec.metrics import MetricKey, rank_gains
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
            ranks = torch.from_numpy(evaluation.ranks[f"{fold}/{protocol}"].to_numpy().copy())
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
    return evaluate("champion", transferred_scorer(policy, known["item"].to_list(), known["count"], data), data, params)


def transferred_scorer(policy: SlatePolicy, item_ids: Sequence[str], counts: pl.Series, data: PreparedData) -> Scorer:
    """Scores of the catalogue of `data` by a policy of another catalogue."""
    place = {item: row for row, item in enumerate(item_ids)}
    own = torch.tensor([place.get(item, -1) for item in data.item_ids])  # (I,) the policy's index of each item
    shared = own >= 0
    popularity = torch.from_numpy(counts.to_numpy().copy()).float()

    def score(histories: Sequence[IntArray]) -> Tensor:
        translated = [own[torch.from_numpy(history)] for history in histories]
        readable = [items[items >= 0].numpy() for items in translated]
        scores = popularity.repeat(len(histories), 1)  # (b, the policy's I)
        rows = [row for row, history in enumerate(readable) if len(history)]
        if rows:
            with torch.no_grad():
                scores[rows] = policy.scores([readable[row] for row in rows])
        ours = torch.full((len(histories), len(own)), -torch.inf)
        ours[:, shared] = scores[:, own[shared]]
        return ours

    return score
