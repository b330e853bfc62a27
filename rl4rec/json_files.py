"""Reading JSON that may be damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rl4rec.errors import UserError, shown


def parse_json(text: str) -> Any:
    """A JSON document.

    Raises:
        ValueError: it is not one, or nested too deeply to be read.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json(path: Path, *, then: str) -> dict[str, Any]:
    """The JSON object of a file.

    Args:
        path: UTF-8 text (a byte order mark is dropped).
        then: what to do where it is damaged, for the message.

    Raises:
        UserError: the file is missing, unreadable, not JSON or not an object.
    """
    try:
        content = parse_json(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file. {then}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}). {then}") from None
    except ValueError as error:  # UnicodeDecodeError too
        raise UserError(f"{path}: not JSON ({str(error)[:200]}). {then}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object, got {shown(content)}. {then}")
    return content
