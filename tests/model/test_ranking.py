"""The ranking seam: popularity, a policy, and one of the user's own are ranked alike."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from rl4rec.data.dataset import PreparedData
from rl4rec.evaluation.validation import validate
from rl4rec.model.policy import SlatePolicy
from rl4rec.model.ranking import PopularityPolicy
from rl4rec.model.scores import Scores

HISTORIES = [np.array([1, 2, 3]), np.array([7]), np.array([5, 4])]


def test_popularity_scores_every_item_by_its_count_for_everybody() -> None:
    policy = PopularityPolicy(np.array([5, 0, 9]))
    states = policy.encode(HISTORIES)
    assert policy.score(states).dense().tolist() == [[5, 0, 9]] * 3
    assert policy.score(states[:1]).dense().tolist() == [[5, 0, 9]]
    assert policy.score(states[torch.tensor([2, 0])]).dense().tolist() == [[5, 0, 9]] * 2
    assert policy.encode([]).shape == (0, 1)


class NextItem:
    """Recommends the item after the last one; its scores are whole."""

    def encode(self, histories: Sequence[np.ndarray]) -> Tensor:
        return torch.tensor([int(history[-1]) for history in histories])

    def score(self, states: Tensor) -> Tensor:
        return torch.nn.functional.one_hot((states + 1) % 24, 24).float()


def test_whole_scores_are_ranked_like_factors(tiny_data: PreparedData) -> None:
    class AsFactors(NextItem):
        def score(self, states: Tensor) -> Scores:
            return Scores(super().score(states), torch.eye(24))

    found = validate(NextItem(), tiny_data, k=3)
    assert found == validate(AsFactors(), tiny_data, k=3)
    assert found["valid/full/hit@3"] == pytest.approx(
        0.75
    )  # of 60 users, 45 walk in steps of 1; ties count against a target


def test_a_policys_scores_are_those_of_its_states(tiny_policy: SlatePolicy) -> None:
    scores = tiny_policy.score(tiny_policy.encode(HISTORIES))
    assert scores.added is None and not scores.dense().requires_grad
    torch.testing.assert_close(scores.dense(), tiny_policy.scores(HISTORIES))
