"""PPO and GRPO on a reward of one's own: the same weights where it is NDCG, and what it pays for is what they learn."""

import pytest
import torch
from torch import Tensor

from rl4rec.data.dataset import PreparedData
from rl4rec.errors import UserError
from rl4rec.metrics import slate_gains
from rl4rec.model.policy import SlatePolicy
from rl4rec.params import RLParams
from rl4rec.train.rewards import GainsFunction
from tests.train.helpers import make_trainer, rl_params, same_weights

PAID = 17  # the item that `for_one_item` pays for


def own_ndcg(slates: Tensor, targets: Tensor, data: PreparedData) -> Tensor:
    return slate_gains(slates, targets)


def for_one_item(slates: Tensor, targets: Tensor, data: PreparedData) -> Tensor:
    """1, 1/2, 1/3 for the item at the first, second, third slot, whatever the target is."""
    return (slates == PAID) / torch.arange(1.0, slates.shape[1] + 1)


def run(
    algorithm: str, start: SlatePolicy, data: PreparedData, rl: RLParams, own: GainsFunction | None = None
) -> tuple[SlatePolicy, list[dict[str, float]]]:
    """A short training: its policy and its log rows."""
    rows: list[dict[str, float]] = []
    trainer = make_trainer(algorithm, start, data, rl, rows, own_reward=own)
    trainer.train()
    return trainer.policy, rows


@pytest.mark.parametrize("tiny_policy", ["cosine"], indirect=True)
def test_grpo_on_ones_own_ndcg_is_grpo_on_ndcg(tiny_policy: SlatePolicy, tiny_data: PreparedData) -> None:
    named, _ = run("grpo", tiny_policy, tiny_data, rl_params())
    own, _ = run("grpo", tiny_policy, tiny_data, rl_params(reward_type="custom"), own_ndcg)
    assert same_weights(named, own) and not same_weights(named, tiny_policy)


@pytest.mark.parametrize("tiny_policy", ["cosine"], indirect=True)
def test_ppo_on_ones_own_ndcg_has_its_gains_and_goes_on_after_the_hit(
    tiny_policy: SlatePolicy, tiny_data: PreparedData
) -> None:
    ppo = {"batch_size": 32, "mini_batch_size": 16, "temperature": 1.0, "lam": 0.0, "whiten_advantages": False}
    (named, named_stats), (own, own_stats) = (
        make_trainer("ppo", tiny_policy, tiny_data, rl_params(reward_type=kind, ppo=ppo), own_reward=function).rollout(
            0, measure_kl=False
        )
        for kind, function in (("ndcg", None), ("custom", own_ndcg))
    )
    assert torch.equal(named.slates, own.slates)
    targets = named.prompts.targets
    # values start at 0, so that with lam 0 a slot's advantage is its gain
    assert torch.equal(named.advantages, own.advantages)
    assert torch.equal(own.advantages, slate_gains(own.slates, targets.unsqueeze(1)))
    hit = (named.slates == targets.view(-1, 1, 1)).any(-1)  # (b, g)
    assert 0 < hit.sum() < hit.numel()
    assert own.live.all()
    assert not named.live[named.slates[..., 0] == targets.unsqueeze(1)][:, 1:].any()
    for stats in (named_stats, own_stats):
        assert stats["hit_share"] == pytest.approx(hit.double().mean().item())
        assert stats["no_signal_share"] == pytest.approx(1 - hit.double().mean().item())


@pytest.mark.parametrize("tiny_policy", ["cosine"], indirect=True)
@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_what_is_paid_for_comes_to_the_top(tiny_policy: SlatePolicy, tiny_data: PreparedData, algorithm: str) -> None:
    rl = rl_params(
        reward_type="custom",
        candidates={"source": "full"},
        eval_every=1000,
        logging_steps=1,
        ppo={"batch_size": 64, "mini_batch_size": 32, "learning_rate": 2e-2, "temperature": 1.0, "max_steps": 30},
        grpo={"batch_size": 16, "num_sample_generations": 8, "learning_rate": 2e-2, "max_steps": 30, "temperature": 1},
    )
    histories = [row for row in tiny_data.split("test").history if PAID not in row]
    trained, rows = run(algorithm, tiny_policy, tiny_data, rl, for_one_item)
    shares = []
    for policy in (tiny_policy, trained):
        items, _ = policy.recommend(histories, k=3)
        shares.append((items[:, 0] == PAID).double().mean().item())
    assert shares[0] < 0.2
    assert shares[1] > 0.95
    train = [row for row in rows if "train/reward" in row]
    # The target is another item: a hit share that were read off the gains would follow the reward.
    assert train[-1]["train/reward"] > 0.6 > 0.4 > train[-1]["train/hit_share"]


@pytest.mark.parametrize("tiny_policy", ["cosine"], indirect=True)
@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_a_mistake_ends_the_training_before_a_step(
    tiny_policy: SlatePolicy, tiny_data: PreparedData, algorithm: str
) -> None:
    def one_a_slate(slates: Tensor, targets: Tensor, data: PreparedData) -> Tensor:
        return (slates == targets.unsqueeze(1)).any(1).float()

    rows: list[dict[str, float]] = []
    trainer = make_trainer(
        algorithm, tiny_policy, tiny_data, rl_params(reward_type="custom"), rows, own_reward=one_a_slate
    )
    with pytest.raises(UserError, match=r"one_a_slate: expected a float tensor of shape \(n, k\) = \(32, 3\)"):
        trainer.train()
    assert same_weights(trainer.policy, tiny_policy)
    assert [row["step"] for row in rows] == [0]  # the start was validated


@pytest.mark.parametrize("tiny_policy", ["cosine"], indirect=True)
@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_custom_without_a_function_ends_before_the_start(
    tiny_policy: SlatePolicy, tiny_data: PreparedData, algorithm: str
) -> None:
    with pytest.raises(UserError, match="custom needs a function"):
        make_trainer(algorithm, tiny_policy, tiny_data, rl_params(reward_type="custom"))
