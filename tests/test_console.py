"""Progress on a terminal, in a log, and where there is to be none."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rl4rec import _console as progress
from rl4rec._console import Progress, track
from tests.terminal import COLOUR, run_in_terminal

WORK = """
import logging, sys, time
from rl4rec import _console as progress
from rl4rec._console import choose_verbosity
from rl4rec._stage import reported, set_up_process
progress._DELAY_SECONDS = 0.05
set_up_process()
def work():
    for number in progress.track(range(20), "counting", unit="number"):
        held.update()
        for inner in progress.track(range(2), "inside", unit="thing"):
            time.sleep(0.2 if number == 7 else 0.01)
        if number == 9:
            logging.getLogger("rl4rec.test").info("half of it")
            {middle}
with reported("test"):
    held = progress.Progress("held", total=20, unit="number")  # as by an object that outlives an error
    work()
    held.close()
print("result")
"""


def code(middle: str = "pass") -> str:
    return WORK.format(middle=middle)


def screen(written: str) -> list[str]:
    """The lines that are left on a terminal after what was written."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[A|\x1b\[[0-9;?]*[a-zA-Z]|.|\n|\r", written, flags=re.S):
        if part == "\r":
            column = 0
        elif part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part == "\x1b[A":
            row -= 1
        elif not part.startswith("\x1b"):
            line = lines[row].ljust(column)
            lines[row] = line[:column] + part + line[column + 1 :]
            column += 1
    return [line.rstrip() for line in lines if line.strip()]


@pytest.mark.parametrize("columns", [100, 0])
def test_a_bar_with_rate_and_time_left_that_is_wiped_out(tmp_path: Path, columns: int) -> None:
    seen = run_in_terminal(code(), cwd=tmp_path, columns=columns)
    assert (seen.status, seen.out) == (0, "result\n")
    assert re.search(r"counting: +\d+%\|.*\| \d+/20 \[00:00<00:0\d, +[\d.]+ number/s\]", seen.err)
    assert re.search(r"inside: +\d+%\|", seen.err)
    left = screen(seen.err)
    assert len(left) == 1  # and nothing else
    assert re.fullmatch(r"[\d:]+ INFO    rl4rec\.test: half of it", left[0])


def test_no_colours_in_a_bar_with_no_color(tmp_path: Path) -> None:
    seen = run_in_terminal(code(), cwd=tmp_path, environment={"NO_COLOR": "1"})
    assert "counting:" in seen.err and not COLOUR.search(seen.err)


@pytest.mark.parametrize(
    "environment", [{"RL4REC_LOG": "quiet"}, {"RANK": "1", "WORLD_SIZE": "2"}, {"TERM": "dumb"}], ids=str
)
def test_no_bar(tmp_path: Path, environment: dict[str, str]) -> None:
    seen = run_in_terminal(code(), cwd=tmp_path, environment=environment)
    assert (seen.status, seen.out) == (0, "result\n")
    assert "counting" not in seen.err and "\r" not in seen.err.replace("\r\n", "")
    assert ("half of it" in seen.err) == ("TERM" in environment)  # only process 0 logs


def test_no_control_character_where_stderr_is_no_terminal(tmp_path: Path) -> None:
    for force in ({}, {"FORCE_COLOR": "1"}):
        done = subprocess.run(
            [sys.executable, "-c", code()],
            cwd=tmp_path,
            env=os.environ | force,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == "result\n"
        assert re.fullmatch(r"[\d:]+ INFO    rl4rec\.test: half of it\n", done.stderr)


def test_an_error_has_its_own_line(tmp_path: Path) -> None:
    seen = run_in_terminal(code('raise __import__("rl4rec.errors").errors.UserError("a.csv: no")'), cwd=tmp_path)
    assert seen.status == 2 and seen.out == ""
    assert screen(seen.err)[-1] == "error: a.csv: no"


def test_an_interruption_has_its_own_line(tmp_path: Path) -> None:
    seen = run_in_terminal(code("raise KeyboardInterrupt"), cwd=tmp_path)
    assert seen.status == 130
    assert screen(seen.err)[-1] == "interrupted"


def test_a_line_now_and_then_in_a_log(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    monkeypatch.delenv("RL4REC_LOG", raising=False)
    with caplog.at_level(logging.INFO, "rl4rec"), Progress("sft", total=100, unit="step", initial=10) as work:
        for seconds in (10, 10, 10, 10):  # a line at 30 seconds
            now[0] += seconds
            work.update(5)
    assert caplog.messages == ["sft: step 25 of 100, 0.5 a second, 02:30 left"]


def test_track_gives_every_element_in_order() -> None:
    assert list(track(iter("abc"), "letters", unit="letter")) == ["a", "b", "c"]
    assert list(track([], "nothing", unit="thing")) == []
