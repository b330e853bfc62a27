"""What the tests of the guides read out of Markdown: text outside of code, links, anchors, fenced blocks."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
GUIDES = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [*GUIDES, *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"))]

_FENCE = re.compile(r"^(```+|~~~+) *([\w-]*)[^\n]*\n(.*?)^\1 *$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[(?:[^\[\]]|\[[^\[\]]*\])*\]\(([^()\s]+)\)")
_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")


class Block(NamedTuple):
    """A fenced block."""

    language: str
    text: str


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a page."""
    return [Block(language, content) for _, language, content in _FENCE.findall(text)]


def prose(text: str) -> str:
    """A page without its fenced blocks."""
    return _FENCE.sub("", text)


def code_spans(text: str) -> list[str]:
    """Inline code of a page."""
    return _SPAN.findall(prose(text))


def links(text: str) -> list[str]:
    """Targets of links and images, those inside of code left out."""
    return _LINK.findall(_SPAN.sub("", prose(text)).replace("[]", "")) + re.findall(
        r"\]\(([^()\s]+)\)", "".join(re.findall(r"\[`[^`\n]+`\]\([^()\s]+\)", prose(text)))
    )


def anchors(text: str) -> set[str]:
    """Anchors of the headings by GitHub's rule: lower case, no punctuation, spaces as hyphens, -1 when repeated."""
    found: dict[str, int] = {}
    result = set()
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", prose(text), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")
        count = found.get(slug, 0)
        found[slug] = count + 1
        result.add(f"{slug}-{count}" if count else slug)
    return result


def in_general(key: str) -> str:
    """A metric's key with its cut-off as the glossary has it: `ndcg@10` as `ndcg@k`."""
    return re.sub(r"@\d+$", "@k", key)


def glossary() -> set[str]:
    """Every key that `docs/metrics.md` explains: the code in the first column of its tables."""
    page = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    first = re.findall(r"^\| (.*?) \|", page, re.MULTILINE)
    return {in_general(key) for cell in first for key in _SPAN.findall(cell)}
