"""Links of every Markdown page lead to files and headings that exist; addresses on the web are not fetched."""

import re
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.docs.markdown import GUIDES, PAGES, ROOT, anchors, code_spans, links


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    lost = []
    for link in links(page.read_text(encoding="utf-8")):
        if link.startswith(("https://", "http://", "mailto:")):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.is_relative_to(ROOT) or not target.exists():
            lost.append(f"{link}: no such file")
        elif anchor and (target.suffix != ".md" or anchor not in anchors(target.read_text(encoding="utf-8"))):
            lost.append(f"{link}: no such heading")
    assert lost == []


@pytest.mark.parametrize("page", [*GUIDES, ROOT / "README.md"], ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_are_named_exist(page: Path) -> None:
    spans = code_spans(page.read_text(encoding="utf-8"))
    named = {
        span for span in spans if re.fullmatch(r"(rl4rec|pipelines|tests|benchmarks|docs|\.ci|\.github)/[\w./]+", span)
    }
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_anchors_and_links_are_found_as_github_has_them() -> None:
    page = "# `rl4rec serve`, faster & safer!\n## A\n## A\n```bash\n# no [x](heading.md)\n```\n"
    page += "[a](b.md) `[c](d.md)` [`e`](f.md#g)"
    assert anchors(page) == {"rl4rec-serve-faster--safer", "a", "a-1"}
    assert sorted(links(page)) == ["b.md", "f.md#g"]
