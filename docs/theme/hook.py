"""What GitHub shows and the site would not: links to files outside of docs/, and GitHub's alerts.

The guides are read on GitHub first, so they are written for it. mkdocs calls `on_page_markdown` for each page.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from typing import Any

_FENCED = re.compile(r"^(?:```.*?^```|~~~.*?^~~~)[^\n]*$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^()\s]+)\)")
_ALERT = re.compile(r"^> \[!(NOTE|TIP|WARNING|IMPORTANT|CAUTION)\]\n((?:>.*\n?)+)", re.MULTILINE)
_KINDS = {"IMPORTANT": "info", "CAUTION": "danger"}


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Rewrite a page's text, its code blocks left alone."""
    address, folder = str(config.repo_url or "").rstrip("/"), posixpath.dirname(page.file.src_uri)
    return outside_of_code(
        markdown, lambda text: _ALERT.sub(_admonition, _LINK.sub(lambda link: _outward(link, folder, address), text))
    )


def outside_of_code(markdown: str, change: Callable[[str], str]) -> str:
    """Apply `change` to what lies between fenced blocks."""
    parts, end = [], 0
    for block in _FENCED.finditer(markdown):
        parts += [change(markdown[end : block.start()]), block[0]]
        end = block.end()
    return "".join([*parts, change(markdown[end:])])


def _outward(link: re.Match[str], folder: str, address: str) -> str:
    text, target = link[1], link[2]
    path = posixpath.normpath(posixpath.join("docs", folder, target.partition("#")[0]))
    if re.match(r"[a-z]+:|[#/]", target) or path.startswith("docs/"):
        return link[0]
    if address:
        return f"[{text}]({address}/blob/HEAD/{path}{target[len(target.partition('#')[0]) :]})"
    return text if path in text else f"{text} (`{path}`)"


def _admonition(alert: re.Match[str]) -> str:
    kind = _KINDS.get(alert[1], alert[1].lower())
    lines = [line.removeprefix(">").removeprefix(" ") for line in alert[2].rstrip("\n").split("\n")]
    return "\n".join([f"!!! {kind}", "", *(f"    {line}" for line in lines), ""])
