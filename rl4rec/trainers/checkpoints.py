"""Where an interrupted training goes on: checkpoint folders that are whole, and belong to the run at hand."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rl4rec.distributed import is_main_process

logger = logging.getLogger(__name__)

_MANIFEST = "manifest.json"
_STEP_FOLDER = re.compile(r"checkpoint-(\d+)")


def run_digest(settings: Mapping[str, object]) -> str:
    """Digest of everything that a run's result depends on; a checkpoint of another run is never resumed."""
    world = os.environ.get("WORLD_SIZE", "1")  # another number of processes visits other prompts at each step
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


def weights_digest(folder: Path) -> str:
    """Digest of a policy folder's weights and configuration."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), folder / "config.json"]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
