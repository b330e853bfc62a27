"""Errors that a user can act on."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in the input (data, params, environment) with a message that says what to do.

    The command line prints it as one message, without a traceback, and exits with status 2.
    """


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = 80

    def repr_int(self, x: int, level: int) -> str:
        return super().repr_int(x, level) if x.bit_length() < 10_000 else "a number of thousands of digits"


_short = _Short()


def shown(value: object) -> str:
    """A value of the input for a message, like `repr` but cut: it may be a line of megabytes or a nest without end."""
    return _short.repr(value)


def listed(names: Iterable[object]) -> str:
    """Names of the input for a message: a few of them, each cut."""
    short = [text if len(text) <= 80 else f"{text[:77]}..." for text in map(str, names)]
    return ", ".join(short if len(short) <= 20 else [*short[:20], f"and {len(short) - 20} more"]) or "nothing"
