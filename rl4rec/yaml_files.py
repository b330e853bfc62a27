"""Reading YAML that people write: plain data only, every key once, nothing that grows when it is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from rl4rec.errors import UserError, shown

_MAX_BYTES = 1_000_000
_MAX_VALUES = 100_000  # with every alias counted as what it stands for: a few lines of aliases can mean billions


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice (plain YAML silently keeps the last) and aliases that multiply."""

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()
        if node is not None:
            _count(node, {}, ())
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[object] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue  # not a key: `<<` takes over the keys of another mapping
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {shown(key)} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _count(node: yaml.Node, known: dict[int, int], above: tuple[int, ...]) -> int:
    """How many values a node stands for."""
    if id(node) in above:
        raise yaml.constructor.ConstructorError(None, None, "an alias stands for itself", node.start_mark)
    if id(node) not in known:
        parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        inner = parts if isinstance(node, yaml.CollectionNode) else ()
        known[id(node)] = 1 + sum(_count(part, known, (*above, id(node))) for part in inner)
        if known[id(node)] > _MAX_VALUES:
            raise yaml.constructor.ConstructorError(
                None, None, f"stands for more than {_MAX_VALUES} values", node.start_mark
            )
    return known[id(node)]


def read_yaml(path: Path) -> Any:
    """The content of a YAML file; None where it is empty.

    Raises:
        UserError: the file is missing, unreadable, not UTF-8 or not plain YAML; the message names the line.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise UserError(f"{path}: more than {_MAX_BYTES} bytes: that is no file of settings. Name the right one.")
        return yaml.load(data.decode("utf-8-sig"), Loader=_StrictLoader)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file. Run from the project's root, or name the file.") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}: cannot be read: not UTF-8 text. Convert the file to UTF-8.") from None
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read: {error.strerror or error}. See that it is a file that may be read"
        ) from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {error}. Mend it there") from None
    except RecursionError:
        raise UserError(
            f"{path}: not valid YAML: nested too deeply. Write settings as `section: {{key: value}}`."
        ) from None
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        # What PyYAML raises for values that look like a date, a number or a key, but are none.
        raise UserError(
            f"{path}: not valid YAML: {str(error)[:200]}. Put text that looks like a date or number into quotes"
        ) from None
