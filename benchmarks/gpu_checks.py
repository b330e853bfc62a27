"""Parts of `make gpu` that are right or wrong: a device against the CPU, and against itself."""

from __future__ import annotations

import copy
import os
import platform
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate.state import AcceleratorState, GradientState, PartialState
from gpu_data import load_shop
from torch import Tensor

from rl4rec._process import limit_reached
from rl4rec.data.dataset import PreparedData
from rl4rec.evaluation.ranking import full_ranks, ranked_fold, recommended_items, score_blocks
from rl4rec.evaluation.validation import validate
from rl4rec.metrics import metric_key
from rl4rec.model.batch import pad_histories
from rl4rec.model.create import create_policy
from rl4rec.model.crossfit_embeddings import CrossfitEmbeddings
from rl4rec.model.device import unused_gpu
from rl4rec.model.keyed_random import combine, exponential, mix
from rl4rec.model.policy import SlatePolicy
from rl4rec.params import Params
from rl4rec.serve.recommender import Recommender
from rl4rec.train.candidates import draw_candidates
from rl4rec.train.continued import ContinuedSFTTrainer
from rl4rec.train.crossfit import fit_crossfit
from rl4rec.train.grpo import GRPOTrainer
from rl4rec.train.log import RunLog
from rl4rec.train.loop import Trainer
from rl4rec.train.ppo import PPOTrainer
from rl4rec.train.seeding import seed_everything
from rl4rec.train.sft import SFTTrainer

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[1]
ON_PROMPTS = {"ppo": PPOTrainer, "grpo": GRPOTrainer, "sft_continued": ContinuedSFTTrainer}


@dataclass
class Setting:
    """Where and at what size the parts run."""

    device: torch.device
    small: bool
    until: float = float("inf")  # of `time.perf_counter`: long parts stop there

    @cached_property
    def name(self) -> str:
        """Of the device."""
        return torch.cuda.get_device_name() if self.device.type == "cuda" else "CPU"

    @cached_property
    def shop(self) -> PreparedData:
        """The demo's data."""
        return load_shop()


def demo_params(**changes: dict[str, Any]) -> Params:
    """The settings of `make demo` without dropout, whose masks differ from device to device, and with changes."""
    settings: dict[str, Any] = {}
    same = {"policy": {"dropout": 0.0}, "sft": {"precision": "fp32"}, "rl": {"precision": "fp32"}}
    for layer in (_yaml("params.yaml"), _yaml("demo.yaml"), same, changes):
        settings = _merged(settings, layer)
    return Params.model_validate(settings)


def new_policy(data: PreparedData, params: Params, *, opinionated: bool = False) -> SlatePolicy:
    """An untrained policy; opinionated: with weights large enough to prefer some items clearly."""
    seed_everything(0)
    policy, _ = create_policy(params.policy, data.item_ids, None)  # from scratch: no text is read
    if opinionated:
        with torch.no_grad():
            for weight in policy.parameters():
                weight.add_(0.2 * torch.randn_like(weight))
    return policy.train(False)


@contextmanager
def on_device(device: torch.device) -> Iterator[None]:
    """Trainers that are made in the block run on the device."""
    with _variable("ACCELERATE_TORCH_DEVICE", str(device)):
        for state in (AcceleratorState, PartialState, GradientState):
            state._reset_state()
        yield
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()


def make_trainer(
    name: str,
    start: SlatePolicy,
    data: PreparedData,
    params: Params,
    *,
    crossfit: CrossfitEmbeddings | None = None,
    run: RunLog | None = None,
) -> Trainer:
    """A trainer of a copy of a policy; it logs nothing unless it gets a run."""
    run = run or RunLog(validate=None, metric="none")
    policy = copy.deepcopy(start)
    if name == "sft":
        return SFTTrainer(policy, data, params.sft, run)
    seed_everything(0)
    return ON_PROMPTS[name](policy, data, params.rl, run, crossfit=crossfit)


def noise_tables(policy: SlatePolicy, tables: int) -> CrossfitEmbeddings | None:
    """Something in the place of cross-fitted embeddings."""
    if tables == 0:
        return None
    own = policy.item_embeddings().detach().cpu()
    rows = torch.stack([own + 0.05 * torch.randn(own.shape, generator=_seeded(table)) for table in range(tables)])
    return CrossfitEmbeddings(rows, rows.clone(), policy.config.item_offset)


# --- the parts --------------------------------------------------------------------------------------


def machine(setting: Setting) -> dict[str, Any]:
    """(1) Driver, CUDA, device and versions."""
    found: dict[str, Any] = {
        "device": setting.name,
        "python": platform.python_version(),
        "cpu_threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "unused_gpu": unused_gpu(),
        "versions": {name: _version(name) for name in ("torch", "transformers", "accelerate", "peft", "numpy", "trl")},
    }
    if setting.device.type == "cuda":
        properties = torch.cuda.get_device_properties(setting.device)
        driver = Path("/proc/driver/nvidia/version")
        said = re.search(r"Module\s+(?:for \S+\s+)?([\d.]+)", driver.read_text()) if driver.exists() else None
        found |= {
            "driver": said[1] if said else None,
            "capability": f"{properties.major}.{properties.minor}",
            "memory_gb": round(properties.total_memory / 2**30, 1),
            "bf16": torch.cuda.is_bf16_supported(including_emulation=False),
        }
    failed = [] if found["unused_gpu"] is None else [str(found["unused_gpu"])]
    return found | {"failed": failed}


def agreement(setting: Setting) -> dict[str, Any]:
    """(2) Random numbers, candidates, slates, log-probabilities, losses, gradients and ranks, device against CPU."""
    found: dict[str, Any] = {}
    limits: dict[str, tuple[str, float]] = {}

    def check(name: str, value: float, rule: str, limit: float) -> None:
        found[name], limits[name] = value, (rule, limit)

    keys = torch.arange(512) * 7919 + 3
    hashed = [combine(mix(keys.to(each)), keys.to(each)).cpu() for each in (CPU, setting.device)]
    check("keyed bits equal", float((hashed[0] == hashed[1]).double().mean()), ">=", 1.0)
    noise = [exponential(keys.to(each), 1000).cpu() for each in (CPU, setting.device)]
    check("keyed noise, equal share", float((noise[0] == noise[1]).double().mean()), ">=", 0.5)
    check("keyed noise, largest relative difference", _relative(*noise), "<=", 1e-6)

    data, params = setting.shop, demo_params(rl={"crossfit": {"split_points": 0}, "trainable": "all"})
    policies = [new_policy(data, params, opinionated=True) for _ in range(2)]
    torch.nn.Module.to(policies[1], setting.device)
    histories = [data.sequences[row][:-1] for row in range(256)]
    targets = torch.tensor([data.sequences[row][-1] for row in range(256)])
    seeds, k = torch.arange(256) * 104729, params.rl.k
    weights = torch.from_numpy(data.item_counts).double().clamp_min(1.0) ** 0.5
    slates, log_probs = [], []
    for source in ("uniform", "popularity"):
        drawn = []
        for policy, device in zip(policies, (CPU, setting.device), strict=True):
            padded = pad_histories(histories, max_history=20, device=device)
            more = {"negatives": 100, "num_items": data.num_items, "source": source, "popularity": weights.to(device)}
            drawn.append(draw_candidates(padded, targets.to(device), seeds.to(device), **more))
            if source == "uniform":
                states, support = policy.encode(padded), policy.support(padded, drawn[-1])
                keys = combine(seeds).to(device)
                slates.append(policy.sample(states, support, num_slates=8, k=k, temperature=0.3, keys=keys).cpu())
                shown = slates[0].to(device)  # the CPU's, so that both rate the same
                log_probs.append(policy.log_probs(states, support, shown, temperature=0.3).log_probs.detach().cpu())
        check(f"{source} candidates equal", float((drawn[0] == drawn[1].cpu()).double().mean()), ">=", 0.9999)
    check("slates equal", float((slates[0] == slates[1]).all(-1).double().mean()), ">=", 0.99)
    check("log-probabilities, largest difference", float((log_probs[0] - log_probs[1]).abs().max()), "<=", 1e-3)
    ranks = [_ranks(policy, data) for policy in policies]
    check("ranks equal", float((ranks[0] == ranks[1]).double().mean()), ">=", 0.99)

    for precision, limit in (("fp32", 2e-3), ("bf16", 0.2)):
        for name in ("sft", "sft, sampled", "ppo", "grpo", "sft_continued"):
            grads = [_gradient(name, data, precision, device) for device in (CPU, setting.device)]
            apart = float((grads[0] - grads[1]).norm() / grads[0].norm())
            check(f"{name} in {precision}, gradient's relative difference", apart, "<=", limit)
    failed = [
        f"{name}: {found[name]:.3g}, expected {rule} {limit:g}"
        for name, (rule, limit) in limits.items()
        if not (found[name] >= limit if rule == ">=" else found[name] <= limit)
    ]
    return {"values": {name: float(f"{value:.4g}") for name, value in found.items()}, "failed": failed}


def training(setting: Setting) -> dict[str, Any]:
    """(3) SFT, cross-fitting, PPO and GRPO of the demo on both: NDCG@10 must agree within .002."""
    data = setting.shop
    short = {"sft": {"num_epochs": 2}, "rl": {"num_slates": 4096, "crossfit": {"num_epochs": 1}}}
    params = demo_params(**(short if setting.small else {}))
    key = metric_key("test", "full", "ndcg", params.rl.k)
    found: dict[str, dict[str, float]] = {}
    for device in (CPU, setting.device):
        place = "cpu" if device == CPU and "cpu" not in found else "device"
        found[place] = {}
        with on_device(device):
            run = RunLog(validate=None, metric="none")
            warm = make_trainer("sft", new_policy(data, params), data, params, run=run)
            warm.train()
            tables = fit_crossfit(
                copy.deepcopy(warm.policy),
                data,
                params.sft,
                params.rl.crossfit,
                latest=False,
                make_run=lambda earlier, table: RunLog(validate=None, metric="none"),
            )
            trained = {"sft": warm.policy}
            for name in ("ppo", "grpo"):
                trainer = make_trainer(name, warm.policy, data, params, crossfit=tables)
                trainer.train()
                trained[name] = trainer.policy
            for name, policy in trained.items():
                found[place][name] = round(validate(policy.train(False), data, fold="test", k=params.rl.k)[key], 5)
    apart = {name: abs(found["cpu"][name] - found["device"][name]) for name in found["cpu"]}
    failed = [f"{name}: NDCG@10 differs by {value:.4f}" for name, value in apart.items() if value > 0.002]
    return {"ndcg@10": found, "failed": failed}


def determinism(setting: Setting) -> dict[str, Any]:
    """(4) Every training twice, equal to the last bit; operations that torch calls nondeterministic."""
    data, params = setting.shop, _few_steps()
    failed, operations = [], set()
    with on_device(setting.device), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        start = new_policy(data, params)
        for name in ("sft", *ON_PROMPTS):
            twice = []
            for _ in range(2):
                trainer = make_trainer(name, start, data, params, crossfit=noise_tables(start, 2))
                trainer.train()
                twice.append(_weights(trainer.policy))
            if not torch.equal(*twice):
                failed.append(f"{name}: two runs differ")
    for each in caught:
        said = re.match(r"(\S+) does not have a deterministic implementation", str(each.message))
        operations |= {said[1]} if said else set()
    return {"nondeterministic": sorted(operations), "failed": failed}


def resuming(setting: Setting) -> dict[str, Any]:
    """(5) A training that breaks off and goes on from its checkpoint has the weights of one that does not."""
    data, params = setting.shop, _few_steps()
    failed = []
    with on_device(setting.device):
        start = new_policy(data, params)
        for name in ("sft", *ON_PROMPTS):
            tables = noise_tables(start, 2)
            whole = make_trainer(name, start, data, params, crossfit=tables)
            whole._eval_every = 2
            whole.train()
            with tempfile.TemporaryDirectory() as folder:
                for stop in (True, False):
                    run = RunLog(validate=None, metric="none", on_log=_break_off(5) if stop else None)
                    trainer = make_trainer(name, start, data, params, crossfit=tables, run=run)
                    trainer._eval_every = 2
                    try:
                        trainer.train(checkpoints=Path(folder), digest=name)
                    except KeyboardInterrupt:
                        continue
            if not torch.equal(_weights(whole.policy), _weights(trainer.policy)):
                failed.append(f"{name}: the resumed run differs")
    return {"failed": failed}


def serving(setting: Setting) -> dict[str, Any]:
    """(10) The lists that are served are those that are evaluated."""
    data, params = setting.shop, demo_params()
    policy = new_policy(data, params, opinionated=True)
    torch.nn.Module.to(policy, setting.device)
    fold = ranked_fold(data, "test")
    users = len(fold.targets)
    evaluated = []
    for start, stop, scores in score_blocks(
        fold.block_scorer(policy), users=users, num_items=data.num_items, batch_size=512
    ):
        scores[fold.seen_pairs(start, stop, scores.device)] = -torch.inf
        evaluated.append(recommended_items(scores, 10).cpu())
    histories = [[data.item_ids[item] for item in fold.history[row]] for row in range(users)]
    served = Recommender(policy, data.item_ids, data.item_counts).recommend(histories, k=10)
    wanted = [[data.item_ids[item] for item in row] for row in torch.cat(evaluated).tolist()]
    different = sum(list(answer.items) != row for answer, row in zip(served, wanted, strict=True))
    failed = [f"{different} of {users} lists differ"] if different else []
    return {"lists": users, "different": different, "failed": failed}


def out_of_memory(setting: Setting) -> dict[str, Any]:
    """(9) With too little memory a stage ends with a message that names the settings to lower."""
    data = setting.shop
    params = demo_params(policy={"n_embd": 2048, "n_layer": 4}, rl={"crossfit": {"split_points": 0}})
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(setting.device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, (torch.cuda.memory_reserved() + 2**29) / total))
    try:
        with on_device(setting.device):
            make_trainer("grpo", new_policy(data, params), data, params).train_step(0, logged=True)
        message = None
    except torch.OutOfMemoryError as error:
        message = limit_reached(error, "rl grpo")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    named = message is not None and "rl.grpo.batch_size" in message
    return {"message": message, "failed": [] if named else ["the message names no setting of rl.grpo"]}


# --- shared by the parts ----------------------------------------------------------------------------


def _few_steps() -> Params:
    return demo_params(
        policy={"dropout": 0.2},
        sft={"max_steps": 6, "logging_steps": 1},
        rl={
            "logging_steps": 1,
            "ppo": {"max_steps": 6, "batch_size": 64, "mini_batch_size": 32},
            "grpo": {"max_steps": 6, "batch_size": 16},
        },
    )


def _gradient(name: str, data: PreparedData, precision: str, device: torch.device) -> Tensor:
    """All gradients of one step, on the CPU; the weights stay as they are, and nothing is clipped."""
    name, _, softmax = name.partition(", ")
    update = {"max_grad_norm": 1e9}
    params = demo_params(
        sft={"precision": precision, "softmax": softmax or "full", **update},
        rl={
            "precision": precision,
            "crossfit": {"split_points": 0},
            "trainable": "all",
            "ppo": {"batch_size": 64, "mini_batch_size": 32, **update},
            "grpo": {"batch_size": 64, **update},
            "sft_continued": update,
        },
    )
    with on_device(device):
        trainer = make_trainer(name, new_policy(data, params, opinionated=True), data, params)
        trainer.optimizer.step = lambda: None
        trainer.optimizer.zero_grad = lambda: None
        trainer.train_step(0, logged=True)
        weights = trainer.policy.parameters()
        return torch.cat([each.grad.flatten().double().cpu() for each in weights if each.grad is not None])


def _ranks(policy: SlatePolicy, data: PreparedData) -> Tensor:
    fold, parts = ranked_fold(data, "test"), []
    users = len(fold.targets)
    for start, stop, scores in score_blocks(
        fold.block_scorer(policy), users=users, num_items=data.num_items, batch_size=512
    ):
        targets = torch.from_numpy(fold.targets[start:stop]).to(scores.device)
        parts.append(full_ranks(scores, targets, fold.seen_pairs(start, stop, scores.device))[0].cpu())
    return torch.cat(parts)


def _break_off(step: int) -> Callable[[dict[str, float]], None]:
    def on_log(row: dict[str, float]) -> None:
        if row["step"] == step and "train/loss" in row:
            raise KeyboardInterrupt

    return on_log


def _weights(policy: SlatePolicy) -> Tensor:
    return torch.cat([weight.detach().flatten().cpu() for weight in policy.parameters()])


def _relative(first: Tensor, second: Tensor) -> float:
    return float(((first - second).abs() / first.abs()).max())


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _yaml(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / name).read_text(encoding="utf-8")))


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    both = {key for key in changes if isinstance(base.get(key), dict) and isinstance(changes[key], dict)}
    return {**base, **changes, **{key: _merged(base[key], changes[key]) for key in both}}


@contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name) if before is None else os.environ.update({name: before})
