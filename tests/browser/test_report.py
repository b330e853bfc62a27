"""The report in a real browser: on a laptop and on a phone, light and dark, offline, and readable."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from rl4rec.params import CompareParams, RLParams
from rl4rec.report import compare_policies, write_report
from rl4rec.report.logs import TrainingLog
from tests.evaluation.test_compare import four
from tests.report.test_write import HOSTILE, examples, training_log

SECTIONS = [
    "Answers",
    "Results on the test set",
    "Differences",
    "Training",
    "Claims and measurements",
    "What is recommended",
    "Examples: slates before and after RL",
    "Protocol",
    "Notes",
]

# Of all text that is shown: the least contrast with what lies behind it, and that text (WCAG 2, relative luminance).
LEAST_CONTRAST = """() => {
  const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => [r, g, b].map(value => value / 255)
    .map(value => value <= .04045 ? value / 12.92 : ((value + .055) / 1.055) ** 2.4)
    .reduce((sum, value, place) => sum + value * [.2126, .7152, .0722][place], 0);
  const behind = element => {
    for (let at = element; at; at = at.parentElement) {
      const colour = numbers(getComputedStyle(at).backgroundColor);
      if (colour.length < 4 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let least = [Infinity, ''], seen = 0;
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim(), element = walker.currentNode.parentElement;
    if (!text || !element.getClientRects().length || ['STYLE', 'TITLE'].includes(element.tagName)) continue;
    const style = getComputedStyle(element);
    const front = luminance(numbers(element.closest('svg') ? style.fill : style.color));
    const back = luminance(behind(element));
    const contrast = (Math.max(front, back) + .05) / (Math.min(front, back) + .05);
    seen += 1;
    if (contrast < least[0]) least = [contrast, text];
  }
  return [...least, seen];
}"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with everything in it: curves, long and hostile item ids, a note."""
    folder = tmp_path_factory.mktemp("report")
    sft = TrainingLog([{"step": 10, "valid/full/ndcg@10": 0.1}, {"step": 20, "valid/full/ndcg@10": 0.2}], {})
    logs = {"sft": sft, "ppo": training_log(), "grpo": training_log(kl=False)}
    shown = [*examples("B00006IGL", 10), *examples(HOSTILE, 3), *examples("https://example.com/" + 80 * "x", 3)]
    comparison = compare_policies(four(), CompareParams(bootstrap_samples=200), k=2)
    return write_report(comparison, logs, RLParams(k=2), folder, examples=shown)[1]


SCREENS = [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]


@pytest.fixture(scope="module", params=SCREENS, ids=lambda screen: f"{screen[0]}-{screen[1]}")
def page(request: pytest.FixtureRequest, browser: Browser, report: Path) -> Iterator[Page]:
    """The report, opened; afterwards it must have asked for nothing and complained about nothing."""
    width, scheme = request.param
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
    opened = context.new_page()
    requests: list[str] = []
    complaints: list[str] = []
    opened.on("request", lambda asked: requests.append(asked.url))
    opened.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.goto(report.as_uri())
    opened.screenshot(path=report.with_name(f"{width}-{scheme}.png"), full_page=True)
    yield opened
    context.close()
    assert requests == [report.as_uri()]
    assert complaints == []


def test_the_page_is_whole_and_never_scrolls_sideways(page: Page) -> None:
    assert page.locator("h2").all_inner_texts() == SECTIONS
    assert page.locator("h1").count() == 1
    linked = page.locator("nav a").evaluate_all(
        "links => links.map(link => document.querySelector(link.hash)?.tagName)"
    )
    assert linked == ["H2"] * len(SECTIONS)
    assert page.locator("svg[role=img][aria-label]").count() == page.locator("figure").count() == 10
    root: dict[str, Any] = page.evaluate("({scroll: document.documentElement.scrollWidth, client: innerWidth})")
    assert root["scroll"] <= root["client"]
    cut = page.locator("td, th, dd, figure, .card, .example").evaluate_all(
        "all => all.filter(e => e.scrollWidth > e.clientWidth + 1 && e.clientWidth).map(e => e.innerText.slice(0, 80))"
    )
    assert cut == []


def test_text_can_be_read(page: Page) -> None:
    least, text, seen = page.evaluate(LEAST_CONTRAST)
    assert seen > 300
    assert least >= 4.5, f"contrast {least:.2f} of {text!r}"
    smallest = page.locator(".example *").evaluate_all(
        "all => Math.min(...all.map(element => parseFloat(getComputedStyle(element).fontSize)))"
    )
    assert smallest >= 10.5


def test_three_slates_stand_side_by_side_and_mark_the_target(page: Page) -> None:
    slates = page.locator(".slates").first
    assert slates.locator("thead th").all_inner_texts() == ["#", "SFT", "PPO", "GRPO"]
    boxes = [cell.bounding_box() for cell in slates.locator("tbody tr").first.locator("td").all()]
    assert len(boxes) == 3 and all(box is not None for box in boxes)
    lefts = [box["x"] for box in boxes if box]
    assert lefts == sorted(set(lefts)) and len({box["y"] for box in boxes if box}) == 1
    assert all(box["x"] + box["width"] <= page.evaluate("innerWidth") for box in boxes if box)
    targets = slates.locator("td.target")
    assert targets.count() == 2
    assert all("target" in text for text in targets.all_inner_texts())
    plain = slates.locator("td:not(.target)").first
    backgrounds = [cell.evaluate("cell => getComputedStyle(cell).backgroundColor") for cell in (targets.first, plain)]
    assert backgrounds[0] != backgrounds[1]


def test_item_ids_are_text(page: Page) -> None:
    assert page.locator("script").count() == 0
    assert page.get_by_text(f"{HOSTILE}0", exact=True).count() == 5  # history, target, SFT's slate, left twice


def test_light_and_dark_are_different_and_paper_is_white(browser: Browser, report: Path) -> None:
    found = {}
    for scheme in ("light", "dark"):
        context = browser.new_context(color_scheme=scheme)
        opened = context.new_page()
        opened.goto(report.as_uri())
        style = "(({color, backgroundColor}) => [color, backgroundColor])(getComputedStyle(document.body))"
        found[scheme] = opened.evaluate(style)
        opened.emulate_media(media="print", color_scheme=scheme)
        found[f"{scheme} print"] = opened.evaluate(style)
        assert not opened.locator("nav").is_visible()
        context.close()
    assert found["light"] == ["rgb(31, 41, 51)", "rgb(255, 255, 255)"]
    assert found["dark"] == ["rgb(228, 233, 238)", "rgb(20, 25, 31)"]
    assert found["light print"] == found["dark print"] == ["rgb(0, 0, 0)", "rgb(255, 255, 255)"]
