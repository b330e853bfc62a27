"""The stage runner through real scripts: arguments, messages, exit statuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
from rl4rec.errors import UserError
from rl4rec._stage import {runner}

def main({arguments}):
    {body}

if __name__ == "__main__":
    {call}
"""


def run(folder: Path, body: str, *arguments: str, variants: bool = False) -> subprocess.CompletedProcess[str]:
    script = folder / "script.py"
    script.write_text(
        SCRIPT.format(
            runner="run_variant_stage" if variants else "run_stage",
            arguments="params, variant" if variants else "params",
            body=body,
            call="run_variant_stage(main, ('ppo', 'grpo'))" if variants else "run_stage(main)",
        )
    )
    command = [sys.executable, str(script), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "params.yaml").write_text("sft: {seed: 5}\n")
    (tmp_path / "other.yaml").write_text("sft: {seed: 6}\n")
    return tmp_path


def test_reads_params_yaml_or_the_file_named(folder: Path) -> None:
    assert run(folder, "print(params.sft.seed)").stdout == "5\n"
    assert run(folder, "print(params.sft.seed)", "--params", "other.yaml").stdout == "6\n"


def test_hands_over_the_variant(folder: Path) -> None:
    assert run(folder, "print(variant)", "grpo", variants=True).stdout == "grpo\n"


@pytest.mark.parametrize("arguments", [["dpo"], []])
def test_an_unknown_or_missing_variant(folder: Path, arguments: list[str]) -> None:
    result = run(folder, "print(variant)", *arguments, variants=True)
    assert result.returncode == 2
    assert "variant" in result.stderr
    assert result.stdout == ""


def test_an_unknown_argument(folder: Path) -> None:
    assert run(folder, "print(1)", "--parms", "other.yaml").returncode == 2


def test_a_mistake_of_the_user_is_a_message(folder: Path) -> None:
    result = run(folder, "raise UserError('data.csv:3: not a number')")
    assert result.returncode == 2
    assert result.stderr == "error: data.csv:3: not a number\n"


def test_invalid_params_are_a_message(folder: Path) -> None:
    (folder / "params.yaml").write_text("sft: {sede: 1}\n")
    result = run(folder, "print(1)")
    assert (result.returncode, result.stdout) == (2, "")
    assert "did you mean 'seed'?" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_bug_keeps_its_traceback(folder: Path) -> None:
    result = run(folder, "1 / 0")
    assert result.returncode == 1
    assert "ZeroDivisionError" in result.stderr


def test_an_interruption_exits_with_130(folder: Path) -> None:
    result = run(folder, "raise KeyboardInterrupt")
    assert (result.returncode, result.stderr) == (130, "interrupted\n")
