"""The reward: the metrics by name, a function of the user's own, and every mistake in one."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from rl4rec.data.dataset import PreparedData
from rl4rec.errors import UserError
from rl4rec.params import RLParams
from rl4rec.train.rewards import GainsFunction, make_reward

CUSTOM = RLParams(reward_type="custom")
SLATES = torch.tensor([[[4, 7], [7, 4]], [[1, 2], [3, 1]]])  # (b, g, k) = (2, 2, 2)
TARGETS = torch.tensor([[7], [1]])  # (b, 1)


def test_metrics_by_name(tiny_data: PreparedData) -> None:
    reward = make_reward(RLParams(reward_type="mrr"), tiny_data)
    assert reward(SLATES, TARGETS).tolist() == [[[0, 0.5], [1, 0]], [[1, 0], [0, 0.5]]]
    mixed = RLParams.model_validate({"reward_type": "mixed", "mixed": {"ndcg": 0, "hit": 2, "mrr": 4}})
    assert make_reward(mixed, tiny_data)(SLATES, TARGETS).tolist() == [[[0, 4], [6, 0]], [[6, 0], [0, 4]]]
    assert reward.ends_at_hit


def test_ones_own_gets_flat_copies_and_gives_float32_of_any_sign(tiny_data: PreparedData) -> None:
    seen: list[tuple[list[list[int]], list[int], PreparedData]] = []

    def own(slates: Tensor, targets: Tensor, data: PreparedData) -> Tensor:
        seen.append((slates.tolist(), targets.tolist(), data))
        gains = slates.double() - targets.unsqueeze(1)
        for given in (slates, targets):  # a user's slip must not reach the rollout
            given.zero_()
        return gains

    reward = make_reward(CUSTOM, tiny_data, own)
    slates, targets = SLATES.clone(), TARGETS.clone()
    gains = reward(slates, targets)
    assert seen[0] == ([[4, 7], [7, 4], [1, 2], [3, 1]], [7, 7, 1, 1], tiny_data)
    assert gains.dtype == torch.float32
    assert gains.tolist() == [[[-3, 0], [0, -3]], [[0, 1], [2, 0]]]
    assert torch.equal(slates, SLATES) and torch.equal(targets, TARGETS)
    flat = targets.expand(2, 2).flatten()
    reward(slates.view(4, 2), flat)  # (n, k) and (n,), as GRPO hands them over
    assert torch.equal(slates, SLATES) and flat.tolist() == [7, 7, 1, 1]
    assert not reward.ends_at_hit


def wrong_shape(slates: Tensor, targets: Tensor, data: PreparedData) -> Tensor:
    return torch.zeros(len(slates))


def no_tensor(slates: Tensor, targets: Tensor, data: PreparedData) -> Tensor:
    return [0.5] * len(slates)  # type: ignore[return-value]


def whole_numbers(slates: Tensor, targets: Tensor, data: PreparedData) -> Tensor:
    return slates


def not_finite(slates: Tensor, targets: Tensor, data: PreparedData) -> Tensor:
    return 1.0 / (slates != 2)


def beyond_float32(slates: Tensor, targets: Tensor, data: PreparedData) -> Tensor:
    return torch.full(slates.shape, 1e300, dtype=torch.float64)


def failing(slates: Tensor, targets: Tensor, data: PreparedData) -> Tensor:
    return slates.float() @ targets.float()


FAILING_LINE = failing.__code__.co_firstlineno + 1
SHAPE = r"expected a float tensor of shape \(n, k\) = \(4, 2\), a gain for each slot of each slate; got "


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (wrong_shape, rf"wrong_shape: {SHAPE}shape \(4,\)"),
        (no_tensor, rf"no_tensor: {SHAPE}list \[0\.5, 0\.5, 0\.5, 0\.5\]"),
        (whole_numbers, rf"whole_numbers: {SHAPE}torch\.int64\. Convert it, such as with `\.float\(\)`"),
        (not_finite, r"not_finite: the gain of slot 1 is inf for the slate \[1, 2\]\. Gains must be finite"),
        (beyond_float32, r"beyond_float32: the gain of slot 0 is inf for the slate \[4, 7\]"),
        (failing, rf"failing, line {FAILING_LINE}: RuntimeError: .*slates of shape \(4, 2\) and targets of shape \(4,"),
    ],
)
def test_a_mistake_names_the_file_and_what_was_expected(
    own: GainsFunction, message: str, tiny_data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parents[1])
    with pytest.raises(UserError, match=rf"(?s)^train/test_rewards\.py: {message}"):
        make_reward(CUSTOM, tiny_data, own)(SLATES, TARGETS)


def test_an_error_of_the_users_own_choice_is_kept(tiny_data: PreparedData) -> None:
    def own(slates: Tensor, targets: Tensor, data: PreparedData) -> Tensor:
        raise UserError("prices.csv: no such file")

    with pytest.raises(UserError, match=r"^prices\.csv: no such file$"):
        make_reward(CUSTOM, tiny_data, own)(SLATES, TARGETS)


def test_an_object_that_can_be_called_has_a_name_too(tiny_data: PreparedData) -> None:
    class Wrong:
        def __call__(self, slates: Tensor, targets: Tensor, data: PreparedData) -> Tensor:
            return torch.zeros(1)

    with pytest.raises(UserError, match=r"^Wrong: expected a float tensor"):
        make_reward(CUSTOM, tiny_data, Wrong())(SLATES, TARGETS)


def test_function_and_setting_go_together(tiny_data: PreparedData) -> None:
    with pytest.raises(UserError, match=r"custom needs a function: `gains` in pipelines/reward\.py"):
        make_reward(CUSTOM, tiny_data)
    with pytest.raises(UserError, match=r"is ndcg, so .*whole_numbers would not be used\. Set rl\.reward_type: custom"):
        make_reward(RLParams(), tiny_data, whole_numbers)


PAGE = (Path(__file__).parents[2] / "docs/reward.md").read_text(encoding="utf-8")
RARE, LATE, PROMOTED = (text for text in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "def gains" in text)


def documented(text: str) -> GainsFunction:
    names: dict[str, GainsFunction] = {}
    exec(text, names)  # type: ignore[arg-type]
    return names["gains"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (LATE, [[-0.05, 1.0], [1.0, 0.0], [1.0, 0.0], [-0.05, 1.0]]),
        (PROMOTED, [[0.0, 1.5], [1.0, 0.5], [1.0, 0.5], [0.0, 1.5]]),
    ],
)
def test_the_rewards_of_the_docs(text: str, expected: list[list[float]], tiny_data: PreparedData) -> None:
    gains = make_reward(CUSTOM, tiny_data, documented(text))(SLATES, TARGETS)
    assert torch.allclose(gains.flatten(0, 1), torch.tensor(expected))


def test_the_reward_of_the_docs_that_pays_for_the_rare(tiny_data: PreparedData) -> None:
    """Counts 1, 2, 2, 3: percentiles 1/8, 4/8, 4/8, 7/8 with ties half."""
    data = dataclasses.replace(tiny_data, item_counts=np.array([1, 2, 2, 3]), item_ids=list("abcd"))
    gains = make_reward(CUSTOM, data, documented(RARE))(torch.tensor([[0, 3], [1, 2]]), torch.tensor([3, 0]))
    assert gains.flatten().tolist() == pytest.approx([0.0875, 0.0125 + 1 / np.log2(3), 0.05, 0.05])
