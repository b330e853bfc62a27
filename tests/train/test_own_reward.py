"""PPO and GRPO on a reward of one's own: the same weights where it is NDCG, and what it pays for is what they learn."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rl4rec.data.dataset import PreparedData
from rl4rec.errors import UserError
from rl4rec.metrics import slate_gains
from rl4rec.model.policy import SlatePolicy
from rl4rec.params import RLParams
from rl4rec.train.grpo import train_grpo
from rl4rec.train.ppo import PPOTrainer
from rl4rec.train.rewards import GainsFunction
from rl4rec.train.seeding import seed_everything
from tests.train.helpers import make_monitor, rl_params, same_weights

PAID = 17  # the item that `for_one_item` pays for


def own_ndcg(slates: Tensor, targets: Tensor, data: PreparedData) -> Tensor:
    return slate_gains(slates, targets)


def for_one_item(slates: Tensor, targets: Tensor, data: PreparedData) -> Tensor:
    """1, 1/2, 1/3 for the item at the first, second, third slot, whatever the target is."""
    return (slates == PAID) / torch.arange(1.0, slates.shape[1] + 1)


class Training:
    """Short runs from one start; each returns its log rows, its policy is in `<name>/best`."""

    def __init__(self, policy: SlatePolicy, data: PreparedData, tokenizer: PreTrainedTokenizerBase, folder: Path):
        self.data, self.tokenizer, self.folder = data, tokenizer, folder
        policy.save_pretrained(folder / "start")

    def ppo(self, rl: RLParams, name: str, own: GainsFunction | None, rows: list[dict[str, float]]) -> PPOTrainer:
        seed_everything(0)
        monitor = make_monitor(self.data, self.folder / name / "best", rows)
        policy = SlatePolicy.from_pretrained(self.folder / "start")
        return PPOTrainer(policy, self.data, rl, monitor, self.folder / name / "ck", own_reward=own)

    def __call__(
        self, algorithm: str, name: str, rl: RLParams, own: GainsFunction | None = None
    ) -> list[dict[str, float]]:
        rows: list[dict[str, float]] = []
        if algorithm == "ppo":
            self.ppo(rl, name, own, rows).train(digest="d")
            return rows
        seed_everything(0)
        train_grpo(
            self.folder / "start",
            self.tokenizer,
            self.data,
            rl,
            make_monitor(self.data, self.folder / name / "best", rows),
            checkpoints=self.folder / name / "ck",
            digest="d",
            own_reward=own,
        )
        return rows


@pytest.fixture
def training(
    tiny_policy: SlatePolicy, tiny_data: PreparedData, tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> Training:
    return Training(tiny_policy, tiny_data, tiny_tokenizer, tmp_path)


@pytest.mark.parametrize("tiny_policy", ["cosine"], indirect=True)
def test_grpo_on_ones_own_ndcg_is_grpo_on_ndcg(training: Training) -> None:
    training("grpo", "named", rl_params())
    training("grpo", "own", rl_params(reward_type="custom"), own_ndcg)
    assert same_weights(training.folder / "named/best", training.folder / "own/best")


@pytest.mark.parametrize("tiny_policy", ["cosine"], indirect=True)
def test_ppo_on_ones_own_ndcg_has_its_gains_and_goes_on_after_the_hit(training: Training) -> None:
    (named, named_stats), (own, own_stats) = (
        training.ppo(rl_params(reward_type=kind), kind, function, []).rollout(0, measure_kl=False)
        for kind, function in (("ndcg", None), ("custom", own_ndcg))
    )
    assert torch.equal(named.slates, own.slates)
    assert torch.equal(named.gains, own.gains)
    hit = (named.slates == named.targets.view(-1, 1, 1)).any(-1)  # (b, g)
    assert 0 < hit.sum() < hit.numel()
    assert own.live.all()
    assert not named.live[named.slates[..., 0] == named.targets.unsqueeze(1)][:, 1:].any()
    for stats in (named_stats, own_stats):
        assert stats["hit_share"] == pytest.approx(hit.double().mean().item())
        assert stats["no_signal_share"] == pytest.approx(1 - hit.double().mean().item())


@pytest.mark.parametrize("tiny_policy", ["cosine"], indirect=True)
@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_what_is_paid_for_comes_to_the_top(training: Training, algorithm: str) -> None:
    rl = rl_params(
        reward_type="custom",
        candidates={"source": "full"},
        eval_every=1000,
        logging_steps=1,
        ppo={"batch_size": 64, "mini_batch_size": 32, "learning_rate": 2e-2, "temperature": 1.0, "max_steps": 30},
        grpo={"batch_size": 16, "num_sample_generations": 8, "learning_rate": 2e-2, "max_steps": 30, "temperature": 1},
    )
    histories = [row for row in training.data.split("test").history if PAID not in row]
    rows = training(algorithm, algorithm, rl, for_one_item)
    shares = []
    for folder in ("start", f"{algorithm}/best"):
        items, _ = SlatePolicy.from_pretrained(training.folder / folder).train(False).recommend(histories, k=3)
        shares.append((items[:, 0] == PAID).double().mean().item())
    assert shares[0] < 0.2
    assert shares[1] > 0.95
    train = [row for row in rows if "train/reward" in row]
    # The target is another item: a hit share that were read off the gains would follow the reward.
    assert train[-1]["train/reward"] > 0.6 > 0.4 > train[-1]["train/hit_share"]


@pytest.mark.parametrize("tiny_policy", ["cosine"], indirect=True)
@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_a_mistake_ends_the_training_before_a_step(training: Training, algorithm: str) -> None:
    def one_a_slate(slates: Tensor, targets: Tensor, data: PreparedData) -> Tensor:
        return (slates == targets.unsqueeze(1)).any(1).float()

    with pytest.raises(UserError, match=r"one_a_slate: expected a float tensor of shape \(n, k\) = \(32, 3\)"):
        training(algorithm, algorithm, rl_params(reward_type="custom"), one_a_slate)
    assert not (training.folder / algorithm / "best").exists()


@pytest.mark.parametrize("tiny_policy", ["cosine"], indirect=True)
@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_custom_without_a_function_ends_before_the_start(training: Training, algorithm: str) -> None:
    with pytest.raises(UserError, match="custom needs a function"):
        training(algorithm, algorithm, rl_params(reward_type="custom"))
