"""How sequences are split into training, validation and test: by place or by time.

A split says of each user how many items come before the validation window and how many before the test window. What
comes before the validation window trains; the first item of a window is its target, if something comes before it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt

from rl4rec.errors import UserError, shown

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Cuts:
    """Where the windows of each user begin: items before them, (U,), `valid <= test <= length`."""

    valid: IntArray
    test: IntArray


@dataclass(frozen=True)
class LastItem:
    """Leave-one-out: a user's last item is the test target, the one before it the validation target.

    Users with fewer than three items only train.
    """

    rule = "leave-one-out: the last item of each user is the test target, the one before it the validation target"

    def cut(self, lengths: IntArray) -> Cuts:
        """Cuts of sequences of the given lengths, (U,)."""
        enough = lengths >= 3
        return Cuts(np.where(enough, lengths - 2, lengths), np.where(enough, lengths - 1, lengths))


@dataclass(frozen=True)
class TimeSplit:
    """One cut in time for all users: what comes before it trains, the windows after it validate and test.

    Attributes:
        valid_from: when the validation window begins: a share of the interactions that come before it (below 1), a
            date, or a time as the data have it.
        test_from: the same of the test window, which ends with the data.
    """

    valid_from: float | int | str
    test_from: float | int | str

    def cut(self, times: npt.NDArray[Any], offsets: IntArray, kind: str) -> tuple[Cuts, tuple[str, str]]:
        """Cuts of the sequences, and the two moments in words.

        Args:
            times: of the interactions, user by user, rising within a user; datetime64 or numbers.
            offsets: (U + 1,) where each user's begin.
            kind: of the times, as `time_kind` says.

        Raises:
            UserError: a moment does not fit the times, or a window is empty.
        """
        moments = [
            _moment(value, times, kind, name) for name, value in (("valid", self.valid_from), ("test", self.test_from))
        ]
        valid, test = moments
        if not valid < test:
            raise UserError(
                f"data.time_split: the validation window begins at {valid} and the test window at {test}: the first "
                "must come before the second. Change valid_from or test_from."
            )
        before = [np.concatenate([[0], np.cumsum(times < moment)]) for moment in moments]
        cuts = Cuts(*(counts[offsets[1:]] - counts[offsets[:-1]] for counts in before))
        return cuts, (str(valid), str(test))


def _moment(value: float | int | str, times: npt.NDArray[Any], kind: str, name: str) -> Any:
    """A moment of the type of the times."""
    if isinstance(value, str):
        return _from_date(value, times, kind, f"data.time_split.{name}_from")
    if 0 < value < 1:
        ordered = np.sort(times)
        return ordered[min(math.ceil(value * len(ordered) - 1e-6), len(ordered) - 1)]
    if kind != "number":
        raise UserError(
            f"data.time_split.{name}_from: the times of these data are of kind '{kind}', got the number {value}. "
            "Write a date such as '2024-05-01', or a share of the interactions below 1."
        )
    return value


def _from_date(text: str, times: npt.NDArray[Any], kind: str, key: str) -> Any:
    moment = datetime.fromisoformat(text)
    if kind == "number":
        since = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - datetime(1970, 1, 1, tzinfo=UTC)
        microseconds = since // timedelta(microseconds=1)
        units = microseconds * _units_per_second(times, key, text)
        if times.dtype.kind == "f":
            return units / 10**6
        return -(-units // 10**6)  # the first whole number from then on
    if kind == "date" and (moment.tzinfo is not None or moment.time() != datetime.min.time()):
        raise UserError(f"{key}: the times of these data are whole days, got {shown(text)}. Write a date.")
    if kind == "local" and moment.tzinfo is not None:
        raise UserError(f"{key}: the times of these data have no zone, got {shown(text)}. Leave the zone out.")
    if moment.tzinfo is not None:
        try:
            moment = moment.astimezone(UTC).replace(tzinfo=None)
        except OverflowError:
            raise UserError(f"{key}: {shown(text)} is outside of the years 1 to 9999 in UTC. Write another.") from None
    return np.datetime64(moment, "us").astype(times.dtype)


def _units_per_second(times: npt.NDArray[Any], key: str, text: str) -> int:
    """How many units of the times make a second, if they are counted from 1970 on."""
    middle = float(np.median(times))
    for units in (1, 10**3, 10**6, 10**9):
        if 1e8 <= middle / units < 1e10:  # 1973 to 2286
            return units
    raise UserError(
        f"{key}: the times of these data are numbers of about {middle:.4g}, which are no seconds (or smaller units) "
        f"since 1970: {shown(text)} has no place among them. Write a number of that kind, or a share below 1."
    )
