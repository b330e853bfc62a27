"""What the raw data is, in a small file: DVC reruns `prepare` when it changes.

Raw files may lie outside of the project, where DVC does not look. So a stage that always runs writes their names,
sizes and digests, without the folder they lie in: equal data, equal fingerprint, on any machine.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

from rl4rec._io import parse_json
from rl4rec.data.raw import raw_files
from rl4rec.errors import UserError
from rl4rec.params import DataParams

CACHE = Path("data/.digests.json")

_log = logging.getLogger(__name__)


def write_fingerprint(params: DataParams, out: Path) -> None:
    """Write the fingerprint of the source's files to `out`.

    Amazon Beauty is downloaded where there is neither a local copy nor an earlier fingerprint to keep.

    Raises:
        UserError: the files are not there and cannot be fetched.
    """
    files = raw_files(params, fetch=False)
    if params.source == "amazon-beauty" and not files:
        if _recorded_source(out) == params.source:
            _log.info("no raw data here: %s stays as recorded", out)
            return
        files = raw_files(params, fetch=True)
    content = {"source": params.source, "files": describe_files(files)}
    out.parent.mkdir(parents=True, exist_ok=True)
    _write_json(out, content)


def describe_files(files: list[Path]) -> list[dict[str, Any]]:
    """Name, size in bytes and SHA-256 of each file; digests are remembered by path, size and time of change.

    A name is relative to the folder that all of them share.

    Raises:
        UserError: a file cannot be read.
    """
    known = _read_json(CACHE)
    described = []
    shared = os.path.commonpath([path.parent for path in files]) if files else ""
    for path in files:
        try:
            status = path.stat()
            key, seen = str(path.resolve()), [status.st_size, status.st_mtime_ns]
            remembered = known.get(key)
            if not isinstance(remembered, dict) or remembered.get("seen") != seen or "sha256" not in remembered:
                with path.open("rb") as file:
                    known[key] = {"seen": seen, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
        except OSError as error:
            raise UserError(
                f"{path}: cannot be read ({error.strerror or error}). See that the file is there and may be read."
            ) from None
        described.append(
            {"name": path.relative_to(shared).as_posix(), "bytes": status.st_size, "sha256": known[key]["sha256"]}
        )
    if files and CACHE.parent.is_dir():
        _write_json(CACHE, known)
    return described


def _recorded_source(out: Path) -> object:
    return _read_json(out).get("source")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write_json(path: Path, content: object) -> None:
    fresh = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        fresh.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)
