"""Ranked lists for raw item ids: what serving and batch scoring share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rl4rec._io import read_parquet
from rl4rec.data.dataset import IntArray
from rl4rec.errors import UserError
from rl4rec.model.device import to_best_device, to_device
from rl4rec.model.load import load_policy
from rl4rec.model.policy import SlatePolicy
from rl4rec.model.scores import top_k

if TYPE_CHECKING:
    import polars as pl

MAX_IDS = 100_000  # of one history or exclusion: a request that is longer is a mistake or an attack
MAX_ROWS, MAX_LISTED = 10_000, 200_000  # histories of one served request, and items in all of its lists
_BATCH = 1024  # histories read at once


class InvalidRequest(ValueError):
    """Whoever asked must ask differently; the message says what was expected."""


class Recommendation(NamedTuple):
    """One ranked list.

    Attributes:
        items: raw ids, best first.
        scores: of the items; comparable within a list only.
        unknown: ids of the request that were ignored.
    """

    items: list[str]  # best first; fewer than k where fewer may be shown
    scores: list[float]
    unknown: list[str]  # ids of the request that the catalogue does not have, which were ignored


class Recommender:
    """Ranks the catalogue for histories of raw item ids, oldest first.

    An id may be given as a whole number: `12` is `"12"`, as in data whose ids are numbers. Ids outside the catalogue
    are ignored (and named in the answer); a history without a known id gets the most popular items, scored by their
    count. Items of the history are never shown again, unless the policy was trained with
    `mask_seen: false`.

    Args:
        policy: in evaluation mode, on the device where it is to run.
        item_ids: raw id of each item, (I,).
        popularity: interactions of each item, (I,).
    """

    def __init__(self, policy: SlatePolicy, item_ids: Sequence[str], popularity: IntArray) -> None:
        self.policy, self.item_ids = policy, list(item_ids)
        self._index = {item: row for row, item in enumerate(self.item_ids)}
        self._popular = np.argsort(-popularity, kind="stable")  # (I,)
        self._popularity = popularity

    @torch.no_grad()
    def recommend(
        self, histories: Sequence[Sequence[str | int]], *, k: int, exclude: Sequence[Sequence[str | int]] | None = None
    ) -> list[Recommendation]:
        """The k best items of each history.

        Args:
            histories: b histories.
            k: at most I.
            exclude: b lists of further items not to show.

        Returns:
            One list a history, best first.

        Raises:
            InvalidRequest: k is out of range, or what should be a list of ids is not, or is too long.
        """
        if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= len(self.item_ids):
            raise InvalidRequest(
                f"k must be a whole number from 1 to {len(self.item_ids)}, the size of the catalogue; got {_short(k)}"
            )
        answers: list[Recommendation] = []
        for start in range(0, len(histories), _BATCH):
            rows = histories[start : start + _BATCH]
            excluded = [()] * len(rows) if exclude is None else exclude[start : start + _BATCH]
            answers += self._batch([self._known(row) for row in rows], [self._known(row) for row in excluded], k)
        return answers

    def answer(
        self, histories: Sequence[Sequence[str | int]], *, k: int, exclude: Sequence[Sequence[str | int]] | None = None
    ) -> list[Recommendation]:
        """`recommend` for a server: no request may take long or have a huge answer.

        Raises:
            InvalidRequest: as `recommend`, or the request is empty, has too many histories, or asks for too much.
        """
        rows, sound = len(histories), isinstance(k, int) and 1 <= k <= len(self.item_ids)
        if not 1 <= rows <= MAX_ROWS or (sound and rows * k > MAX_LISTED):
            raise InvalidRequest(
                f"a request may have 1 to {MAX_ROWS} histories, and lists of {MAX_LISTED} items together; got "
                f"{rows} histories and k {_short(k)} (`rl4rec recommend` takes whole files)"
            )
        return self.recommend(histories, k=k, exclude=exclude)

    def _batch(
        self, histories: list[tuple[IntArray, list[str]]], excluded: list[tuple[IntArray, list[str]]], k: int
    ) -> list[Recommendation]:
        hidden = [
            np.concatenate([history, others]) if self.policy.config.mask_seen else others
            for (history, _), (others, _) in zip(histories, excluded, strict=True)
        ]
        answers: dict[int, tuple[IntArray, list[float]]] = {}
        known = [row for row, (history, _) in enumerate(histories) if len(history)]
        if known:
            found = self.policy.score(self.policy.encode([histories[row][0] for row in known]))
            for start, stop, scores in found.blocks():
                for place, best in enumerate(
                    zip(*_best(scores, [hidden[row] for row in known[start:stop]], k), strict=True)
                ):
                    answers[known[start + place]] = best
        for row in set(range(len(histories))) - answers.keys():
            shown = self._popular[~np.isin(self._popular, hidden[row])][:k]
            answers[row] = shown, [float(count) for count in self._popularity[shown]]
        return [
            Recommendation(
                [self.item_ids[item] for item in answers[row][0]],
                answers[row][1],
                [*dict.fromkeys(histories[row][1] + excluded[row][1])],
            )
            for row in range(len(histories))
        ]

    def _known(self, ids: Sequence[str | int]) -> tuple[IntArray, list[str]]:
        """Indices of the known ids, and the others."""
        if not isinstance(ids, list | tuple) or len(ids) > MAX_IDS:
            raise InvalidRequest(f"expected a list of at most {MAX_IDS} item ids, got {_short(ids)}")
        found, unknown = [], []
        for item in ids:
            name = id_text(item)
            row = self._index.get(name)
            if row is None:
                unknown.append(name)
            else:
                found.append(row)
        return np.array(found, dtype=np.int64), unknown


def id_text(item: object) -> str:
    """An item id as the data have it: text, and of a whole number its digits.

    Raises:
        InvalidRequest: it is something else: a truth value, a fraction, null.
    """
    if isinstance(item, str):
        return item
    if isinstance(item, int | np.integer) and not isinstance(item, bool) and -(2**63) <= item < 2**64:
        return str(item)
    raise InvalidRequest(f"an item id must be text or a whole number, got {_short(item)}")


def _short(value: object) -> str:
    """A value for a message: of what strangers send only the beginning."""
    if isinstance(value, list | tuple | dict):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, int) and abs(value) >= 10**18:
        return "a huge number"
    text = repr(value if not isinstance(value, str) else value[:40])
    return text[:60]


def _best(scores: Tensor, hidden: list[IntArray], k: int) -> tuple[list[IntArray], list[list[float]]]:
    """The k best items of each row that are not hidden, and their scores; writes to `scores`."""
    rows = torch.from_numpy(np.repeat(np.arange(len(hidden)), [len(items) for items in hidden]))
    places = to_device(torch.stack([rows, torch.from_numpy(np.concatenate(hidden))]), scores.device)
    scores[places[0], places[1]] = -torch.inf
    values, items = (part.cpu().numpy() for part in top_k(scores, k))
    shown = np.isfinite(values).sum(1)
    return (
        [row[:count] for row, count in zip(items, shown, strict=True)],
        [row[:count].tolist() for row, count in zip(values, shown, strict=True)],
    )


def read_items(path: Path) -> pl.DataFrame:
    """A policy's vocabulary: `item` (String, distinct) and `count` (whole numbers), row = index.

    Raises:
        UserError: missing, damaged, or something else.
    """
    import polars as pl  # ranking needs no tables

    table = read_parquet(path, ["item", "count"], then="Run `dvc repro prepare`.")
    whole = table.schema["item"] == pl.String and table.schema["count"].is_integer()
    if not whole or table["item"].n_unique() < len(table) or table.null_count().sum_horizontal().sum():
        raise UserError(f"{path}: not a vocabulary: expected distinct items and their counts. Run `dvc repro prepare`.")
    return table


def load_recommender(folder: Path, items: Path) -> Recommender:
    """Read a saved policy and its vocabulary (`items.parquet`), on the accelerator where there is one.

    Args:
        folder: of the policy, such as the pipeline's `models/grpo`.
        items: the vocabulary of its data, such as `data/prepared/items.parquet`.

    Raises:
        UserError: a file is missing or damaged, or the two do not belong together.
    """
    policy = load_policy(folder)
    table = read_items(items)
    if policy.num_items != len(table):
        raise UserError(
            f"{folder}: a policy of {policy.num_items} items, but {items} has {len(table)}. "
            "They are of different data: run `dvc repro`."
        )
    to_best_device(policy)
    return Recommender(policy, table["item"].to_list(), table["count"].to_numpy().astype(np.int64))
