"""Which process of a distributed run this is (`accelerate launch` and `torchrun` set the environment)."""

from __future__ import annotations

import os


def is_main_process() -> bool:
    """Whether this process writes files and tracks; True in a run of one process."""
    return os.environ.get("RANK", "0") == "0"
