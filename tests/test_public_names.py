"""The public interface: its names and signatures, lazy, typed, documented."""

from __future__ import annotations

import ast
import inspect
import json
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest
from pydantic import BaseModel

import rl4rec

ROOT = Path(__file__).parents[1]
SNAPSHOT = Path(__file__).with_name("api.txt")

USER = """
from pathlib import Path

import rl4rec
from rl4rec import GainsFunction, Params, PreparedData, Trained, load_params, prepare, slate_gains
from torch import Tensor


def gains(slates: Tensor, targets: Tensor, data: PreparedData) -> Tensor:
    return slate_gains(slates, targets, reward_type="mrr")


own: GainsFunction = gains
params: Params = load_params("params.yaml")
data: PreparedData = prepare(params.data, Path("prepared"))
warm: Trained = rl4rec.sft(data, params.policy, params.sft)
tuned: Trained = rl4rec.grpo(warm, data, params.rl, crossfit=None, own_reward=own)
metrics = rl4rec.evaluate("grpo", tuned.policy, data, params.evaluate).metrics
top: list[str] = rl4rec.load_recommender(Path("m"), Path("i")).recommend([["a"]], k=3)[0].items
reveal_type(rl4rec.paired_bootstrap)
rl4rec.grop  # error: a typo is found
rl4rec.ppo(warm, data, params.sft)  # error: another section
"""


def described(name: str) -> list[str]:
    """A public name with its signature, and those of a class's own public methods and fields."""
    found = getattr(rl4rec, name)
    if not inspect.isclass(found):
        return [f"{name}{inspect.signature(found)}" if inspect.isfunction(found) else f"{name} = {kind(found)}"]
    own = {key: value for key, value in vars(found).items() if not key.startswith("_")}
    if issubclass(found, BaseModel):
        return [f"class {name}({', '.join(found.model_fields)})"]
    lines = [f"class {name}" if issubclass(found, Exception) else f"class {name}{inspect.signature(found)}"]
    for key, value in sorted(own.items()):
        if isinstance(value, property):
            lines.append(f"    {name}.{key} -> {value.fget.__annotations__.get('return')}")
        elif isinstance(value, classmethod) or inspect.isfunction(value):
            lines.append(f"    {name}.{key}{inspect.signature(getattr(value, '__wrapped__', value))}")
    return lines


def kind(value: object) -> str:
    return "Callable" if typing.get_origin(value) is not None else type(value).__name__


def test_names_and_signatures_are_those_of_the_snapshot() -> None:
    """Users notice a change here: it belongs into CHANGELOG.md. `python -m tests.test_public_names` writes it."""
    assert SNAPSHOT.read_text(encoding="utf-8").splitlines() == snapshot()


def snapshot() -> list[str]:
    """Annotations of a NamedTuple are references, those of other classes text: both without their quotes."""
    lines = [line for name in rl4rec.__all__ for line in described(name)]
    return [re.sub(r"ForwardRef\('([^']*)'\)|(?<=[:>] )'([^']*)'", r"\1\2", line) for line in lines]


def test_every_name_is_listed_once_in_every_place() -> None:
    tree = ast.parse((ROOT / "rl4rec/__init__.py").read_text(encoding="utf-8"))
    typed = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("rl4rec.")
        for alias in node.names
    }
    assert typed == rl4rec._HOME
    assert rl4rec.__all__ == sorted({*typed, "__version__"})
    assert set(rl4rec.__all__) <= set(dir(rl4rec))
    modules = {path.stem for path in (ROOT / "rl4rec").iterdir()}
    assert not modules & set(rl4rec.__all__), "a name that a module has is taken by the module when it is imported"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'rl4rec' has no attribute 'nothing'"):
        _ = rl4rec.nothing
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        exec("from rl4rec import nothing")


def test_import_takes_none_of_the_large_libraries() -> None:
    code = (
        "import json, sys, rl4rec; first = sorted(sys.modules); rl4rec.load_params; "
        "print(json.dumps([first, sorted(sys.modules)]))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    imported, with_params = json.loads(result.stdout)
    large = {"torch", "transformers", "mlflow", "polars", "numpy", "trl", "pandas", "matplotlib"}
    assert not large & set(imported)
    assert not [name for name in imported if name.startswith("rl4rec.")]
    assert "rl4rec.params" in with_params and not large & set(with_params)


@pytest.mark.slow
def test_a_users_file_passes_a_strict_type_check(tmp_path: Path) -> None:
    file = tmp_path / "user.py"
    file.write_text(USER)
    settings = tmp_path / "mypy.ini"
    # Large libraries are left out, for time: what is theirs is Any.
    large = ",".join(
        f"{name}.*" for name in ("torch", "transformers", "trl", "tokenizers", "polars", "numpy", "mlflow")
    )
    settings.write_text(f"[mypy]\nstrict = true\nfollow_imports = silent\n[mypy-{large}]\nfollow_imports = skip\n")
    command = [sys.executable, "-m", "mypy", "--config-file", settings, "--cache-dir", tmp_path / "cache", file]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    lines = [re.sub(r"^.*user\.py:", "", line) for line in result.stdout.splitlines() if "user.py:" in line]
    number = {text.split("  #")[0]: row for row, text in enumerate(USER.splitlines(), 1)}
    errors = [line for line in lines if " error: " in line]
    assert len(errors) == 2, result.stdout + result.stderr
    assert errors[0].startswith(f'{number["rl4rec.grop"]}: error: Module has no attribute "grop"')
    assert errors[1].startswith(f'{number["rl4rec.ppo(warm, data, params.sft)"]}: error: Argument 3 to "ppo"')
    (revealed,) = [line for line in lines if "Revealed type" in line]
    assert "Interval" in revealed


def test_everything_public_has_a_docstring() -> None:
    bare = [
        name
        for name in rl4rec.__all__
        if name not in ("__version__", "GainsFunction") and not inspect.getdoc(getattr(rl4rec, name))
    ]
    assert bare == []


def test_the_reference_has_exactly_the_public_names() -> None:
    page = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^::: rl4rec\.(\w+)$", page, re.MULTILINE)) == sorted({*rl4rec.__all__} - {"__version__"})


if __name__ == "__main__":
    SNAPSHOT.write_text("\n".join(snapshot()) + "\n", encoding="utf-8")
