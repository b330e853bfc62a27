"""Evaluate a scorer under every protocol.

Protocols: `full` ranks the whole catalogue without the items that the user has seen, `full_unmasked` with them,
`sampled<n>` the target among n sampled negatives. The negatives exclude everything the user ever took, so masking
would change nothing there.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor

from rl4rec import metrics
from rl4rec.algorithms import ORACLE
from rl4rec.data.dataset import FOLDS, PreparedData
from rl4rec.data.oddities import describe_repeats, oddities
from rl4rec.data.splits import LastItem
from rl4rec.evaluation.diversity import CoOccurrence
from rl4rec.evaluation.negatives import Negatives, sample_negatives
from rl4rec.evaluation.ranking import (
    BlockScorer,
    RankedFold,
    count_recommended,
    full_ranks,
    ranked_fold,
    recommended_items,
    sampled_ranks,
    score_blocks,
)
from rl4rec.model.device import to_device
from rl4rec.model.ranking import RankingPolicy
from rl4rec.params import DIVERSITY_K, EvaluateParams

METRICS: tuple[Literal["ndcg", "hit", "mrr"], ...] = ("ndcg", "hit", "mrr")
DECIMALS = 8
SLATE_LENGTH = 10  # items a user that are kept of the test fold, at most: what a person can look at

Ranks = npt.NDArray[np.int32]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one policy (as in `metrics/<policy>.json`) and the per-user ranks and slates behind them.

    Attributes:
        policy: its name.
        protocol: everything that two results must share to be comparable, and the versions behind this one.
        metrics: by key, such as `test/full/ndcg@10`; docs/metrics.md has every one.
        ranks: one row per user with a target: `user_row`, then a column for each fold and protocol, such as
            `test/full`; 0 is the top, null a user without a target in that fold.
        slates: one row per user of the test fold, in the same order: the items that the full ranking has on top; None
            where they were not read.
    """

    policy: str
    protocol: dict[str, Any]
    metrics: dict[str, float]
    ranks: pl.DataFrame  # int32
    slates: pl.DataFrame | None = None  # user_row int32, items list<int32>, see `slates_of`

    def users_of(self, fold: str) -> pl.Series:
        """`user_row` of the users with a target in a fold, (u,)."""
        column = next(name for name in self.ranks.columns if name.startswith(f"{fold}/"))
        return self.ranks.filter(pl.col(column).is_not_null())["user_row"]

    def ranks_of(self, column: str) -> Ranks:
        """The targets' ranks in a fold and protocol, such as `test/full`, (u,)."""
        return self.ranks[column].drop_nulls().to_numpy().copy()


def evaluate(name: str, policy: RankingPolicy, data: PreparedData, params: EvaluateParams) -> Evaluation:
    """All protocols on both folds.

    Args:
        name: of the policy, for the result.
        policy: encodes histories and scores the catalogue. It gets whole histories (the validation item included in
            the test fold's) and truncates by itself.
        data: whose held-out items are ranked.
        params: the `evaluate` section.

    Returns:
        The metrics by key, such as `metrics["test/full/ndcg@10"]`, and everyone's ranks.

    Raises:
        UserError: a score is NaN, or nobody has a held-out item.
    """
    folds = [ranked_fold(data, fold) for fold in FOLDS]
    repeats = describe_repeats(max(float(fold.repeated.mean()) for fold in folds))
    if repeats:
        _log.warning("%s", repeats)
    return _evaluate(name, [(fold, fold.block_scorer(policy)) for fold in folds], data, params)


def evaluate_oracle(data: PreparedData, params: EvaluateParams) -> Evaluation | None:
    """Evaluate the true next-item distribution, the best that any policy could do.

    Args:
        data: of a simulated shop.
        params: the `evaluate` section.

    Returns:
        As `evaluate`; None where the distribution is not known, which is so for all real data.
    """
    folds: list[tuple[RankedFold, BlockScorer]] = []
    for name in FOLDS:
        truth = data.oracle(name)
        if truth is None:
            return None
        folds.append((ranked_fold(data, name), _rows_of(torch.from_numpy(truth))))
    return _evaluate(ORACLE, folds, data, params)


def _rows_of(scores: Tensor) -> BlockScorer:
    return lambda start, stop: scores[start:stop]


def _evaluate(
    name: str, folds: Sequence[tuple[RankedFold, BlockScorer]], data: PreparedData, params: EvaluateParams
) -> Evaluation:
    users = np.unique(np.concatenate([fold.user_rows for fold, _ in folds]))
    sequences = data.sequences if len(users) == len(data.sequences) else data.sequences.take(users)
    negatives = sample_negatives(sequences, num_items=data.num_items, n=params.negatives, seed=params.seed)
    found: dict[str, float] = {}
    ranks: dict[str, pl.Series] = {"user_row": pl.Series(users.astype(np.int32))}
    together = CoOccurrence(data.train_sequences(), data.num_items)
    slates: pl.DataFrame | None = None
    for fold, score in folds:
        rows = np.searchsorted(users, fold.user_rows)
        fold_ranks, shown = _rank(fold, score, data.num_items, negatives.items[rows], params)
        for protocol, values in fold_ranks.items():
            measured = _accuracy(values, params.ks)
            if protocol in shown:
                measured |= _beyond_accuracy(shown[protocol], data, params.ks)
            if protocol == "full":
                small = [k for k in params.ks if k <= DIVERSITY_K]
                diversity = together.diversity(shown["full"][:, :DIVERSITY_K], small)
                measured |= {("diversity", k): value for k, value in zip(small, diversity, strict=True)}
            found |= {
                metrics.metric_key(fold.name, protocol, metric, k): round(value, DECIMALS)
                for (metric, k), value in measured.items()
            }
            ranks[f"{fold.name}/{protocol}"] = _spread(values, rows, len(users))
        if fold.name == "test":
            slates = slates_of(fold.user_rows, shown["full"])
    return Evaluation(name, protocol_card(data, params, negatives, folds), found, pl.DataFrame(ranks), slates)


def _spread(values: Ranks, rows: npt.NDArray[np.int64], users: int) -> pl.Series:
    """Values of some users as a column of all of them, (users,), null for the others."""
    if len(rows) == users:
        return pl.Series(values)
    column = pl.Series([None] * users, dtype=pl.Int32)
    return column.scatter(rows, pl.Series(values))


def slates_of(users: npt.NDArray[Any], shown: npt.NDArray[np.int32]) -> pl.DataFrame:
    """The first items of each user's ranking as a table: `user_row` (int32), `items` (list<int32>, best first).

    Args:
        users: (u,) rows of the users in the data set.
        shown: (u, K) item rows, best first, -1 after the last one that may be recommended; the first `SLATE_LENGTH`
            columns are kept.
    """
    lists = pl.Series("items", shown[:, :SLATE_LENGTH].tolist(), dtype=pl.List(pl.Int32))
    table = pl.DataFrame({"user_row": users.astype(np.int32), "items": lists})
    return table.with_columns(pl.col("items").list.filter(pl.element() >= 0))


def _rank(
    fold: RankedFold, score: BlockScorer, num_items: int, negatives: npt.NDArray[np.int32], params: EvaluateParams
) -> tuple[dict[str, Ranks], dict[str, npt.NDArray[np.int32]]]:
    """Ranks by protocol (u,), and the items on top by protocol (u, ks[-1]), from negatives (u, n)."""
    users = len(fold.targets)
    sampled = f"sampled{params.negatives}"
    ranks = {protocol: np.empty(users, np.int32) for protocol in ("full", "full_unmasked", sampled)}
    width = min(params.ks[-1], num_items)
    shown = {protocol: np.empty((users, width), np.int32) for protocol in ("full", "full_unmasked")}
    for start, stop, scores in score_blocks(
        score, users=users, num_items=num_items, batch_size=params.batch_size, name=f"evaluation on {fold.name}"
    ):
        targets = to_device(torch.from_numpy(fold.targets[start:stop]), scores.device)
        drawn = to_device(torch.from_numpy(negatives[start:stop].astype(np.int64)), scores.device)
        seen = fold.seen_pairs(start, stop, scores.device)
        ranks[sampled][start:stop] = sampled_ranks(scores, targets, drawn).cpu().numpy()
        shown["full_unmasked"][start:stop] = recommended_items(scores, width).cpu().numpy()
        unmasked_scores = scores[seen]
        scores[seen] = -torch.inf
        shown["full"][start:stop] = recommended_items(scores, width).cpu().numpy()
        scores[seen] = unmasked_scores
        masked, unmasked = full_ranks(scores, targets, seen)  # last: it writes over the scores
        ranks["full"][start:stop] = masked.cpu().numpy()
        ranks["full_unmasked"][start:stop] = unmasked.cpu().numpy()
    ranks["full"][fold.repeated] = num_items - 1
    return ranks, shown


def _accuracy(ranks: Ranks, ks: Sequence[int]) -> dict[tuple[str, int], float]:
    """Mean NDCG, HR and MRR at each cut-off from the targets' 0-based ranks (u,)."""
    values = torch.from_numpy(ranks)
    return {(name, k): float(metrics.rank_gains(values, k=k, metric=name).mean()) for k in ks for name in METRICS}


def _beyond_accuracy(
    shown: npt.NDArray[np.int32], data: PreparedData, ks: Sequence[int]
) -> dict[tuple[str, int], float]:
    """Coverage and popularity of the items on top, (u, ks[-1]), at each cut-off."""
    counts = data.item_counts
    recommended = count_recommended(shown, ks, data.num_items)  # (len(ks), I)
    percentile = data.popularity_percentiles()
    found: dict[tuple[str, int], float] = {}
    for k, row in zip(ks, recommended, strict=True):
        slots = max(int(row.sum()), 1)
        found["coverage", k] = float((row > 0).mean())
        found["popularity", k] = float(row @ counts) / slots
        found["popularity_percentile", k] = float(row @ percentile) / slots
    return found


def protocol_card(
    data: PreparedData,
    params: EvaluateParams,
    negatives: Negatives,
    folds: Sequence[tuple[RankedFold, BlockScorer]],
) -> dict[str, Any]:
    """Everything that two results must share to be comparable, and the versions that made them."""
    held_out = data.stats.get("held_out", {})
    return {
        "data_hash": data.data_hash,
        "source": data.stats.get("source"),
        "users": len(data.users),
        "evaluated_users": len(folds[-1][0].targets),
        "targets": {fold.name: len(fold.targets) for fold, _ in folds},
        "items": data.num_items,
        "split": data.stats.get("split", {}).get("rule", LastItem.rule),
        "order": data.stats.get("rules", {}).get("order"),
        "tied_neighbours": data.stats.get("ties", {}).get("tied_neighbours"),
        "tied_targets": {fold.name: held_out.get(fold.name, {}).get("tied_targets") for fold, _ in folds},
        "cold_targets": {fold.name: int((data.item_counts[fold.targets] == 0).sum()) for fold, _ in folds},
        "without_training": {
            "users": int((data.windows.valid == 0).sum()),
            "items": int((data.item_counts == 0).sum()),
        },
        "odd": oddities(data.stats),
        "k": list(params.ks),
        "tie_rule": "ties count against the target",
        "masking": "full: items of the history are never proposed; full_unmasked: they are; sampled: never negatives",
        "repeated_targets": {fold.name: int(fold.repeated.sum()) for fold, _ in folds},
        "negatives": {
            "n": params.negatives,
            "sampler": "uniform over the items outside the user's whole sequence, distinct",
            "seed": params.seed,
            "digest": negatives.digest,
            "users_with_fewer": negatives.short_users,
        },
        "seeds": {"negatives": params.seed},
        "versions": {package: version(package) for package in ("numpy", "torch", "transformers")},
    }
