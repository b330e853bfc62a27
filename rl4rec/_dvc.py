"""Does `dvc.yaml` say what the pipeline scripts do? See `rl4rec check-dvc`, part of `make check`.

DVC reruns a stage when a listed parameter or file changes. What a stage uses but does not list gives stale results;
what it lists but does not use retrains for nothing. Both are found here without importing anything:

- settings: the attributes that a script reads from `params` (`params.rl.k`, `params.sft`), against its `params:`
- code: the modules of rl4rec, and those beside the script, that it imports, directly or not, against its `deps:`; of
  `rl4rec.api` what the functions use that the script calls
"""

from __future__ import annotations

import ast
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel

from rl4rec._io import read_yaml
from rl4rec.errors import UserError
from rl4rec.params import ALGORITHMS, Params

# No stage's outputs depend on these: messages, logging, progress, tracking and the registry, reading with checks, and
# the schema of the settings, whose values are DVC parameters (every one is in params.yaml, which is checked too).
WITHOUT_INFLUENCE = (
    *(f"rl4rec/{name}.py" for name in ("__init__", "errors", "params", "settings", "serve/mlflow_model")),
    *(
        f"rl4rec/{name}.py"
        for name in ("_io", "_console", "_process", "_launch", "_experiment", "_stage", "_script", "_threads")
    ),
    "rl4rec/ops/",
)
# Labels, colours and pairs: to a report an input, to all others names of arguments and of stages in messages.
_TABLE, _REPORT = "rl4rec/algorithms.py", "rl4rec/report/"
_API = "rl4rec.api"  # imports all stages: only what a script calls counts
_API_FILE = "rl4rec/api.py"
_TRACKED_RUNS = ("stage_run", "training_run")  # may be handed all of `params`: what they log is no output
_UNTRACKED = ("tracking",)  # sections that change no output
# What an algorithm reads of the algorithms' sections when it is handed all of `rl`: its own, the control GRPO's too.
_OWN = {name: {name} for name in ALGORITHMS} | {"sft_continued": {"sft_continued", "grpo"}}


def check_dvc(root: Path) -> list[str]:
    """Problems of `root`'s dvc.yaml against its scripts and params.yaml; empty when all is well.

    Raises:
        UserError: dvc.yaml or params.yaml cannot be read.
    """
    settings = _read_yaml(root / "params.yaml")
    problems = [f"params.yaml: '{key}' is missing: every setting is listed" for key in _missing(Params, settings)]
    stages = list(dvc_stages(root))
    made = {
        out_name(out) for _, stage in stages for kind in ("outs", "metrics", "plots") for out in stage.get(kind, [])
    }
    for name, stage in stages:
        script = root / str(stage["cmd"]).split()[1]
        variant = name.partition("@")[2]
        deps = [str(dep) for dep in stage.get("deps", [])]
        for dep in deps:
            of_a_stage = any(Path(dep).is_relative_to(out) or Path(out).is_relative_to(dep) for out in made)
            if not of_a_stage and not (root / dep).exists():
                problems.append(
                    f"dvc.yaml: {name}: the dependency '{dep}' is neither a file nor another stage's output"
                )
        if not stage.get("always_changed"):
            problems += _compare_code(root, name, script, deps)
        problems += _compare_params(name, script, variant, stage.get("params", []), settings)
    return problems


# --- code ------------------------------------------------------------------------------------------


def imported_modules(root: Path, script: Path) -> set[str]:
    """Files of `rl4rec` and of the script's folder that it imports, directly or not, but for those without influence.

    Paths are relative to `root`.
    """
    found: set[str] = set()
    waiting = [script]
    while waiting:
        path = waiting.pop()
        if path == root / _API_FILE:
            continue  # what is used of it has been added with the script
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        modules = set(_imports(tree))
        if _API in modules:
            modules = modules - {_API} | _used_of_api(root, tree)
        for module in modules:
            for file in _module_files(root, script.parent, module):
                relative = file.relative_to(root).as_posix()
                if relative not in found and not relative.startswith(WITHOUT_INFLUENCE):
                    found.add(relative)
                    waiting.append(file)
    return found


def _used_of_api(root: Path, script: ast.Module) -> set[str]:
    """Modules behind what a script takes from `rl4rec.api`; the api itself if a part of that is written there."""
    taken = {
        node.attr
        for node in ast.walk(script)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "api"
    }
    path = root / _API_FILE
    written: dict[str, ast.AST] = {}
    imported: dict[str, str] = {}
    for node in ast.parse(path.read_text(encoding="utf-8"), str(path)).body:
        match node:
            case ast.ImportFrom(module=str(module), names=names):
                imported |= {alias.asname or alias.name: module for alias in names}
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                written[name] = node
            case ast.Assign(targets=[ast.Name(id=name)]):
                written[name] = node
    used: set[str] = set()
    while taken:
        name = taken.pop()
        used.add(name)
        if name in written:
            inside = list(ast.walk(written[name]))
            parameters = {node.arg for node in inside if isinstance(node, ast.arg)}  # may have a function's name
            taken |= {node.id for node in inside if isinstance(node, ast.Name)} - parameters - used
    return {imported[name] for name in used if name in imported} | ({_API} if used & written.keys() else set())


def _imports(tree: ast.AST) -> Iterator[str]:
    """Names that a module imports, also inside functions; `if TYPE_CHECKING` imports nothing."""
    for node in ast.iter_child_nodes(tree):
        match node:
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                continue
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=str(module), names=names):
                yield module
                yield from (f"{module}.{alias.name}" for alias in names)
            case _:
                yield from _imports(node)


def _module_files(root: Path, beside: Path, module: str) -> Iterator[Path]:
    """The file of a module with the `__init__` of every package above it; nothing for other packages or for names.

    Modules are rl4rec's, below `root`, and those of the folder `beside`, where Python looks first for a script's.
    """
    parts = module.split(".")
    for depth in range(1, len(parts) + 1):
        base = (root if parts[0] == "rl4rec" else beside).joinpath(*parts[:depth])
        for file in (base / "__init__.py", base.with_suffix(".py")):
            if file.is_file():
                yield file


def _compare_code(root: Path, name: str, script: Path, deps: list[str]) -> Iterator[str]:
    if not script.is_file():
        yield f"dvc.yaml: {name}: the script '{script.relative_to(root)}' does not exist"
        return
    needed = {script.relative_to(root).as_posix(), *imported_modules(root, script)}
    needed = {file for file in needed if _has_code(root / file)}
    if not any(file.startswith(_REPORT) for file in needed):
        needed.discard(_TABLE)
    listed = {dep for dep in deps if dep.startswith(("rl4rec/", "pipelines/"))}
    for file in sorted(needed):
        if not any(Path(file).is_relative_to(dep) for dep in listed):
            yield f"dvc.yaml: {name}: add '{file}' or its package to deps: {script.name} uses it"
    for dep in sorted(listed):
        if not any(Path(file).is_relative_to(dep) for file in needed):
            yield f"dvc.yaml: {name}: '{dep}' in deps is not used by {script.name}"


def _has_code(file: Path) -> bool:
    """False for an `__init__` that is empty or only a docstring."""
    body = ast.parse(file.read_text(encoding="utf-8"), str(file)).body
    return any(not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)) for node in body)


# --- settings --------------------------------------------------------------------------------------


def params_read(script: Path) -> set[str]:
    """Dotted names of what a script reads from `params`, e.g. `{"rl", "policy.mask_seen"}`.

    Raises:
        UserError: the script hands all of `params` to something other than the tracked run.
    """
    tree = ast.parse(script.read_text(encoding="utf-8"), str(script))
    inner = {node.value for node in ast.walk(tree) if isinstance(node, ast.Attribute)}  # `params.rl` of `params.rl.k`
    read: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node not in inner:
            chain = _chain(node)
            if chain and chain[0] == "params" and len(chain) > 1:
                read.add(".".join(_fields(chain[1:])))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") not in _TRACKED_RUNS:
            given = [*node.args, *(keyword.value for keyword in node.keywords)]
            if any(isinstance(value, ast.Name) and value.id == "params" for value in given):
                raise UserError(
                    f"{script}:{node.lineno}: hand over a section, not all of `params`: DVC tracks sections"
                )
    return read - {""}


def _chain(node: ast.expr) -> list[str]:
    if isinstance(node, ast.Attribute):
        return [*rest, node.attr] if (rest := _chain(node.value)) else []
    return [node.id] if isinstance(node, ast.Name) else []


def _fields(chain: list[str]) -> Iterator[str]:
    """The leading part of an attribute chain that names settings (not methods or properties)."""
    model: type[BaseModel] | None = Params
    for name in chain:
        if model is None or name not in model.model_fields:
            return
        yield name
        model = _section(model.model_fields[name].annotation)


def _compare_params(
    name: str, script: Path, variant: str, listed: list[Any], settings: dict[str, Any]
) -> Iterator[str]:
    if not script.is_file():
        return
    read = {key for key in params_read(script) if key.split(".")[0] not in _UNTRACKED}
    own = _OWN.get(variant or name)
    foreign = () if own is None else tuple(f"rl.{other}." for other in ALGORITHMS if other not in own)
    needed = {leaf for key in read for leaf in leaves(key, settings) if not leaf.startswith(foreign)}
    covered: set[str] = set()
    for key in listed:
        found = set(leaves(str(key), settings))
        if not found:
            yield f"dvc.yaml: {name}: '{key}' in params is not in params.yaml"
        covered |= found
    for leaf in sorted(needed - covered):
        yield f"dvc.yaml: {name}: add '{leaf}' (or its section) to params: {script.name} reads it"
    for leaf in sorted(covered - needed):
        yield f"dvc.yaml: {name}: '{leaf}' is covered by params but not read by {script.name}"


def leaves(key: str, settings: dict[str, Any]) -> Iterator[str]:
    """Names of the single settings below a key."""
    value: Any = settings
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            return
        value = value[part]
    if not isinstance(value, dict):
        yield key
        return
    for part in value:
        yield from leaves(f"{key}.{part}", settings)


def _missing(model: type[BaseModel], values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        section = _section(field.annotation)
        if name not in values:
            yield prefix + name
        elif section and isinstance(values[name], dict):
            yield from _missing(section, values[name], f"{prefix}{name}.")


def _section(annotation: Any) -> type[BaseModel] | None:
    choices = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    return next((c for c in choices if isinstance(c, type) and issubclass(c, BaseModel)), None)


# --- dvc.yaml --------------------------------------------------------------------------------------


def dvc_stages(root: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every stage with its name; those with `foreach` or `matrix` once for each item, `${item...}` filled in."""
    for name, stage in _read_yaml(root / "dvc.yaml").get("stages", {}).items():
        if "foreach" in stage:
            items = stage["foreach"]
            pairs = items.items() if isinstance(items, dict) else ((item, item) for item in items)
            for key, item in pairs:
                yield f"{name}@{key}", _fill(stage["do"], key, item)
        else:
            yield name, stage


def _fill(value: Any, key: str, item: Any) -> Any:
    match value:
        case dict():
            return {_fill(k, key, item): _fill(v, key, item) for k, v in value.items()}
        case list():
            return [_fill(v, key, item) for v in value]
        case str():
            value = value.replace("${key}", str(key)).replace("${item}", str(item))
            for field, text in item.items() if isinstance(item, dict) else ():
                value = value.replace("${item." + field + "}", str(text))
            return value
    return value


def out_name(out: Any) -> str:
    """The path of an entry of `outs`, which may have options."""
    return str(next(iter(out))) if isinstance(out, dict) else str(out)


def _read_yaml(path: Path) -> dict[str, Any]:
    content = read_yaml(path)
    return content if isinstance(content, dict) else {}
