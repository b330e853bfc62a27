"""`make docs`: the site builds without a warning, holds every page, and loads nothing from the network."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.docs.markdown import GUIDES, ROOT

# What a browser loads by itself; a link (`a href`) is followed by people only.
LOADING = {"img": "src", "script": "src", "iframe": "src", "source": "src", "video": "src", "audio": "src"}
LOADING_LINKS = {"stylesheet", "icon", "preload", "preconnect", "dns-prefetch", "modulepreload", "manifest"}


class Resources(HTMLParser):
    """Addresses that a page loads, and its paragraphs that a reader would take for an unrendered list."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag in LOADING:
            self.loaded.append(given.get(LOADING[tag], ""))
        if tag == "link" and LOADING_LINKS & set(given.get("rel", "").split()):
            self.loaded.append(given.get("href", ""))


def build(folder: Path, **environment: str) -> str:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    settings = os.environ | {"NO_MKDOCS_2_WARNING": "1", "RL4REC_REPO_URL": ""} | environment
    done = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stderr


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "site"
    assert "WARNING" not in build(folder)
    return folder


def page_of(site: Path, guide: Path) -> Path:
    name = guide.relative_to(ROOT / "docs").with_suffix("")
    return site / (
        "index.html"
        if str(name) == "index"
        else name / "index.html"
        if name.name != "index"
        else name.parent / "index.html"
    )


def test_every_guide_is_a_page_that_the_home_page_leads_to(site: Path) -> None:
    home = (site / "index.html").read_text(encoding="utf-8")
    for guide in GUIDES:
        page = page_of(site, guide)
        assert page.is_file(), guide
        address = page.parent.relative_to(site).as_posix()
        assert address == "." or f'href="{address}/"' in home, guide
    assert not list(site.rglob("*.py")) and not list(site.rglob("partials"))


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    loaded = [(page.name, address) for page in pages for address in Resources(page.read_text(encoding="utf-8")).loaded]
    assert len(loaded) > len(pages)  # each has a style sheet and a script
    assert [found for found in loaded if re.match(r"(?:[a-z]+:)?//", found[1]) or found[1].startswith("http")] == []
    for sheet in site.rglob("*.css"):
        assert re.findall(r"(?:url\(|@import )[\"']?(?:https?:)?//", sheet.read_text(encoding="utf-8")) == [], sheet
    assert 'data-md-component="source"' not in (site / "index.html").read_text(
        encoding="utf-8"
    )  # asks GitHub for stars


def test_lists_are_lists_and_examples_code(site: Path) -> None:
    """Markdown needs a blank line before a list where GitHub does not; a `>>>` that is no code is a quotation."""
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert re.findall(r"<p>[^<]*\n(?:-|\d+\.) [^<]*", text) == [], page
        assert re.findall(r"<blockquote>\s*<blockquote>", text) == [], page


def test_files_outside_of_the_guides_are_named_and_with_a_repository_linked(site: Path, tmp_path: Path) -> None:
    page = (site / "reliability/index.html").read_text(encoding="utf-8")
    assert "tests/reliability/bad_inputs.py</code>" in page and 'bad_inputs.py"' not in page
    build(tmp_path / "linked", RL4REC_REPO_URL="https://example.com/shop/rl4rec")
    linked = (tmp_path / "linked/reliability/index.html").read_text(encoding="utf-8")
    assert 'href="https://example.com/shop/rl4rec/blob/HEAD/tests/reliability/bad_inputs.py"' in linked
    assert 'data-md-component="source"' not in linked
