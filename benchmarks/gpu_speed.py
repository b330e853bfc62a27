"""Parts of `make gpu` that measure: waits of the host; time and memory of a step.

Times are medians of steps after a warm-up, on one device in one run; the peer is a plain loop of transformers in the
same run (and stock TRL, where it is installed).
"""

from __future__ import annotations

import re
import statistics
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from gpu_checks import Setting, demo_params, make_trainer, new_policy, noise_tables, on_device
from gpu_data import made_up
from transformers import GPT2Config, GPT2LMHeadModel, TrainerCallback

from rl4rec.data.dataset import PreparedData
from rl4rec.data.vocabulary import ITEM_OFFSET, build_tokenizer
from rl4rec.evaluation.validation import validate
from rl4rec.model.policy import SlatePolicy
from rl4rec.params import Params
from rl4rec.train.log import peak_memory_mb, reset_peak_memory
from rl4rec.train.loop import Trainer
from rl4rec.train.prompts import PromptSet
from rl4rec.train.sft import cut_windows, pad_windows

BEAUTY = (12_101, 22_363)  # items and users
MILLION = (1_000_000, 50_000)
RL = ("ppo", "grpo", "sft_continued")
MOST_WAITS = 10  # of the host per step


def waits(setting: Setting) -> dict[str, Any]:
    """(6) How often the host waits for the device per step, where, and how long the device is busy."""
    data, params = made_up(*BEAUTY), _beauty_params()
    found: dict[str, Any] = {}
    failed = []
    with on_device(setting.device):
        start = new_policy(data, params)
        for name in ("sft", *RL):
            trainer = make_trainer(name, start, data, params, crossfit=noise_tables(start, 2))
            for step in range(3):
                trainer.train_step(step, logged=False)
            where = _waits(trainer, 3)
            found[name] = {"waits": sum(where.values()), "where": dict(where.most_common(8)), **_busy(trainer, 4)}
            if found[name]["waits"] >= MOST_WAITS:
                failed.append(f"{name}: the host waits {found[name]['waits']} times per step, expected < {MOST_WAITS}")
    return {"per_step": found, "failed": failed}


def speed(setting: Setting) -> dict[str, Any]:
    """(7) Step times, memory and ranking at Beauty's size and at a million items, against a plain loop."""
    found: dict[str, Any] = {}
    data, params = made_up(*((300, 600) if setting.small else BEAUTY)), _beauty_params()
    with on_device(setting.device):
        start = new_policy(data, params)
        for name in ("sft", *RL):
            trainer = make_trainer(name, start, data, params, crossfit=noise_tables(start, 2))
            found[f"Beauty, {name}"] = _measure(
                setting, lambda step, trainer=trainer: trainer.train_step(step, logged=False)
            )
        found["Beauty, plain transformers loop"] = _plain_sft(setting, data, params)
        found["Beauty, ranking"] = _ranking(setting, start, data)
        del start, trainer
        if time.perf_counter() < setting.until:
            found |= _million(setting)
    found["stock TRL, grpo"] = _stock_trl(setting, data, params) if find_spec("trl") else "not run: trl is not there"
    ratio = {"sft_vs_plain_loop": found["Beauty, plain transformers loop"]["ms"] / found["Beauty, sft"]["ms"]}
    if find_spec("trl"):
        slates = params.rl.grpo.slates_per_step / found["Beauty, grpo"]["ms"]
        ratio["grpo_slates_vs_stock_trl"] = slates / (64 / found["stock TRL, grpo"]["ms"])
    return {"steps": found, "ratio": {name: round(value, 1) for name, value in ratio.items()}, "failed": []}


def wide(setting: Setting) -> dict[str, Any]:
    """(8) A policy as wide as GPT-2 in float32, TF32 and bfloat16: the first losses must agree."""
    size = {"n_layer": 2, "n_embd": 32, "n_head": 2} if setting.small else {"n_layer": 12, "n_embd": 768, "n_head": 12}
    data = made_up(*((300, 600) if setting.small else BEAUTY))
    found: dict[str, Any] = {}
    losses: dict[str, dict[str, float]] = {}
    for precision in ("fp32", "tf32", "bf16"):
        params = _beauty_params(
            policy=size | {"dropout": 0.0},
            sft={"precision": precision, "batch_size": 64},
            rl={"precision": precision, "crossfit": {"split_points": 0}, "grpo": {"batch_size": 64}},
        )
        with on_device(setting.device):
            start = new_policy(data, params)
            for name in ("sft", "grpo"):
                trainer = make_trainer(name, start, data, params)
                first = float(trainer.train_step(0, logged=True)["loss" if name == "sft" else "reward"])
                losses.setdefault(name, {})[precision] = round(first, 6)
                found[f"{name} in {precision}"] = _measure(setting, trainer)
                del trainer
    failed = [
        f"sft in {precision}: first loss {value}, in fp32 {losses['sft']['fp32']}"
        for precision, value in losses["sft"].items()
        if abs(value / losses["sft"]["fp32"] - 1) > 0.01
    ]
    return {"steps": found, "first": losses, "failed": failed}


def _million(setting: Setting) -> dict[str, Any]:
    data = made_up(*((2_000, 500) if setting.small else MILLION))
    found: dict[str, Any] = {}
    for softmax in ("full", "sampled"):
        params = _beauty_params(sft={"softmax": softmax, "batch_size": 64}, rl={"crossfit": {"split_points": 0}})
        start = new_policy(data, params)
        trainer = make_trainer("sft", start, data, params)
        found[f"million, sft, {softmax} softmax"] = _measure(setting, trainer)
    for name in ("ppo", "grpo"):
        trainer = make_trainer(name, start, data, params)
        found[f"million, {name}"] = _measure(setting, trainer)
    found["million, ranking"] = _ranking(setting, start, data, users=300 if setting.small else 4096)
    return found


def _plain_sft(setting: Setting, data: PreparedData, params: Params) -> dict[str, float]:
    """GPT2LMHeadModel on the same windows, padded: cross-entropy over all logits, autocast where ours is, AdamW."""
    model = _plain_model(data, params).to(setting.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=setting.device.type == "cuda")
    windows = cut_windows(data.train_sequences(), params.policy.max_history + 1)
    order = np.random.default_rng(0).permutation(len(windows))
    size = params.sft.batch_size
    bf16 = setting.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)

    def step(number: int) -> None:
        rows = np.take(order, range(number * size, (number + 1) * size), mode="wrap")
        padded = pad_windows([windows[row] for row in rows])
        inside = padded >= 0
        tokens = torch.where(inside, padded + ITEM_OFFSET, 0).to(setting.device)
        labels = torch.where(inside, padded + ITEM_OFFSET, -100).to(setting.device)
        with torch.autocast(setting.device.type, torch.bfloat16, enabled=bf16):
            loss = model(input_ids=tokens, attention_mask=inside.to(setting.device), labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return _measure(setting, step)


def _plain_model(data: PreparedData, params: Params) -> GPT2LMHeadModel:
    """The policy's architecture, as transformers has it."""
    policy = params.policy
    config = GPT2Config(
        vocab_size=ITEM_OFFSET + data.num_items, n_positions=128, n_embd=policy.n_embd, n_layer=policy.n_layer,
        n_head=policy.n_head, bos_token_id=2, eos_token_id=3, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    return GPT2LMHeadModel(config)


def _stock_trl(setting: Setting, data: PreparedData, params: Params) -> dict[str, float]:
    """TRL's GRPOTrainer as it comes, which generates item tokens one by one: 8 prompts with 8 slates of 10."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: object, **__: object) -> None:
            _finish(setting)
            marks.append(time.perf_counter())

    marks: list[float] = []
    tokenizer = build_tokenizer(data.item_ids)
    prompts = PromptSet(data, max_history=50, seed=0).visit(0, 64)
    texts = [tokenizer.decode((history + ITEM_OFFSET).tolist()) for history in prompts.histories]
    targets = [ITEM_OFFSET + int(target) for target in prompts.targets]

    def hit(completion_ids: list[list[int]], target: list[int], **_: object) -> list[float | None]:
        return [float(t in ids) for ids, t in zip(completion_ids, target, strict=True)]

    names = ("activation_checkpointing", "gradient_checkpointing")  # the name depends on the release
    recompute = {next(name for name in names if name in GRPOConfig.__dataclass_fields__): False}
    with tempfile.TemporaryDirectory() as folder:
        arguments = GRPOConfig(
            output_dir=folder, per_device_train_batch_size=64, num_generations=8, max_completion_length=10,
            max_steps=4, bf16=False, **recompute, report_to="none", save_strategy="no",
            disable_tqdm=True, logging_strategy="no", use_cpu=setting.device.type == "cpu",
        )  # fmt: skip
        GRPOTrainer(
            model=_plain_model(data, params), reward_funcs=[hit], args=arguments, processing_class=tokenizer,
            train_dataset=Dataset.from_dict({"prompt": texts, "target": targets}), callbacks=[Clock()],
        ).train()  # fmt: skip
    seconds = statistics.median(np.diff(marks)[1:])
    return {"ms": round(1000 * seconds, 2), "slates_per_step": 64}


def _ranking(setting: Setting, policy: SlatePolicy, data: PreparedData, users: int | None = None) -> dict[str, float]:
    """Validation over the whole catalogue, users per second."""
    torch.nn.Module.to(policy, setting.device)
    if users is not None:
        kept = data.sequences.take(np.arange(min(users, len(data.sequences))))
        data = PreparedData(data.folder, data.users[: len(kept)], data.item_ids, data.item_counts, kept, data.stats)
    reset_peak_memory()
    validate(policy, data)
    before = time.perf_counter()
    validate(policy, data)
    seconds = time.perf_counter() - before
    return {"users_per_second": round(len(data.sequences) / seconds), "peak_memory_mb": peak_memory_mb()}


def _measure(setting: Setting, work: Trainer | Callable[[int], object]) -> dict[str, float]:
    """Median milliseconds of a step, and peak memory; fewer steps where they are slow."""
    step = partial(work.train_step, logged=False) if isinstance(work, Trainer) else work
    reset_peak_memory()
    seconds: list[float] = []
    started = time.perf_counter()
    for number in range(4 if setting.small else 24):
        _finish(setting)
        before = time.perf_counter()
        step(number)
        _finish(setting)
        seconds.append(time.perf_counter() - before)
        if time.perf_counter() - started > 6 and number >= 3:
            break
    median = statistics.median(seconds[min(3, len(seconds) - 1) :])
    return {"ms": round(1000 * median, 2), "peak_memory_mb": peak_memory_mb()}


def _waits(trainer: Trainer, step: int) -> Counter[str]:
    """Where the host waits in one step, by what torch says of it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            trainer.train_step(step, logged=False)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    places = (
        re.sub(r".*/(?=rl4rec/|site-packages/|dist-packages/)", "", f"{each.filename}:{each.lineno}")
        for each in caught
        if "synchroniz" in str(each.message)
    )
    return Counter(places)


def _busy(trainer: Trainer, step: int) -> dict[str, float]:
    """The share of some steps' time in which the device computes, and how many kernels a step has."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=activities) as profile:
        before, steps = time.perf_counter(), 3
        for number in range(steps):
            trainer.train_step(step + number, logged=False)
        torch.cuda.synchronize()
        seconds = time.perf_counter() - before
    kernels = [each for each in profile.events() if each.device_type == torch.autograd.DeviceType.CUDA]
    busy = sum(each.time_range.elapsed_us() for each in kernels) / 1e6
    return {"busy_share": round(busy / seconds, 3), "kernels": round(len(kernels) / steps)}


def _beauty_params(**changes: dict[str, Any]) -> Params:
    """The defaults of params.yaml, for made-up data of Beauty's size."""
    return demo_params(
        policy={"n_embd": 64, "dropout": 0.35, "max_history": 50} | changes.get("policy", {}),
        sft={"batch_size": 256, "target_window": 3, "precision": "auto"} | changes.get("sft", {}),
        rl={
            "candidates": {"negatives": 1000},
            "precision": "auto",
            "ppo": {"batch_size": 1024, "mini_batch_size": 512},
            "grpo": {"batch_size": 128},
        }
        | changes.get("rl", {}),
    )


def _finish(setting: Setting) -> None:
    if setting.device.type == "cuda":
        torch.cuda.synchronize()
