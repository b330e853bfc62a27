"""Which process of a distributed run this is (`accelerate launch` and `torchrun` set the environment)."""

from __future__ import annotations

import os

from rl4rec.errors import UserError


def is_main_process() -> bool:
    """Whether this process writes files and tracks; True in a run of one process."""
    return os.environ.get("RANK", "0") == "0"


def refuse_data_parallel(gpus: int) -> None:
    """Stop where the Trainer would fall back on one process for several GPUs (`nn.DataParallel`).

    It splits every tensor of a batch over the GPUs, shared samples and settings too, and is deprecated.

    Args:
        gpus: GPUs of this process, the Trainer's `n_gpu`.

    Raises:
        UserError: there are several.
    """
    if gpus > 1:
        raise UserError(
            f"this process sees {gpus} GPUs. Start one process a GPU, `accelerate launch pipelines/<stage>.py`, "
            "or choose one with CUDA_VISIBLE_DEVICES=0"
        )
