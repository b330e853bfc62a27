"""Reads the recipes of CONTRIBUTING.md and applies them, as a contributor would."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

_HEADING = re.compile(r"^## Recipe: (.+)$", re.MULTILINE)
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PLACE = re.compile(r"^(In|A new file,) `([^`]+)`")
REST = "..."  # at the end of a line: whatever else stands on it


@dataclass
class Recipe:
    """Edits by file, and the commands after them."""

    title: str
    edits: list[tuple[str, str]] = field(default_factory=list)  # file, diff
    files: list[tuple[str, str]] = field(default_factory=list)  # file, content
    commands: list[str] = field(default_factory=list)

    def apply(self, root: Path) -> None:
        """Write the new files and make the edits below `root`."""
        for name, content in self.files:
            assert not (root / name).exists(), f"{self.title}: {name} is there already"
            (root / name).write_text(content, encoding="utf-8")
        for name, diff in self.edits:
            text = (root / name).read_text(encoding="utf-8")
            for hunk in diff.split("@@\n"):
                text = apply_hunk(text, hunk, f"{self.title}, {name}")
            (root / name).write_text(text, encoding="utf-8")


def read_recipes(text: str) -> list[Recipe]:
    """Recipes of the page, in its order."""
    parts = _HEADING.split(text)[1:]
    return [_read(title, body.split("\n## ")[0]) for title, body in zip(parts[::2], parts[1::2], strict=True)]


def _read(title: str, body: str) -> Recipe:
    recipe, end = Recipe(title), 0
    for block in _FENCE.finditer(body):
        language, content = block.groups()
        before, end = body[end : block.start()], block.end()
        place = _PLACE.match(before.rstrip().rsplit("\n\n", 1)[-1].lstrip())
        if language == "bash":
            recipe.commands += [line.split(" #")[0].strip() for line in content.splitlines()]
            continue
        assert place is not None, f"{title}: no sentence names the file of\n{content}"
        assert (place[1] == "In") == (language == "diff"), f"{title}: {place[2]}: an edit is a diff, a new file is not"
        (recipe.edits if language == "diff" else recipe.files).append((place[2], content))
    return recipe


def apply_hunk(text: str, hunk: str, where: str) -> str:
    """The text with one hunk applied; its old lines must be there, once."""
    lines = [(line[:1] or " ", line[1:]) for line in hunk.splitlines()]
    assert {sign for sign, _ in lines} <= {" ", "+", "-"}, f"{where}: lines start with ' ', '+' or '-':\n{hunk}"
    old = [
        re.escape(line.removesuffix(REST)) + (r"([^\n]*)" if line.endswith(REST) else "")
        for sign, line in lines
        if sign != "+"
    ]
    found = list(re.finditer("^" + "\n".join(old) + "$", text, re.MULTILINE))
    assert len(found) == 1, f"{where}: found {len(found)} times, expected once:\n{hunk}"
    rests, new, removed = list(found[0].groups()), [], []
    for sign, line in lines:
        rest = None
        if sign != "+" and line.endswith(REST):
            rest = rests.pop(0)
            if sign == "-":
                removed.append(rest)
                continue
        elif sign == "+" and line.endswith(REST):
            assert removed, f"{where}: no removed line has the rest of:\n{line}"
            rest = removed.pop(0)
        if sign != "-":
            new.append(line if rest is None else line.removesuffix(REST) + rest)
    assert not removed, f"{where}: the rest of a removed line is lost:\n{hunk}"
    return text[: found[0].start()] + "\n".join(new) + text[found[0].end() :]
