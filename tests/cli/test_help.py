"""What the command says about itself: help, docs/cli.md, completion."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from rl4rec.cli import app
from tests.terminal import COLOUR, run_in_terminal

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
CODE = "from rl4rec.cli import main; main()"
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def rl4rec(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = os.environ | {"COLUMNS": "80"} | environment
    line = [sys.executable, "-c", CODE, *arguments]
    return subprocess.run(line, cwd=cwd, env=settings, capture_output=True, text=True, check=False)


def section(title: str, level: int) -> str:
    """The text below a heading of docs/cli.md, up to the next one of its level or above."""
    found = re.search(rf"^{'#' * level} {re.escape(title)}\n(.*?)(?=^#{{1,{level}}} |\Z)", PAGE, re.M | re.S)
    assert found is not None, title
    return found[1]


def first_cells(text: str) -> list[str]:
    """What stands in backticks in the first column of the tables."""
    rows = re.findall(r"^\|([^|]+)\|.*\|$", text, re.M)
    return [name for cell in rows for name in re.findall(r"`([^`]+)`", cell)]


def test_the_page_has_the_commands_in_the_order_of_the_help() -> None:
    assert re.findall(r"^### `rl4rec ([a-z-]+)`$", PAGE, re.M) == list(COMMANDS)
    panels = list(dict.fromkeys(command.rich_help_panel for command in COMMANDS.values()))
    assert [title for title in re.findall(r"^## (.*)$", PAGE, re.M) if title in panels] == panels


@pytest.mark.parametrize("name", list(COMMANDS))
def test_the_page_has_the_options_and_the_example_of_a_command(name: str) -> None:
    text, command = section(f"`rl4rec {name}`", 3), COMMANDS[name]
    expected = []
    for param in command.params:
        if param.name != "help":
            expected += [param.name.upper()] if param.param_type_name == "argument" else param.opts
    assert first_cells(text) == expected
    assert command.epilog.split("`")[1] in text
    assert text.strip().startswith(command.help.split("\n")[0])  # the line of `rl4rec --help`


def test_the_page_has_the_options_of_all_commands() -> None:
    options = [option for param in typer.main.get_command(app).params for option in param.opts]
    assert first_cells(section("Options before the command", 2)) == [*options, "--help"]


def test_the_page_has_the_options_of_the_scripts() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from rl4rec._stage import run_stage; run_stage(lambda params: None)", "--help"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    listed = first_cells(section("Pipeline scripts", 2))
    assert set(listed) - {"params.yaml"} == set(re.findall(r"(?<![\w-])--?[a-z]+", done.stdout)) - {
        "--help",
        "-h",
        "-c",
    }


def test_the_page_has_every_variable_that_the_code_reads_or_sets() -> None:
    read = r"environ(?:\.get|\.setdefault)?[(\[]\s*[\"']([A-Z0-9_]+)[\"']"
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "rl4rec").rglob("*.py"))
    used = {*re.findall(read, code), *re.findall(r"^LOG_VARIABLE = \"(\w+)\"", code, re.M)}
    assert {"RL4REC_LOG", "RL4REC_DATA_HOME", "MLFLOW_TRACKING_URI", "TERM"} <= used
    assert used <= set(first_cells(section("Environment variables", 2)))


def test_the_help_is_grouped_and_fits_80_columns() -> None:
    shown = rl4rec("--help").stdout
    assert max(map(len, shown.splitlines())) <= 80
    for command in COMMANDS.values():
        line = re.search(rf"^│ {command.name} +(.*?) *│$", shown, re.M)
        assert line is not None and line[1].endswith("."), command.name  # one whole line each
    assert "docs/cli.md" in shown and "3 refused" in shown
    assert rl4rec().stdout.strip() == shown.strip()  # without arguments too


@pytest.mark.parametrize("name", list(COMMANDS))
def test_a_commands_help_says_what_it_needs_and_writes(name: str) -> None:
    text = COMMANDS[name].help
    assert "Needs " in text and re.search(r"Writes |Sends ", text)
    assert COMMANDS[name].epilog.startswith(f"Example: `rl4rec {name}")
    assert ("3 " in COMMANDS[name].epilog.partition("Exit status")[2]) == (name in ("promote", "monitor"))


def test_the_version() -> None:
    from rl4rec import __version__

    assert rl4rec("--version").stdout == f"rl4rec {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("promoet",), "Did you mean 'promote'?"),
        (("--verson",), "Did you mean --verbose or --version?"),
        (("promote", "--polcy", "ppo"), "Did you mean --policy?"),
        (("promote", "-q"), "It comes before the command: rl4rec -q promote"),
    ],
)
def test_what_was_meant(arguments: tuple[str, ...], hint: str) -> None:
    done = rl4rec(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert hint in done.stderr


def test_colours_of_the_help_and_of_errors(tmp_path: Path) -> None:
    plain = run_in_terminal(CODE, "promoet", cwd=tmp_path, environment={"NO_COLOR": "1"})
    assert "promote" in plain.err and not re.search(r"\x1b\[[0-9;]*3[0-7]", plain.err)
    assert COLOUR.search(run_in_terminal(CODE, "promoet", cwd=tmp_path).err)
    assert COLOUR.search(rl4rec("--help", FORCE_COLOR="1").stdout)
    assert not COLOUR.search(rl4rec("--help").stdout)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script(shell: str) -> None:
    done = rl4rec(_RL4REC_COMPLETE=f"source_{shell}")
    assert done.returncode == 0 and "_RL4REC_COMPLETE" in done.stdout and f"complete_{shell}" in done.stdout
    shown = rl4rec("--show-completion", shell, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert shown.stdout.strip() == done.stdout.strip()


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("pro", ["promote"]),
        ("promote --pol", ["--policy"]),
        ("promote --policy sft", ["sft", "sft_continued"]),
        ("serve --model mod", ["models:/rl4rec@champion", "models/grpo"]),
    ],
)
def test_what_is_completed(tmp_path: Path, words: str, completed: list[str]) -> None:
    (tmp_path / "models" / "grpo").mkdir(parents=True)
    (tmp_path / "models" / "grpo" / "config.json").write_text("{}")
    line = f"rl4rec {words}"
    done = rl4rec(
        cwd=tmp_path,
        _RL4REC_COMPLETE="complete_bash",
        COMP_WORDS=line,
        COMP_CWORD=str(len(line.split()) - 1),
    )
    assert done.stdout.split() == completed
