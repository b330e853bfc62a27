"""Every training and every ranking on a device of its own: no tensors mix, and the host hardly waits."""

import copy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState

from rl4rec.data.dataset import PreparedData
from rl4rec.evaluation.protocols import evaluate
from rl4rec.evaluation.validation import validate
from rl4rec.model import device
from rl4rec.model.crossfit_embeddings import CrossfitEmbeddings
from rl4rec.model.load import save_policy
from rl4rec.model.policy import SlatePolicy
from rl4rec.model.scores import Scores
from rl4rec.ops.measure import TransferredPolicy, evaluate_elsewhere
from rl4rec.params import CandidateParams, CrossfitParams, EvaluateParams, GRPOParams, PPOParams, SFTParams
from rl4rec.serve.recommender import Recommender
from rl4rec.train.loop import Trainer
from rl4rec.train.sft import SFTTrainer
from tests.accelerator import NAME, FakeDevice, FakeTensor, MixedDevices, fake_device
from tests.train.helpers import make_run, make_trainer, measured, rl_params

PPO = PPOParams(batch_size=32, mini_batch_size=16, ppo_epochs=2, learning_rate=5e-3, temperature=1.0, max_steps=3)
GRPO = GRPOParams(batch_size=8, num_sample_generations=4, learning_rate=5e-3, temperature=1.0, max_steps=3)
KL = {"kl_coef": 0.1, "entropy_coef": 0.01}

Make = Callable[[SlatePolicy, PreparedData, list[dict[str, float]]], Trainer]


@pytest.fixture
def on_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Any]]:
    """Enter the device, where accelerate and this project find it, with `with on_device() as device`."""
    states = (AcceleratorState, PartialState, GradientState)

    def enter() -> Any:
        monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", f"{NAME}:0")
        entered = fake_device()
        monkeypatch.setattr(device, "best_device", lambda: torch.device(NAME, 0))
        for state in states:
            state._reset_state()
        return entered

    yield enter
    for state in states:
        state._reset_state()


def embeddings(policy: SlatePolicy) -> CrossfitEmbeddings:
    rows = torch.randn(2, policy.num_items, 16, generator=torch.Generator().manual_seed(1))
    return CrossfitEmbeddings(rows, rows.clone(), policy.config.item_offset)


def rl(algorithm: str, *, crossfit: bool = False, **changes: Any) -> Make:
    settings = {"ppo": PPO, "grpo": GRPO, "logging_steps": 1, "eval_every": 1, **changes}
    if crossfit:
        settings |= {"trainable": "body", "crossfit": CrossfitParams(split_points=2)}

    def make(policy: SlatePolicy, data: PreparedData, rows: list[dict[str, float]]) -> Trainer:
        more = {"crossfit": embeddings(policy)} if crossfit else {}
        trainer: Trainer = make_trainer(algorithm, policy, data, rl_params(**settings), rows, **more)
        return trainer

    return make


def sft(**changes: Any) -> Make:
    def make(policy: SlatePolicy, data: PreparedData, rows: list[dict[str, float]]) -> Trainer:
        settings = {"batch_size": 16, "max_steps": 3, "logging_steps": 1, "precision": "fp32", "sampled_items": 32}
        params = SFTParams.model_validate(settings | changes)
        trainer = SFTTrainer(copy.deepcopy(policy), data, params, make_run(data, rows))
        trainer._eval_every = 1
        return trainer

    return make


TRAININGS: dict[str, Make] = {
    "sft": sft(),
    "sft, sampled softmax, accumulated": sft(softmax="sampled", gradient_accumulation_steps=2),
    "sft_continued": rl("sft_continued"),
    "sft_continued, crossfit": rl("sft_continued", crossfit=True),
    **{
        f"{algorithm}, {source} candidates": rl(algorithm, candidates=CandidateParams(source=source, negatives=8))
        for algorithm in ("ppo", "grpo")
        for source in ("full", "uniform", "popularity")
    },
    "ppo, crossfit": rl("ppo", crossfit=True),
    "ppo, adaptive KL, supervised term": rl(
        "ppo", sft_coef=0.1, ppo=PPO.model_copy(update=KL | {"kl_control": "adaptive"})
    ),
    "ppo, accumulated": rl("ppo", ppo=PPO.model_copy(update={"gradient_accumulation_steps": 2})),
    "grpo, crossfit": rl("grpo", crossfit=True),
    "grpo, two iterations, KL, batch scale, supervised term": rl(
        "grpo", sft_coef=0.1, grpo=GRPO.model_copy(update=KL | {"num_iterations": 2, "scale_rewards": "batch"})
    ),
    "grpo, lora": rl("grpo", trainable="lora"),
}


@pytest.mark.parametrize("name", TRAININGS)
@pytest.mark.parametrize("tiny_policy", ["cosine"], indirect=True)
def test_a_training_on_the_device_is_that_on_the_cpu(
    name: str, tiny_policy: SlatePolicy, tiny_data: PreparedData, on_device: Callable[[], Any], tmp_path: Path
) -> None:
    """Interrupted after two of three steps and resumed, with its checkpoint from the device."""
    rows: list[dict[str, float]] = []
    plain = TRAININGS[name](tiny_policy, tiny_data, rows)
    plain.train()
    with on_device():
        there: list[dict[str, float]] = []
        first = TRAININGS[name](tiny_policy, tiny_data, [])
        first.total_steps = 2
        first.train(checkpoints=tmp_path, digest="run")
        trainer = TRAININGS[name](tiny_policy, tiny_data, there)
        trainer.train(checkpoints=tmp_path, digest="run")
        found = dict(trainer.policy.named_parameters())
        assert all(isinstance(weight, FakeTensor) for weight in trainer.modules.parameters())
        for key, weight in plain.policy.named_parameters():
            if key.endswith("c_attn.bias"):
                continue  # the keys': attention ignores them, Adam scales their rounding up
            torch.testing.assert_close(found[key].detach().cpu(), weight.detach(), rtol=1e-4, atol=2e-5)
    steps, theirs = ([row for row in measured(each) if "train/loss" in row] for each in (rows, there))
    assert len(steps) == len(theirs) == 3
    for ours, its in zip(steps, theirs, strict=True):
        assert its == pytest.approx(ours, rel=1e-3, abs=1e-5)


# docs/scale.md has these; fewer than ten. Of a step that is not logged, and of one that is.
WAITS = {"sft": (1, 2), "sft_continued, crossfit": (2, 3), "ppo, crossfit": (7, 9), "grpo, crossfit": (4, 6)}


@pytest.mark.parametrize("logged", [False, True])
@pytest.mark.parametrize("name", WAITS)
@pytest.mark.parametrize("tiny_policy", ["cosine"], indirect=True)
def test_the_host_waits_less_than_ten_times_per_step(
    name: str, logged: bool, tiny_policy: SlatePolicy, tiny_data: PreparedData, on_device: Callable[[], Any]
) -> None:
    """With as many updates per step as the defaults make; transformers waits once per reading of the histories."""
    with on_device() as there:
        trainer = TRAININGS[name](tiny_policy, tiny_data, [])
        trainer.train_step(0, logged=logged)
        there.waits.clear()
        stats = trainer.train_step(1, logged=logged)
        if logged:
            trainer._means({key: [value] for key, value in stats.items()})
    assert sum(there.waits.values()) == WAITS[name][logged], there.waits


def test_ranking_on_the_device_is_that_on_the_cpu(
    tiny_policy: SlatePolicy, tiny_data: PreparedData, on_device: Callable[[], Any]
) -> None:
    params = EvaluateParams(ks=(3, 5), negatives=10)
    plain = evaluate("sft", tiny_policy, tiny_data, params)
    curve = validate(tiny_policy, tiny_data, k=3)
    shown = Recommender(tiny_policy, tiny_data.item_ids, tiny_data.item_counts).recommend(
        [["i1", "i2"], ["i7"]], k=3, exclude=[["i9"], []]
    )
    policy = copy.deepcopy(tiny_policy)
    with on_device():
        device.to_best_device(policy)
        found = evaluate("sft", policy, tiny_data, params)
        assert isinstance(next(policy.parameters()), FakeTensor)
        assert found.metrics == pytest.approx(plain.metrics, abs=1e-6) and found.ranks.equals(plain.ranks)
        assert validate(policy, tiny_data, k=3) == pytest.approx(curve)
        again = Recommender(policy, tiny_data.item_ids, tiny_data.item_counts).recommend(
            [["i1", "i2"], ["i7"]], k=3, exclude=[["i9"], []]
        )
    assert [each.items for each in again] == [each.items for each in shown]


def test_the_champion_is_evaluated_on_the_device(
    tiny_policy: SlatePolicy, tiny_data: PreparedData, on_device: Callable[[], Any], tmp_path: Path
) -> None:
    """On a catalogue with an item that it does not know, and without one that it knows."""
    known = pl.DataFrame({"item": [*tiny_data.item_ids[:-1], "gone"], "count": tiny_data.item_counts})
    known.write_parquet(tmp_path / "items.parquet")
    save_policy(tiny_policy, tmp_path / "champion")
    arguments = (tmp_path / "champion", tmp_path / "items.parquet", tiny_data, EvaluateParams(ks=(3,), negatives=10))
    plain = evaluate_elsewhere(*arguments)
    places: list[str] = []

    class Watched(TransferredPolicy):
        def score(self, states: Sequence[Any]) -> Scores | torch.Tensor:
            places.append(self._policy.device.type)
            return super().score(list(states))

    with on_device(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("rl4rec.ops.measure.TransferredPolicy", Watched)
        found = evaluate_elsewhere(*arguments)
    assert set(places) == {NAME}
    assert found.metrics == pytest.approx(plain.metrics, abs=1e-6)


def test_the_stand_in_refuses_what_cuda_refuses(on_device: Callable[[], Any]) -> None:
    with on_device() as there:
        assert isinstance(there, FakeDevice)
        ours, its = torch.ones(3), torch.arange(3.0, device=there.device)
        assert its.device.type == NAME and (2 * its + torch.tensor(1.0)).tolist() == [1.0, 3.0, 5.0]
        number = torch.tensor(1.0)
        assert torch.tensor([1.0, 2.0], device=there.device).device.type == NAME and its[[0, 1]].tolist() == [0.0, 1.0]
        for mixed in (
            lambda: ours + its,
            lambda: torch.cat([ours, its]),
            lambda: torch.stack([number, its[0]]),
            lambda: number.add_(its[0]),
            lambda: ours[its.long()],
            its.numpy,
        ):
            with pytest.raises(MixedDevices):
                mixed()
        there.waits.clear()
        assert its[torch.tensor([2, 0])].tolist() == [2.0, 0.0]  # allowed, and the host waits for the copy
        assert [operation for operation, _ in there.waits] == ["index by rows of the host", "tolist"]
        there.waits.clear()
        device.to_device(ours, there.device)
        assert not there.waits
        ours.to(there.device), its.cpu(), float(its[0]), its[its > 1], its.nonzero()
        counted = {operation: count for (operation, _), count in there.waits.items()}
        assert counted == {"_to_copy": 2, "_local_scalar_dense": 1, "index by a mask": 1, "nonzero": 1}
    assert np.asarray(ours).sum() == 3
