"""Checkpoints: what an interrupted training goes on from, as safetensors and JSON (nothing is ever unpickled).

A checkpoint is used only if it is whole and belongs to the run at hand.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.optim import Optimizer

from rl4rec._process import is_main_process
from rl4rec.errors import UserError, listed
from rl4rec.model.sharding import is_sharded, spread, whole

logger = logging.getLogger(__name__)

_MANIFEST = "manifest.json"
_STEP_FOLDER = re.compile(r"checkpoint-(\d+)")


def run_digest(settings: Mapping[str, object]) -> str:
    """Digest of everything that a run's result depends on; a checkpoint of another run is never resumed."""
    world = os.environ.get("WORLD_SIZE", "1")  # of processes, each of which keeps its own random generators
    text = json.dumps([settings, world], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def latest_checkpoint(folder: Path, digest: str) -> Path | None:
    """The newest whole checkpoint of this run in `folder`; newer ones, and those of other runs, are removed.

    A checkpoint is whole if its files are those that `seal` has listed, byte for byte. One that is not is named in a
    warning, and the one before it is taken.
    """
    owner = folder / "run.json"
    if _read_object(owner).get("digest") != digest:
        if is_main_process():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            owner.write_text(json.dumps({"digest": digest}), encoding="utf-8")  # cut off, it is no run's
        return None
    for path in reversed(_checkpoints(folder)):
        problem = _damage(path)
        if problem is None:
            logger.info("resuming from %s", path)
            return path
        logger.warning("%s cannot be used: %s", path, problem)
        if is_main_process():
            shutil.rmtree(path, ignore_errors=True)
    return None


def common_checkpoint(folder: Path, digest: str, accelerator: Accelerator) -> Path | None:
    """`latest_checkpoint`, which all processes see: process 0 chooses it, and removes others, before the rest look.

    Raises:
        UserError: on every process, if one of them does not see what process 0 has chosen, whole. It would train from
            another step, or stop while the others wait for it.
    """
    first = accelerator.is_main_process
    path = latest_checkpoint(folder, digest) if first else None
    if accelerator.num_processes == 1:
        return path
    mine = _NOTHING if path is None else _identity(path)
    chosen: list[int] = broadcast(torch.tensor(mine, device=accelerator.device)).tolist()
    if not first:
        mine = _seen(folder, digest, (chosen[0], chosen[1]))
    everyone: list[list[int]] = accelerator.gather(torch.tensor([mine], device=accelerator.device)).tolist()
    if any(seen != chosen for seen in everyone):
        found = listed(f"rank {rank} {_described(seen, chosen)}" for rank, seen in enumerate(everyone))
        raise UserError(
            f"{folder}: the processes see different checkpoints ({found}) and cannot go on together. Put "
            f"{folder} where all machines see the same files, or remove it on every machine to begin anew"
        )
    return folder / f"checkpoint-{chosen[0]}" if chosen[0] else None


_NOTHING = (0, 0)  # no checkpoint: they begin with step 1


def _described(seen: list[int], chosen: list[int]) -> str:
    if not seen[0]:
        return "none"
    return f"step {seen[0]}{' with other content' if seen[0] == chosen[0] and seen != chosen else ''}"


def _seen(folder: Path, digest: str, chosen: tuple[int, int]) -> tuple[int, int]:
    """What a process sees of the checkpoint that process 0 has chosen, or else its own newest."""
    if _read_object(folder / "run.json").get("digest") != digest:
        return _NOTHING
    whole = (_identity(path) for path in reversed(_checkpoints(folder)) if _damage(path) is None)
    newest = next(whole, _NOTHING)
    return chosen if chosen in (newest, *whole) else newest


def _identity(checkpoint: Path) -> tuple[int, int]:
    """The step of a whole checkpoint, and a number that stands for its content."""
    step = int(checkpoint.name.rpartition("-")[2])
    return step, int(hashlib.sha256((checkpoint / _MANIFEST).read_bytes()).hexdigest()[:15], 16)


def seal(folder: Path) -> None:
    """Complete a checkpoint: its files to disk, then the list of their sizes and SHA-256 digests.

    Of all earlier checkpoints the last one stays, should this one turn out to be damaged.
    """
    if not is_main_process():
        return
    listed = {path.relative_to(folder).as_posix(): _describe(path) for path in _files(folder)}
    draft = folder / f"{_MANIFEST}.partial"
    with draft.open("w", encoding="utf-8") as file:
        json.dump(listed, file)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(folder / _MANIFEST)
    for path in _checkpoints(folder.parent)[:-2]:
        shutil.rmtree(path, ignore_errors=True)


def _checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders, oldest first."""
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := _STEP_FOLDER.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def _damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    if not (folder / _MANIFEST).exists():
        return "it was not written to its end"
    listed = _read_object(folder / _MANIFEST)
    if not listed:
        return f"{_MANIFEST} cannot be read"
    for name, described in listed.items():
        try:
            if _describe(folder / name) != described:
                return f"{name} has changed since it was written"
        except OSError as error:
            return f"{name}: {error.strerror}"
    return None


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON object; empty if there is none, or it was cut off."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(_MANIFEST))


def _describe(path: Path) -> dict[str, object]:
    """Size and digest of a file, which is on the disk when this returns."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"bytes": file.tell(), "sha256": digest}


OPTIMIZER, SCHEDULE, MODEL = "optimizer", "schedule.json", "model.safetensors"


def save_optimizer(optimizer: Optimizer, schedule: Any, folder: Path, *, rank: int = 0) -> None:
    """Write `optimizer.safetensors` (`<parameter>.<name>`), `optimizer.json` (groups) and `schedule.json`.

    `schedule` is a scheduler of torch, or what wraps one. All processes take part, the first one writes.
    """
    state = optimizer.state_dict()
    tensors = {
        f"{index}.{name}": whole(value) for index, values in state["state"].items() for name, value in values.items()
    }
    if rank > 0:
        return
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
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for key, value in sorted(safetensors.torch.load_file(folder / f"{OPTIMIZER}.safetensors").items()):
        index, _, name = key.partition(".")
        of_weight = value.shape == weights[int(index)].shape  # not the number of steps
        state.setdefault(int(index), {})[name] = spread(value, weights[int(index)]) if of_weight else value
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
    if is_sharded(model):
        tensors = {name: whole(weight.detach()).cpu() for name, weight in model.named_parameters()}  # tied ones once
        if rank == 0:
            safetensors.torch.save_file(tensors, folder / MODEL)
    elif rank == 0:
        safetensors.torch.save_model(model, str(folder / MODEL))
    save_optimizer(optimizer, schedule, folder, rank=rank)
    save_generators(folder, rank)


def load_state(folder: Path, model: nn.Module, optimizer: Optimizer, schedule: Any, *, rank: int) -> None:
    """Take back what `save_state` wrote."""
    if is_sharded(model):
        tensors = safetensors.torch.load_file(folder / MODEL)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                weight.copy_(spread(tensors[name], weight))
    else:
        safetensors.torch.load_model(model, str(folder / MODEL))
    load_optimizer(optimizer, schedule, folder)
    load_generators(folder, rank)


def _hex(state: Tensor) -> str:
    return bytes(state.cpu().tolist()).hex()


def _tensor(state: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(state), dtype=torch.uint8)


def _write(path: Path, content: Mapping[str, Any] | list[Any]) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
