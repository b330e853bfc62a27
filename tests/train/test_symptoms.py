"""The troubleshooting tables of docs/ppo.md and docs/grpo.md: every symptom provoked, and seen to go by the advice.

Not here: "reward rises, validation falls", which needs memorised targets (docs/rl-study.md, `make study`'s setting
`memorised`), and what memory and time grow with (`benchmarks/rl_scaling.py`).
"""

from typing import Any

import numpy as np
import pytest

from rl4rec.data.dataset import PreparedData
from rl4rec.model.policy import SlatePolicy
from rl4rec.params import RLParams
from tests.train.helpers import make_trainer, rl_params

pytestmark = pytest.mark.parametrize("tiny_policy", ["dot"], indirect=True)

PPO: dict[str, Any] = {
    "batch_size": 32, "mini_batch_size": 16, "ppo_epochs": 2, "learning_rate": 3e-3, "temperature": 1.0,
    "max_steps": 12,
}  # fmt: skip
GRPO: dict[str, Any] = {
    "batch_size": 8, "num_sample_generations": 4, "learning_rate": 3e-3, "temperature": 1.0, "max_steps": 12,
}  # fmt: skip


class Runs:
    """Short trainings from one start."""

    def __init__(self, policy: SlatePolicy, data: PreparedData) -> None:
        self._policy, self._data = policy, data

    def __call__(self, algorithm: str, *, negatives: int = 8, **changes: object) -> dict[str, list[float]]:
        """The training log of one run, each key's values in order."""
        section = (PPO if algorithm == "ppo" else GRPO) | changes
        rl: RLParams = rl_params(
            logging_steps=1, eval_every=1000, candidates={"negatives": negatives}, **{algorithm: section}
        )
        rows: list[dict[str, float]] = []
        make_trainer(algorithm, self._policy, self._data, rl, rows).train()
        steps = [row for row in rows if "train/loss" in row]
        return {name.removeprefix("train/"): [row[name] for row in steps] for name in steps[0] if "train/" in name}


@pytest.fixture
def runs(tiny_policy: SlatePolicy, tiny_data: PreparedData) -> Runs:
    return Runs(tiny_policy, tiny_data)


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_kl_runs_away_with_the_learning_rate_and_is_held_by_the_penalty(runs: Runs, algorithm: str) -> None:
    wild = runs(algorithm, learning_rate=0.1, max_steps=20)["kl"][-1]
    assert wild > 5 * runs(algorithm, learning_rate=1e-3, max_steps=20)["kl"][-1]
    assert runs(algorithm, learning_rate=0.1, max_steps=20, kl_coef=0.3)["kl"][-1] < wild / 3


def test_ppo_kl_and_clipped_share_grow_with_the_passes_over_a_rollout(runs: Runs) -> None:
    many, few, slow = (
        runs("ppo", ppo_epochs=epochs, learning_rate=rate) for epochs, rate in ((12, 3e-3), (1, 3e-3), (12, 3e-4))
    )
    assert many["kl"][-1] > 2 * few["kl"][-1]
    assert np.mean(many["clip_fraction"]) > 0.3
    assert np.mean(few["clip_fraction"]) < 0.1
    assert np.mean(slow["clip_fraction"]) < 0.2


def test_ppo_reward_and_gradient_are_noisy_in_small_batches(runs: Runs) -> None:
    small, large = (runs("ppo", batch_size=size, mini_batch_size=size, max_steps=24) for size in (4, 128))
    assert np.std(np.diff(small["reward"])) > 3 * np.std(np.diff(large["reward"]))
    assert np.mean(small["grad_norm"]) > 2 * np.mean(large["grad_norm"])


def test_grpo_groups_without_signal_go_with_more_generations_and_fewer_negatives(runs: Runs) -> None:
    starved = np.mean(runs("grpo", negatives=20, num_sample_generations=2)["no_signal_share"])
    assert starved > 0.6
    assert np.mean(runs("grpo", negatives=20, num_sample_generations=16)["no_signal_share"]) < starved / 2
    assert np.mean(runs("grpo", negatives=4, num_sample_generations=2)["no_signal_share"]) < 0.8 * starved


@pytest.mark.parametrize("remedy", ["entropy_coef", "kl_coef"])
def test_entropy_falls_when_pushed_and_a_bonus_or_the_penalty_holds_it(runs: Runs, remedy: str) -> None:
    pushed = runs("grpo", learning_rate=3e-2, max_steps=20)["entropy"]
    assert pushed[-1] < 0.8 * pushed[0]
    held = runs("grpo", learning_rate=3e-2, max_steps=20, **{remedy: 0.5})["entropy"]
    assert held[-1] > 0.95 * held[0]


def test_value_head_explains_more_with_a_rate_of_its_own(runs: Runs) -> None:
    slow, fast = (runs("ppo", value_learning_rate=rate, max_steps=30) for rate in (1e-5, 5e-2))
    assert max(fast["explained_variance"][-10:]) > max(slow["explained_variance"][-10:]) + 0.05
