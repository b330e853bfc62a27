"""A folder that runs the same pipeline with other settings, apart from the committed results (`make demo`).

It is a DVC project of its own: `dvc.yaml`, `pipelines` and `rl4rec` are links to the originals, `params.yaml` is the
committed one with some settings changed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from rl4rec._io import read_yaml
from rl4rec.errors import UserError, shown
from rl4rec.params import Params
from rl4rec.settings import validate_settings

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
    taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if taken and not (folder / ".dvc").is_dir():
        raise UserError(f"{folder}: exists and is not a workspace; choose another folder")
    changed = merge_settings(_read(root / "params.yaml"), _read(overrides))
    params = validate_settings(changed, f"{overrides} over params.yaml", Params)
    if params.data.path is not None:
        # meant from the project's root, not from the workspace
        changed["data"]["path"] = str((root / params.data.path).resolve())
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / ".params.yaml.new"
    try:
        text = f"# Made from params.yaml and {overrides.name}.\n" + yaml.safe_dump(changed, sort_keys=False)
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, folder / "params.yaml")
    finally:
        draft.unlink(missing_ok=True)
    (folder / ".dvc").mkdir(exist_ok=True)
    (folder / ".dvc" / "config").write_text(_DVC_CONFIG)
    (folder / ".dvcignore").write_text("__pycache__/\n.rl4rec/\nmlruns/\nmlflow.db*\n")
    (folder / ".gitignore").write_text("*\n")  # a folder of any name stays out of commits
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
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected settings nested as in params.yaml, got {shown(content)}")
    return content
