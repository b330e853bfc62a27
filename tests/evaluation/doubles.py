"""A policy for tests of the evaluation."""

from collections.abc import Callable, Sequence

from torch import Tensor

from rl4rec.model.ranking import IntArray
from rl4rec.model.scores import Scores


class Scored:
    """Ranks by a function of histories: (b, I) scores, or their factors."""

    def __init__(self, score: Callable[[Sequence[IntArray]], Tensor | Scores]) -> None:
        self._score = score

    def encode(self, histories: Sequence[IntArray]) -> Sequence[IntArray]:
        return histories

    def score(self, states: Sequence[IntArray]) -> Tensor | Scores:
        return self._score(states)
