"""A folder that runs the same pipeline with other settings, apart from the committed results (`make demo`).

It is a DVC project of its own: `dvc.yaml`, `pipelines` and `rl4rec` are links to the originals, `params.yaml` is the
committed one with some settings changed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from rl4rec.errors import UserError
from rl4rec.params import load_params

_LINKED = ("dvc.yaml", "pipelines", "rl4rec")
_DVC_CONFIG = "[core]\n    no_scm = true\n    analytics = false\n    check_update = false\n"


def make_workspace(root: Path, folder: Path, overrides: Path) -> None:
    """Make or refresh `folder`; earlier results in it stay, so that only what changed runs again.

    Args:
        root: the project, with params.yaml, dvc.yaml, pipelines/ and rl4rec/.
        folder: the workspace.
        overrides: YAML with the settings that differ, nested as in params.yaml.

    Raises:
        UserError: the overrides are missing or invalid, or the folder holds something else.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / ".dvc").is_dir():
        raise UserError(f"{folder}: exists and is not a workspace; choose another folder")
    changed = merge_settings(_read(root / "params.yaml"), _read(overrides))
    data = changed.get("data") or {}
    if data.get("path"):
        data["path"] = str((root / data["path"]).resolve())  # meant from the project's root, not from the workspace
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / ".params.yaml.new"
    draft.write_text(f"# Made from params.yaml and {overrides.name}.\n" + yaml.safe_dump(changed, sort_keys=False))
    try:
        load_params(draft)
    except UserError as error:
        draft.unlink()
        raise UserError(f"{overrides} over params.yaml: {error}") from None
    os.replace(draft, folder / "params.yaml")
    (folder / ".dvc").mkdir(exist_ok=True)
    (folder / ".dvc" / "config").write_text(_DVC_CONFIG)
    (folder / ".dvcignore").write_text("__pycache__/\nmlruns/\nmlflow.db*\n")
    for name in _LINKED:
        link = folder / name
        if not link.is_symlink():
            link.symlink_to(os.path.relpath(root / name, folder), target_is_directory=(root / name).is_dir())


def merge_settings(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Nested settings with some changed."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = merge_settings(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected settings nested as in params.yaml, got {content!r}")
    return content
