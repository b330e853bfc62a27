"""Where an interrupted training goes on: checkpoint folders that are whole, and belong to the run at hand."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from rl4rec.distributed import is_main_process

_STEP_FOLDER = re.compile(r"checkpoint-(\d+)")


def run_digest(settings: Mapping[str, object]) -> str:
    """Digest of everything that a run's result depends on; a checkpoint of another run is never resumed."""
    world = os.environ.get("WORLD_SIZE", "1")  # another number of processes visits other prompts at each step
    text = json.dumps([settings, world], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def latest_checkpoint(folder: Path, digest: str) -> Path | None:
    """The newest whole checkpoint of this run in `folder`; checkpoints of other runs are removed.

    A checkpoint is whole once its `monitor.json`, the last file to be written, is there.
    """
    owner = folder / "run.json"
    if not owner.exists() or json.loads(owner.read_text(encoding="utf-8")).get("digest") != digest:
        if is_main_process():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            owner.write_text(json.dumps({"digest": digest}), encoding="utf-8")
        return None
    whole = [
        (int(match[1]), path)
        for path in folder.iterdir()
        if (match := _STEP_FOLDER.fullmatch(path.name)) and (path / "monitor.json").exists()
    ]
    return max(whole)[1] if whole else None


def keep_only(folder: Path, newest: Path) -> None:
    """Remove every checkpoint of `folder` but `newest`."""
    if not is_main_process():
        return
    for path in folder.iterdir():
        if _STEP_FOLDER.fullmatch(path.name) and path != newest:
            shutil.rmtree(path, ignore_errors=True)


def weights_digest(folder: Path) -> str:
    """Digest of a policy folder's weights and configuration."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), folder / "config.json"]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
