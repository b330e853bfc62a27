"""The simulated shop: made-up users whose true next-item distribution is known.

Items have a popularity `rank ** -popularity_skew` and each belongs to one taste; users mix a few tastes
(Dirichlet). Some items lead to others: every item has a few successors. A user takes next, never twice the same:

    p(item | user, history) ~ (1 - LEAD) * sum_t mix[user, t] * taste[t, item] + LEAD * successor[last, item]

for items not in the history that the shop has by then, 0 for the rest; the first item comes from the tastes alone.

Users come on any day of a year and return every two weeks or so, as often as it takes; with `basket_size` above 1 they
take several items at one time. With `new_items` a share of the catalogue is added on days of that year.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from rl4rec.data.dataset import IntArray, Ragged
from rl4rec.params import SimulatedShop

LEAD = 0.6
SUCCESSOR_WEIGHTS = np.array([0.55, 0.25, 0.12, 0.08])
OFF_TASTE = 0.03  # weight of an item in a taste that it does not belong to
MIX_CONCENTRATION = 0.25
MIN_LENGTH = 5
OPENING = 1_672_531_200  # 2023-01-01, seconds since 1970
YEAR, RETURN = 365 * 86_400, 14 * 86_400  # seconds: when users and items come, the mean time between two visits
_CHUNK = 512

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Shop:
    """A simulated shop and what happened in it."""

    taste: FloatArray  # (T, I) rows sum to 1
    mix: FloatArray  # (U, T) rows sum to 1
    successors: IntArray  # (I, 4) distinct, never the item itself
    added: IntArray  # (I,) when the shop added the item, seconds since 1970
    sequences: Ragged  # U rows of item numbers, oldest first
    times: IntArray  # of each value of `sequences`, seconds since 1970

    def next_item(self, users: IntArray, seen: npt.NDArray[np.bool_], last: IntArray, times: IntArray) -> FloatArray:
        """True distribution of the next item.

        Args:
            users: (b,) user numbers.
            seen: (b, I) items that the user already has.
            last: (b,) the user's latest item, -1 for an empty history.
            times: (b,) of the choice.

        Returns:
            (b, I), rows sum to 1.
        """
        p = self.mix[users] @ self.taste  # (b, I)
        led = np.flatnonzero(last >= 0)
        p[led] *= 1 - LEAD
        p[led[:, None], self.successors[last[led]]] += LEAD * SUCCESSOR_WEIGHTS
        p[seen] = 0.0
        p[self.added > times[:, None]] = 0.0
        return np.asarray(p / p.sum(axis=1, keepdims=True))

    def oracle(self, users: IntArray, steps: IntArray, items: IntArray) -> npt.NDArray[np.float32]:
        """True distribution of what a user took at a step, among the items that were kept.

        It is conditioned on the user's latent mix of tastes and the whole history before the step, which is at
        least as much as a policy can know: no policy ranks better in expectation.

        Args:
            users: (b,) user numbers.
            steps: (b,) position in the user's full sequence; a negative one gives zeros.
            items: (i,) item numbers that were kept, in the order of the columns to return.

        Returns:
            (b, i), rows sum to 1 (0 where the step is negative).
        """
        result = np.zeros((len(users), len(items)), dtype=np.float32)
        for start in range(0, len(users), _CHUNK):
            rows = start + np.flatnonzero(steps[start : start + _CHUNK] >= 0)
            seen = np.zeros((len(rows), self.taste.shape[1]), dtype=bool)
            last = np.full(len(rows), -1, dtype=np.int64)
            for row, (user, step) in enumerate(zip(users[rows], steps[rows], strict=True)):
                history = self.sequences[int(user)][:step]
                seen[row, history] = True
                if step:
                    last[row] = history[-1]
            times = self.times[self.sequences.offsets[users[rows]] + steps[rows]]
            p = self.next_item(users[rows], seen, last, times)[:, items]
            result[rows] = p / p.sum(axis=1, keepdims=True)
        return result

    def events(self) -> pl.DataFrame:
        """All interactions, in the order in which users took items.

        Returns:
            `user`, `item` (String, padded so that byte order is number order), `time` (seconds since 1970), `step`
            (place in the user's sequence, from 0).
        """
        lengths = self.sequences.lengths
        users = np.repeat(np.arange(len(lengths)), lengths)
        step = np.arange(len(users)) - np.repeat(self.sequences.offsets[:-1], lengths)
        frame = pl.DataFrame({"user": users, "item": self.sequences.values, "time": self.times, "step": step})
        return frame.with_columns(pl.format("u{}", _padded("user")), pl.format("i{}", _padded("item")))


def _padded(column: str) -> pl.Expr:
    return pl.col(column).cast(pl.String).str.zfill(8).alias(column)


def number_of(raw_ids: pl.Series) -> IntArray:
    """The number of a simulated user or item from its raw id."""
    return raw_ids.str.slice(1).cast(pl.Int64).to_numpy()


def simulate(params: SimulatedShop) -> Shop:
    """Open a shop and let every user take items; equal params give an equal shop."""
    rng = np.random.default_rng(params.seed)
    popularity = rng.permutation(np.arange(1.0, params.items + 1) ** -params.popularity_skew)
    belongs = np.arange(params.items) % params.tastes == np.arange(params.tastes)[:, None]  # (T, I)
    taste = np.where(belongs, 1.0, OFF_TASTE) * popularity
    taste /= taste.sum(axis=1, keepdims=True)
    mix = rng.dirichlet(np.full(params.tastes, MIX_CONCENTRATION), size=params.users)
    draws = [rng.choice(params.items - 1, len(SUCCESSOR_WEIGHTS), replace=False) for _ in range(params.items)]
    successors = np.stack([row + (row >= item) for item, row in enumerate(draws)]).astype(np.int64)
    lengths = MIN_LENGTH - 1 + rng.geometric(1 / (params.mean_length - MIN_LENGTH + 1), size=params.users)
    # Of its own, so that baskets and new items leave what users take as it is.
    clock = np.random.default_rng([params.seed, 1])
    new = clock.permutation(params.items)[: int(params.new_items * params.items)]
    added = np.full(params.items, OPENING, np.int64)
    added[new] += clock.integers(1, YEAR, len(new))
    lengths = np.minimum(lengths, (params.items - len(new)) // 2)
    times = _visit_times(lengths, params.basket_size, clock)
    empty = Shop(taste, mix, successors, added, Ragged.from_rows([]), times.values)
    rows: list[IntArray] = []
    for start in range(0, params.users, _CHUNK):
        rows.extend(_walk(empty, np.arange(start, min(start + _CHUNK, params.users)), times, rng))
    return Shop(taste, mix, successors, added, Ragged.from_rows(rows), times.values)


def _visit_times(lengths: IntArray, basket_size: float, clock: np.random.Generator) -> Ragged:
    """When each item is taken: a new visit begins with probability 1 / basket_size, so baskets have that mean size."""
    total = int(lengths.sum())
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    gaps = 1 + clock.exponential(RETURN, total).astype(np.int64)
    gaps[clock.random(total) >= 1 / basket_size] = 0
    gaps[offsets[:-1]] = clock.integers(0, YEAR, len(lengths))
    since = gaps.cumsum()
    before = np.concatenate([[0], since])[offsets[:-1]]
    return Ragged(OPENING + since - np.repeat(before, lengths), offsets)


def _walk(shop: Shop, users: IntArray, times: Ragged, rng: np.random.Generator) -> list[IntArray]:
    lengths = times.lengths[users]
    steps = int(lengths.max())
    taken = np.full((len(users), steps), -1, dtype=np.int64)
    seen = np.zeros((len(users), shop.taste.shape[1]), dtype=bool)
    last = np.full(len(users), -1, dtype=np.int64)
    for step in range(steps):
        at = times.values[times.offsets[users] + np.minimum(step, lengths - 1)]
        cumulative = shop.next_item(users, seen, last, at).cumsum(axis=1)
        draw = rng.random(len(users)) * cumulative[:, -1]
        last = (cumulative <= draw[:, None]).sum(axis=1)
        taken[:, step] = last
        seen[np.arange(len(users)), last] = True
    return [row[:length] for row, length in zip(taken, lengths, strict=True)]
