"""`make figures` and its check: blocks follow the committed results, and what is out of step is named."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")  # as for a script
    spec = importlib.util.spec_from_file_location("readme", ROOT / "benchmarks" / "readme.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_committed_pages_are_in_step(made: ModuleType) -> None:
    assert list(made.out_of_step()) == []


def test_a_changed_figure_is_found_and_put_right(made: ModuleType) -> None:
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    wrong = re.sub(r"^\| GRPO \| 0\.\d{4}", "| GRPO | 0.9999", page, count=1, flags=re.M)
    assert wrong != page
    assert made.filled(wrong, "en") == page


def test_every_file_of_the_package_has_its_line() -> None:
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `((?:pipelines|rl4rec)/[\w/]+\.py)` \| \S", page, flags=re.M))
    there = {
        path.relative_to(ROOT).as_posix()
        for folder in ("pipelines", "rl4rec")
        for path in (ROOT / folder).rglob("*.py")
        if path.read_text(encoding="utf-8").strip()
    }
    assert listed == there


def test_a_cell_of_the_study_without_a_translation_is_refused(made: ModuleType) -> None:
    assert made._korean(" best step ") == " 최적 스텝 "
    assert made._korean(" GRPO - PPO -0.0004 [-0.0008, +0.0001] ") == " GRPO - PPO -0.0004 [-0.0008, +0.0001] "
    with pytest.raises(SystemExit, match=r"no Korean for 'a new claim': add it to STUDY in readme\.py"):
        made._korean(" a new claim ")
