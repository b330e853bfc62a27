"""The device that models run on: chosen, said, and fed without making the host wait."""

from __future__ import annotations

import functools
import logging
import os
import warnings
from pathlib import Path

import torch
from torch import Tensor

from rl4rec._threads import describe_threads

logger = logging.getLogger(__name__)


def best_device() -> torch.device:
    """The CUDA device where there is one, or else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A tensor of the host on a device, copied while the host goes on (for which CUDA needs pinned memory)."""
    device = torch.device(device)
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def to_best_device(policy: torch.nn.Module) -> None:
    """Move a policy to `best_device`, which is said."""
    device = best_device()
    say_device(device)
    torch.nn.Module.to(policy, device)


@functools.cache
def say_device(device: torch.device) -> None:
    """Log threads and device, once per process; and where it is the CPU beside a GPU, why."""
    if device.type == "cuda":
        number = torch.cuda.current_device() if device.index is None else device.index
        what = f"cuda:{number} {torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    else:
        what = device.type.upper()
        if torch.cuda.is_available():
            what += ", although there is a GPU: ACCELERATE_USE_CPU is set"
    logger.info("%s, device: %s", describe_threads(torch.get_num_threads()), what)
    reason = unused_gpu() if device.type == "cpu" else None
    if reason is not None:
        logger.warning("there is an NVIDIA GPU, but it is not used: %s", reason)


def unused_gpu(driver: Path = Path("/proc/driver/nvidia/version")) -> str | None:
    """Why torch does not see an NVIDIA GPU of this machine; None if it does, or if there is none."""
    with warnings.catch_warnings(record=True) as caught:  # torch tells what is wrong with the driver in a warning
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if available or not driver.exists():
        return None
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1"):
        return "CUDA_VISIBLE_DEVICES hides it. Unset it"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built for CPUs only. Install the CUDA build: rm -r .venv && make install"
    said = " ".join(str(each.message).split(". (Triggered")[0] for each in caught)
    return said or f"torch {torch.__version__} for CUDA {torch.version.cuda} cannot use it. See nvidia-smi"
