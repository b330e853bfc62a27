"""One seed for every source of randomness."""

from __future__ import annotations

import os
import random

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch (every device), and ask torch for deterministic kernels.

    Equal seeds give equal results on one machine with one version of torch. Operations without a deterministic
    kernel only warn. `CUBLAS_WORKSPACE_CONFIG` is set for CUDA and must precede the first cuBLAS call.

    Args:
        seed: 0 <= seed < 2**32 (numpy's range).
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)  # CPU and every CUDA device
    torch.use_deterministic_algorithms(True, warn_only=True)
    # A debugging aid that fills every new tensor. (The attribute is served by the module's class, unknown to mypy.)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
