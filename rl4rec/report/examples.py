"""Real slates of some users, before and after RL: chosen by a rule that is fixed before anyone looks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from rl4rec import metrics
from rl4rec.algorithms import SHOWN, START, get_policy, rl_algorithms
from rl4rec.data.dataset import IntArray, PreparedData, Split
from rl4rec.errors import UserError
from rl4rec.evaluation.protocols import SLATE_LENGTH, Evaluation
from rl4rec.report.logs import FloatArray

BEFORE, AFTER = START, SHOWN
_EXTREME, _RANDOM = 2, 2  # users whose target moved up most, as many whose target moved down most, and drawn ones
_HISTORY = 8  # latest items of the history that are shown


@dataclass(frozen=True)
class Item:
    """An item as the report shows it."""

    name: str  # the raw id
    count: int  # interactions in the training part
    target: bool = False
    change: str = ""  # against the slate of `BEFORE`: "new", "up 2", "down 1", or "" where nothing changed


@dataclass(frozen=True)
class Slate:
    """What one policy would show one user."""

    policy: str
    items: list[Item]  # best first
    left: list[Item]  # what `BEFORE` showed and this policy does not
    rank: int  # the target's, 1 is the top
    ndcg: float


@dataclass(frozen=True)
class Example:
    """One user: the history, what came next, and the slates."""

    why: str  # the part of the rule that chose the user
    user_row: int
    history: list[Item]  # the latest ones, oldest first
    history_length: int
    target: Item
    slates: list[Slate]


def shown_policies() -> tuple[str, ...]:
    """Keys of the policies whose slates are shown, side by side: `BEFORE` first, `AFTER` last."""
    return (BEFORE, *(policy.key for policy in rl_algorithms() if policy.key != AFTER), AFTER)


def selection_rule(k: int, seed: int) -> str:
    """The rule in words."""
    before, after = (get_policy(key).label for key in (BEFORE, AFTER))
    return (
        f"Chosen by rule, before anyone looked: the {_EXTREME} users whose test NDCG@{k} on the full catalogue rose "
        f"most from {before} to {after}, as many users for whom it fell most (of equal ones those first in the data), "
        f"and {_RANDOM} of the others drawn with `compare.seed` = {seed}."
    )


def choose_users(change: FloatArray, seed: int) -> list[tuple[int, str]]:
    """Places of the users to show, each with the part of the rule that chose it.

    Args:
        change: (u,) per-user change of the metric.
        seed: of the draw.
    """
    order = np.argsort(-change, kind="stable")
    falling = np.argsort(change, kind="stable")
    count = min(_EXTREME, int((change > 0).sum()), int((change < 0).sum()))
    up, down = order[:count].tolist(), falling[:count].tolist()
    others = np.setdiff1d(np.arange(len(change)), [*up, *down])
    drawn = np.random.default_rng(seed).choice(others, min(_RANDOM, len(others)), replace=False)
    return [
        *((place, "Rose most") for place in up),
        *((place, "Fell most") for place in down),
        *((place, "Drawn at random") for place in sorted(drawn.tolist())),
    ]


def find_examples(
    evaluations: Mapping[str, Evaluation], slates: Mapping[str, pl.DataFrame], data: PreparedData, *, k: int, seed: int
) -> tuple[list[Example], list[str]]:
    """Examples of the test fold, and notes on why there are none.

    Args:
        evaluations: by policy, of one protocol.
        slates: the slates of `shown_policies` as `load_slates` reads them; where one is missing there are no examples.
        data: what was evaluated.
        k: the reported cut-off; a slate shows its first k items, at most `SLATE_LENGTH`.
        seed: of the drawn users.

    Raises:
        UserError: the evaluations are of other data, or a policy's slates and ranks are of different runs.
    """
    policies = shown_policies()
    missing = [policy for policy in policies if policy not in slates]
    if missing:
        return [], [f"No examples: no `slates/{name}.parquet`. Run `dvc repro evaluate@{name}`." for name in missing]
    split = data.split("test")
    ranks: dict[str, npt.NDArray[np.int32]] = {}
    for policy in policies:
        found = evaluations[policy]
        if found.protocol["data_hash"] != data.data_hash or not np.array_equal(
            found.users_of("test").to_numpy(), split.user_rows
        ):
            raise UserError(f"ranks/{policy}.parquet is of other data than {data.folder}. Run `dvc repro`.")
        ranks[policy] = found.ranks_of("test/full")
        _require_one_run(policy, slates[policy]["items"], ranks[policy], split.targets)
    gains = {policy: metrics.ndcg(torch.from_numpy(values), k=k).numpy() for policy, values in ranks.items()}
    examples = []
    for place, why in choose_users(gains[AFTER] - gains[BEFORE], seed):
        lists = {policy: slates[policy]["items"][place].to_list()[: min(k, SLATE_LENGTH)] for policy in policies}
        results = {policy: (int(ranks[policy][place]) + 1, float(gains[policy][place])) for policy in policies}
        examples.append(_example(place, why, split, lists, results, data))
    return examples, []


def _require_one_run(policy: str, slates: pl.Series, ranks: npt.NDArray[np.int32], targets: IntArray) -> None:
    """A target is in its user's slate where its rank says so; ties count against the rank only."""
    lengths = slates.list.len().to_numpy().astype(np.int64)
    flat = slates.explode(empty_as_null=False).to_numpy()
    hits = np.flatnonzero(flat == np.repeat(targets, lengths))
    users = np.repeat(np.arange(len(lengths)), lengths)[hits]
    places = lengths.copy()  # of the target; behind the slate where it is not in it
    places[users] = hits - (np.cumsum(lengths) - lengths)[users]
    if (ranks < places).any():
        raise UserError(
            f"slates/{policy}.parquet and ranks/{policy}.parquet are of different runs. "
            f"Run `dvc repro evaluate@{policy}`."
        )


def _example(
    place: int,
    why: str,
    split: Split,
    lists: Mapping[str, list[int]],
    results: Mapping[str, tuple[int, float]],
    data: PreparedData,
) -> Example:
    target, history, before = int(split.targets[place]), split.history[place].tolist(), lists[BEFORE]

    def item(row: int, change: str = "") -> Item:
        return Item(data.item_ids[row], int(data.item_counts[row]), row == target, change)

    slates = [
        Slate(
            policy,
            [item(row, _change(row, position, before)) for position, row in enumerate(shown)],
            [item(row) for row in before if row not in shown],
            *results[policy],
        )
        for policy, shown in lists.items()
    ]
    latest = [item(row) for row in history[-_HISTORY:]]
    return Example(why, int(split.user_rows[place]), latest, len(history), item(target), slates)


def _change(row: int, position: int, before: list[int]) -> str:
    if row not in before:
        return "new"
    moved = before.index(row) - position
    return "" if moved == 0 else f"up {moved}" if moved > 0 else f"down {-moved}"
