"""The table of docs/cli.md: exit statuses of commands and scripts, interruptions, readers that go away."""

from __future__ import annotations

import ast
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.terminal import run_in_terminal

ROOT = Path(__file__).parents[2]
COMMAND = "from rl4rec.cli import main; main()"
STAGE = "from rl4rec._stage import run_stage; run_stage(lambda params: print(params.sft.seed))"
# A command and a stage whose work is what stands in {work}.
BROKEN_COMMAND = (
    "import rl4rec.cli.project as project\ndef work(path):\n    {work}\nproject.load_params = work\n" + COMMAND
)
BROKEN_STAGE = "from rl4rec._stage import run_stage\ndef work(params):\n    {work}\nrun_stage(work)"
WAIT = 'print("ready", flush=True); __import__("time").sleep(60)'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "params.yaml").write_text("sft: {seed: 5}\n")
    return tmp_path


def run(code: str, *arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-c", code, *arguments]
    return subprocess.run(line, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, check=False)


def test_the_page_and_the_help_have_the_same_statuses() -> None:
    from rl4rec.cli.app import EXIT_STATUSES

    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    documented = re.findall(r"^\| (\d+) \|", page.partition("## Exit statuses")[2], re.M)
    assert documented == re.findall(r"\d+", EXIT_STATUSES) == ["0", "1", "2", "3", "130"]


@pytest.mark.parametrize(
    ("code", "arguments", "environment", "status", "said"),
    [
        (COMMAND, ("check-params",), {}, 0, ""),
        (COMMAND, ("--quiet", "check-params"), {}, 0, ""),
        (COMMAND, ("check-params", "none.yaml"), {}, 2, "none.yaml: no such file"),
        (COMMAND, ("-q", "-v", "check-params"), {}, 2, "--quiet and --verbose exclude each other"),
        (COMMAND, ("check-params",), {"RL4REC_LOG": "loud"}, 2, "RL4REC_LOG: expected one of quiet, normal, verbose"),
        (COMMAND, ("rollback", "now"), {}, 2, "unexpected extra argument"),
        (BROKEN_COMMAND.format(work="1 / 0"), ("check-params",), {}, 1, "Traceback"),
        (BROKEN_COMMAND.format(work="raise MemoryError"), ("check-params",), {}, 2, "rl4rec: out of memory"),
        (STAGE, (), {}, 0, ""),
        (STAGE, ("-q", "-v"), {}, 2, "--quiet and --verbose exclude each other"),
        (STAGE, (), {"RL4REC_LOG": "loud"}, 2, "got 'loud'. Set one of them, or unset it"),
        (STAGE, ("--params", "none.yaml"), {}, 2, "none.yaml: no such file"),
        (STAGE, ("--parms", "none.yaml"), {}, 2, "unrecognized arguments"),
        (BROKEN_STAGE.format(work="1 / 0"), (), {}, 1, "Traceback"),
    ],
)
def test_statuses(
    folder: Path, code: str, arguments: tuple[str, ...], environment: dict[str, str], status: int, said: str
) -> None:
    done = run(code, *arguments, cwd=folder, **environment)
    assert done.returncode == status
    assert said in " ".join(done.stderr.replace("│", "").split()) if said else done.stderr == ""
    assert ("Traceback" in done.stderr) == (status == 1)
    assert (done.stdout != "") == (status == 0)


@pytest.mark.parametrize("code", [BROKEN_COMMAND.format(work=WAIT), BROKEN_STAGE.format(work=WAIT)])
def test_an_interruption(folder: Path, code: str) -> None:
    line = [sys.executable, "-c", code, *(["check-params"] if "project" in code else [])]
    with subprocess.Popen(line, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (130, "interrupted\n")


@pytest.mark.parametrize("work", ["print('x' * 100_000)", "raise SystemExit(3)"])
def test_a_reader_that_goes_away(folder: Path, work: str) -> None:
    """The status is that of the work, though nobody reads what it writes."""
    for code, arguments in ((BROKEN_STAGE, ()), (BROKEN_COMMAND, ("check-params",))):
        text = code.format(work=f"print('first', flush=True); {work}; raise SystemExit(0)")
        reading, writing = os.pipe()
        os.close(reading)
        done = subprocess.run(
            [sys.executable, "-c", text, *arguments],
            cwd=folder, stdout=writing, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
        os.close(writing)
        assert (done.returncode, done.stderr) == (3 if "3" in work else 0, "")


def test_the_settings_for_a_reader_of_one_line(folder: Path) -> None:
    line = f"set -o pipefail; {sys.executable} -c '{COMMAND}' check-params | head -1"
    done = subprocess.run(["bash", "-c", line], cwd=folder, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "data:\n", "")


def test_every_script_runs_through_the_stage_runner() -> None:
    scripts = sorted(set((ROOT / "pipelines").glob("*.py")) - {ROOT / "pipelines" / "reward.py"})  # no script
    assert len(scripts) == 9
    for script in scripts:
        last = ast.parse(script.read_text(encoding="utf-8")).body[-1]
        assert isinstance(last, ast.If) and ast.unparse(last.test) == "__name__ == '__main__'"
        assert re.fullmatch(r"run_(variant_)?stage\(main.*\)", ast.unparse(last.body[-1])), script


@pytest.mark.parametrize(
    ("verbosity", "lines"),
    [("quiet", ["W ours", "W theirs"]), ("normal", ["I ours", "W ours", "W theirs"]),
     ("verbose", ["D ours", "I ours", "W ours", "I theirs", "W theirs"])],
)  # fmt: skip
@pytest.mark.parametrize("by", ["flag", "variable"])
def test_how_much_is_told(folder: Path, verbosity: str, lines: list[str], by: str) -> None:
    work = (
        "import logging; ours, theirs = logging.getLogger('rl4rec.x'), logging.getLogger('library')\n"
        "    [getattr(log, level)(f'{level[0].upper()} {name}') for log, name in ((ours, 'ours'), (theirs, 'theirs'))"
        " for level in ('debug', 'info', 'warning')]; print('result')"
    )
    code = BROKEN_STAGE.replace("{work}", work)
    flags = (f"--{verbosity}",) if by == "flag" and verbosity != "normal" else ()
    done = run(code, *flags, cwd=folder, RL4REC_LOG=verbosity if by == "variable" else "")
    assert [line[-len("W theirs") :].split(": ")[-1].strip() for line in done.stderr.splitlines()] == lines
    assert done.stdout == "result\n"


def test_a_quiet_command_says_nothing_in_a_terminal(folder: Path) -> None:
    seen = run_in_terminal(COMMAND, "-q", "check-params", cwd=folder)
    assert (seen.status, seen.err) == (0, "") and seen.out.startswith("data:")
