"""Optimizer, schedule and random generators in checkpoints, as safetensors and JSON: nothing is ever unpickled.

transformers and accelerate write them with `torch.save` and unpickle them again. `SafeCheckpoints` replaces that in a
Trainer; `save_state` and `load_state` are for a loop of one's own.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import Trainer

OPTIMIZER, SCHEDULE, MODEL = "optimizer", "schedule.json", "model.safetensors"


def save_optimizer(optimizer: Optimizer, schedule: Any, folder: Path) -> None:
    """Write `optimizer.safetensors` (`<parameter>.<name>`), `optimizer.json` (groups) and `schedule.json`.

    `schedule` is a scheduler of torch, or what wraps one.
    """
    state = optimizer.state_dict()
    tensors = {f"{index}.{name}": value for index, values in state["state"].items() for name, value in values.items()}
    # a scalar of its own storage each: safetensors refuses tensors that share one
    safetensors.torch.save_file(
        {name: value.detach().clone().contiguous() for name, value in tensors.items()},
        folder / f"{OPTIMIZER}.safetensors",
    )
    _write(folder / f"{OPTIMIZER}.json", state["param_groups"])
    _write(folder / SCHEDULE, schedule.state_dict())


def load_optimizer(optimizer: Optimizer, schedule: Any, folder: Path) -> None:
    """Take back what `save_optimizer` wrote."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in safetensors.torch.load_file(folder / f"{OPTIMIZER}.safetensors").items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    groups = [
        {name: tuple(value) if name == "betas" else value for name, value in group.items()}
        for group in _read(folder / f"{OPTIMIZER}.json")
    ]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    schedule.load_state_dict(_read(folder / SCHEDULE))


def save_generators(folder: Path, rank: int) -> None:
    """Write the states of this process's random generators (Python, NumPy, torch, CUDA) to `random-<rank>.json`."""
    version, words, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state(legacy=True)
    states = {
        "python": [version, list(words), gauss],
        "numpy": [kind, np.asarray(keys).tolist(), *rest],
        "torch": _hex(torch.get_rng_state()),
        "cuda": [_hex(state) for state in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else [],
    }
    _write(folder / f"random-{rank}.json", states)


def load_generators(folder: Path, rank: int) -> None:
    """Take back what `save_generators` wrote."""
    states = _read(folder / f"random-{rank}.json")
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(_tensor(states["torch"]))
    if states["cuda"] and torch.cuda.device_count() == len(states["cuda"]):
        torch.cuda.set_rng_state_all([_tensor(state) for state in states["cuda"]])


def save_state(folder: Path, model: nn.Module, optimizer: Optimizer, schedule: Any, *, rank: int) -> None:
    """Write a loop's whole state; every process its generators, the first one the rest."""
    folder.mkdir(parents=True, exist_ok=True)
    if rank == 0:
        safetensors.torch.save_model(model, str(folder / MODEL))
        save_optimizer(optimizer, schedule, folder)
    save_generators(folder, rank)


def load_state(folder: Path, model: nn.Module, optimizer: Optimizer, schedule: Any, *, rank: int) -> None:
    """Take back what `save_state` wrote."""
    safetensors.torch.load_model(model, str(folder / MODEL))
    load_optimizer(optimizer, schedule, folder)
    load_generators(folder, rank)


class SafeCheckpoints(Trainer):
    """Mixin of a transformers Trainer: checkpoints without pickles (one GPU a process; not FSDP or DeepSpeed)."""

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.args.should_save:
            assert self.optimizer is not None
            save_optimizer(self.optimizer, self.lr_scheduler, Path(output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            assert self.optimizer is not None
            load_optimizer(self.optimizer, self.lr_scheduler, Path(checkpoint))

    def _save_rng_state(self, output_dir: str) -> None:
        Path(output_dir).mkdir(parents=True, exist_ok=True)  # perhaps ahead of the first process
        save_generators(Path(output_dir), self.args.process_index)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_generators(Path(checkpoint), self.args.process_index)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save and output_dir is not None:
            Path(output_dir, "training_args.bin").unlink(missing_ok=True)  # a pickle that nothing reads


def _hex(state: Tensor) -> str:
    return bytes(state.cpu().tolist()).hex()


def _tensor(state: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(state), dtype=torch.uint8)


def _write(path: Path, content: Mapping[str, Any] | list[Any]) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
