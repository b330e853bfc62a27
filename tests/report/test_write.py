"""The written report: complete, self-contained, reproducible, and graceful where logs are missing."""

import html.parser
import re
from pathlib import Path

import numpy as np
import pytest

from rl4rec.params import CompareParams, RLParams
from rl4rec.report import compare_policies, write_report
from rl4rec.report.examples import Example, Item, Slate
from rl4rec.report.logs import TrainingLog
from tests.evaluation.test_compare import four

PARAMS = RLParams(k=2)


HOSTILE = '"><script>alert(1)</script>|`\\'


@pytest.fixture(scope="module")
def comparison():
    return compare_policies(four(), CompareParams(bootstrap_samples=200), k=2)


def examples(name: str = "item", length: int = 2) -> list[Example]:
    """One user, three slates of so many items with this in their names; the target is first, then second, then gone."""

    def items(start: int, found: int | None) -> list[Item]:
        changes = ("", "new", "up 1", "down 2")
        return [
            Item(f"{name}{start + place}", place, place == found, changes[place % 4] if start else "")
            for place in range(length)
        ]

    slates = [
        Slate("sft", items(0, 0), [], 1, 1.0),
        Slate("ppo", items(1, 1), [Item(f"{name}0", 0)], 2, 0.6309),
        Slate("grpo", items(2, None), [Item(f"{name}0", 0), Item(f"{name}1", 1)], 1234, 0.0),
    ]
    history = [Item(f"{name}{place}", 7) for place in range(8)]
    return [Example("Fell most", 4711, history, 20, Item(f"{name}0", 0, True), slates)]


def training_log(kl: bool = True) -> TrainingLog:
    rng = np.random.default_rng(0)
    rows = [
        {
            "step": i,
            "samples": 8 * i,
            "seconds": 0.5 * i,
            "train/reward": 0.3 + 0.01 * rng.random(),
            "train/entropy": 9.0,
        }
        | ({"train/kl": 0.01 * i} if kl else {})
        | ({"valid/full/ndcg@2": 0.3 + 0.001 * i} if i % 10 == 0 else {})
        for i in range(40)
    ]
    return TrainingLog(
        rows, {"train_seconds": 20.0, "steps": 40, "samples": 320, "best_step": 30, "peak_memory_mb": 500}
    )


class Page(html.parser.HTMLParser):
    """Collects every tag's attributes and the ids."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href"):
                self.addresses.append(value or "")
            if name == "id":
                self.ids.append(value or "")


def test_html_is_self_contained_and_its_ids_are_unique(comparison, tmp_path: Path) -> None:
    sft = TrainingLog([{"step": 10, "valid/full/ndcg@10": 0.1}, {"step": 20, "valid/full/ndcg@10": 0.2}], {})
    logs = {"sft": sft, "ppo": training_log(), "grpo": training_log()}
    _, page_path = write_report(comparison, logs, PARAMS, tmp_path)
    text = page_path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.tags.count("svg") == 10
    assert page.addresses[0] == "data:,"  # an empty icon: without it a browser asks the server for one
    assert all(address.startswith("#") for address in page.addresses[1:])
    assert {address[1:] for address in page.addresses[1:]} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert (
        not re.search(r"(?:src|href|url)\s*[=(]\s*[\"']?https?:", text)
        and "@import" not in text
        and "<script" not in text
    )
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text
    for words in (
        "GRPO and PPO are better than SFT.",
        "Claims and measurements",
        "not supported",
        "0.3155",
        "Protocol",
    ):
        assert words in text


def test_markdown_names_only_plots_that_exist(comparison, tmp_path: Path) -> None:
    shown = examples("a|b")
    markdown, _ = write_report(comparison, {"grpo": training_log()}, PARAMS, tmp_path, examples=shown)
    text = markdown.read_text(encoding="utf-8")
    images = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert images and all((tmp_path / image).is_file() for image in images)
    assert sorted(path.name for path in tmp_path.rglob("*.part")) == []
    lines = text.splitlines()
    for row, line in enumerate(lines):  # every table row has as many cells as its header
        if line.startswith("|---"):
            end = next((i for i in range(row, len(lines)) if not lines[i].startswith("|")), len(lines))
            assert {len(re.findall(r"(?<!\\)\|", cells.rstrip())) for cells in lines[row - 1 : end]} == {
                line.count("|")
            }
            assert end - row > 1


def test_what_is_missing_becomes_a_note(comparison, tmp_path: Path) -> None:
    markdown, _ = write_report(comparison, {"ppo": training_log(kl=False)}, PARAMS, tmp_path)
    text = markdown.read_text(encoding="utf-8")
    assert "`train/kl` is not in the training log of PPO." in text
    assert "No training log of GRPO." in text
    assert not (tmp_path / "plots" / "kl.png").exists()


def test_two_runs_write_the_same_bytes(comparison, tmp_path: Path) -> None:
    logs = {"ppo": training_log(), "grpo": training_log()}
    for name in ("first", "second"):
        write_report(comparison, logs, PARAMS, tmp_path / name, examples=examples())
    first, second = ({p.name: p.read_bytes() for p in (tmp_path / n).rglob("*.*")} for n in ("first", "second"))
    assert first == second and len(first) == 11


def test_names_from_the_data_are_escaped(comparison, tmp_path: Path) -> None:
    card = comparison["protocol"] | {"source": "<b>&"}
    _, page = write_report(comparison | {"protocol": card}, {}, PARAMS, tmp_path)
    text = page.read_text(encoding="utf-8")
    assert "<b>&" not in text and "&lt;b&gt;&amp;" in text


def test_item_ids_are_escaped(comparison, tmp_path: Path) -> None:
    markdown, page = write_report(comparison, {}, PARAMS, tmp_path, examples=examples(HOSTILE))
    text = page.read_text(encoding="utf-8")
    assert "<script" not in text and text.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 8 + 1 + 6 + 3
    assert "<script" not in markdown.read_text(encoding="utf-8")


def test_examples_say_what_moved_in_words(comparison, tmp_path: Path) -> None:
    markdown, page = write_report(comparison, {}, PARAMS, tmp_path, examples=examples(), notes=["A note."])
    text = re.sub(r"<[^>]+>", " ", page.read_text(encoding="utf-8"))
    text = " ".join(
        text[text.index("Examples: slates before and after RL") :].replace("\N{MULTIPLICATION SIGN}", "x").split()
    )
    for words in (
        "Fell most: the user of row 4711",
        "The latest 8 of 20 items taken, oldest first: item0 (7x)",
        "the target: item0 (0x)",
        "# SFT PPO GRPO 1 item0 target · 0x",
        "item2 target · new · 1x",
        "left: item0 left: item0 item1",
        "1.0000 NDCG@2; target at place 1 0.6309 NDCG@2; target at place 2 0.0000 NDCG@2; target at place 1,234",
    ):
        assert words in text, words
    lines = markdown.read_text(encoding="utf-8").splitlines()
    row = next(line for line in lines if line.startswith("| 4711 | Fell most |") and "| PPO |" in line)
    assert row.endswith("| PPO | 0.6309 | item1, **item2** (new) | item0 |")
    assert lines[-1] == "- A note."


def test_without_examples_there_is_no_such_section(comparison, tmp_path: Path) -> None:
    markdown, page = write_report(comparison, {}, PARAMS, tmp_path)
    assert "Examples" not in page.read_text(encoding="utf-8") and "Examples" not in markdown.read_text(encoding="utf-8")
