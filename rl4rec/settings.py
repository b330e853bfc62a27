"""Reading and checking files of settings: what is wrong is named with its key, value and choices."""

from __future__ import annotations

import difflib
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from rl4rec._io import read_yaml
from rl4rec.errors import UserError, shown
from rl4rec.params import Params, Section

S = TypeVar("S", bound=Section)


def load_params(path: Path | str = "params.yaml") -> Params:
    """Read and validate a params file.

    Raises:
        UserError: the file is missing, is not YAML, or a setting is unknown, of the wrong type or out of range;
            the message names the file, the key's path, the value and what is allowed.
    """
    return load_settings(Path(path), Params)


def load_settings(path: Path, model: type[S]) -> S:
    """Read and validate a file of settings, as `load_params` does, for another model."""
    return validate_settings(read_yaml(path), str(path), model)


def validate_settings(settings: object, name: str, model: type[S]) -> S:
    """Validate settings as they were read (None: all defaults).

    Args:
        settings: nested as in the file.
        name: of where they come from, for the message.
        model: what they are to be.

    Raises:
        UserError: as `load_params`.
    """
    if settings is None:
        settings = {}
    if not isinstance(settings, dict):
        raise UserError(
            f"{name}: expected sections ({', '.join(model.model_fields)}), got {shown(settings)}. Write settings as "
            "`section: {key: value}`; what is left out has its default"
        )
    try:
        return model.model_validate(settings)
    except ValidationError as error:
        raise UserError(explain(name, error, model)) from None


_MOST_LINES = 20


def explain(name: str, error: ValidationError, model: type[BaseModel] = Params) -> str:
    """What is wrong with the settings of `name`, a line for each key."""
    lines = [_line(item, model) for item in error.errors(include_url=False)]
    more = [] if len(lines) <= _MOST_LINES else [f"  and {len(lines) - _MOST_LINES} more"]
    title = f"{name}: {len(lines)} invalid setting{'s' if len(lines) > 1 else ''}"
    return "\n".join([title, *lines[:_MOST_LINES], *more])


def _line(item: Any, model: type[BaseModel]) -> str:
    """What is wrong with one setting."""
    if item["type"] == "extra_forbidden":
        *above, last = item["loc"]
        known = _fields_at(model, above)
        near = difflib.get_close_matches(str(last)[:100], known, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'? " if near else ""
        return f"  {_key(item['loc'])}: unknown key; {hint}Known here: {', '.join(known)}"
    # A tag of pydantic's own, such as the name of a validator, is no part of the key.
    location = [part for part in item["loc"] if not (isinstance(part, str) and "[" in part)]
    message = item["msg"].removeprefix("Value error, ")
    value = item["input"]
    got = "" if isinstance(value, dict | BaseModel) else f" (got {shown(value)})"
    near = difflib.get_close_matches(shown(value), _choices(item), n=1) if got else []
    hint = f"; did you mean '{near[0]}'?" if near else ""
    return f"  {_key(location) or '(whole file)'}: {message}{got}{hint}"


def _key(location: Sequence[object]) -> str:
    return ".".join(text if len(text) <= 80 else f"{text[:77]}..." for text in map(str, location))


def _choices(item: Any) -> list[str]:
    expected = str(item.get("ctx", {}).get("expected", "")) if item["type"] == "literal_error" else ""
    return expected.replace(" or ", ", ").replace("'", "").split(", ")


def _fields_at(model: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """Names of the keys that the section at `location` knows."""
    annotation: Any = model
    for part in location:
        if get_origin(annotation) is dict:
            annotation = get_args(annotation)[1]
        else:
            annotation = annotation.model_fields[str(part)].annotation
        if get_origin(annotation) in (Union, types.UnionType):
            annotation = next(a for a in get_args(annotation) if isinstance(a, type) and issubclass(a, BaseModel))
    return list(annotation.model_fields)
