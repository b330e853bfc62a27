"""The Korean pages say what the English ones say: headings, code, links, tables and figures, section by section.

A new English section fails here until it is translated and stands in `HEADINGS`.
"""

from __future__ import annotations

import ast
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PAGES = {
    "README.md": "README.ko.md",
    "docs/quickstart.md": "docs/ko/index.md",
    "docs/PPO_vs_GRPO.md": "docs/ko/PPO_vs_GRPO.md",
}
HEADINGS = {
    "README.md": {
        "rl4rec": "rl4rec",
        "Quick start": "빠른 시작",
        "Results": "결과",
        "The pipeline": "파이프라인",
        "Your own data": "내 데이터 쓰기",
        "Your own model": "내 모델 쓰기",
        "Your own reward": "내 보상 쓰기",
        "As a library": "라이브러리로 쓰기",
        "From a run to the served model": "실행에서 서빙까지",
        "Where it stands": "다른 프로젝트와의 비교",
        "Speed": "속도",
        "Commands": "명령",
        "Guides": "문서",
        "Files": "파일",
    },
    "docs/quickstart.md": {
        "The first hour": "처음 한 시간",
        "1. Install and run the demo": "1. 설치하고 데모 실행하기",
        "2. Read the result": "2. 결과 읽기",
        "3. Look at the runs in MLflow": "3. MLflow에서 실행 살펴보기",
        "4. Change something": "4. 설정 바꿔 보기",
        "5. Ask the policy for a list": "5. 정책에 추천 목록 요청하기",
        "6. Your own logs": "6. 내 로그 쓰기",
        "7. Amazon Beauty": "7. Amazon Beauty",
        "If something fails": "문제가 생기면",
    },
    "docs/PPO_vs_GRPO.md": {
        "PPO against GRPO": "PPO와 GRPO 비교",
        "Which one should I take?": "무엇을 써야 할까?",
        "What was compared": "무엇을 비교했는가",
        "The settings": "설정",
        "The tables": "표",
        "The claims": "주장",
    },
}
SETTING = re.compile(r"Setting (`\w+`)")  # headings that `make study` makes
# Numbers that English spells out and Korean writes in digits, as many as there are.
SPELLED = {
    "a quarter of an hour": "15",
    "November": "11",
    "a third": "3 1",
    "one percent": "1 %",
    "four points": "4",
    "a hundred": "100",
    "in a second": "1",
}
LIST_OF_FILES = "README.md#files"  # what the Korean README has in place of the list

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
_SPAN = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"(?<=\])\(([^()\s]+)\)")
_BAR = re.compile(r"(?<!\\)[|]")
_NUMBER = re.compile(
    r"(?:(?<![\w.)])[-+](?=\.?\d))?(?<![A-Za-z\d])(?:\d{1,3}(?:,\d{3})+|\d+(?:\.\d+)*|\.\d+)(?:\s?%)?", re.A
)


class Section(NamedTuple):
    """A heading and what stands under it."""

    level: int
    heading: str
    text: str


def sections(page: str) -> list[Section]:
    """The sections of a page; comments in code are no headings."""
    hidden = _FENCE.sub(lambda block: re.sub(r"^#", "\0", block[0], flags=re.M), page)
    parts = re.split(r"^(#{1,6}) +(.+)\n", hidden, flags=re.M)
    assert parts[0].strip() == "", "a page starts with its heading"
    return [
        Section(len(level), heading.strip(), text.replace("\0", "#"))
        for level, heading, text in zip(parts[1::3], parts[2::3], parts[3::3], strict=True)
    ]


def code(text: str) -> list[str]:
    """The fenced blocks without comments and docstrings, which may be translated."""
    return [
        _without_docstrings(block) if kind == "python" else _without_comments(block) for kind, block in _fences(text)
    ]


def _fences(text: str) -> list[tuple[str, str]]:
    return [(found[1], found[2]) for found in _FENCE.finditer(text)]


def _without_comments(block: str) -> str:
    return "\n".join(re.sub(r"(^|\s+)#.*", "", line) for line in block.splitlines())


def _without_docstrings(block: str) -> str:
    tree = ast.parse(block)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            del node.body[0]
    return ast.unparse(tree)


def prose(text: str) -> str:
    """A section without fenced blocks and HTML comments."""
    return re.sub(r"<!--.*?-->", "", _FENCE.sub("```", text), flags=re.S)


def spans(text: str) -> list[str]:
    """Inline code: commands, files, settings."""
    return _SPAN.findall(prose(text))


def shape(text: str) -> list[str]:
    """Paragraphs, list items and table rows with the number of their cells, in order."""
    kinds = []
    before = ""
    for line in (line.rstrip() for line in prose(text).splitlines()):
        if line.startswith("|"):
            kinds.append(f"row of {len(_BAR.findall(line)) - 1}")
        elif line.startswith("- "):
            kinds.append("item")
        elif line and not before:
            kinds.append("block" if line == "```" else "paragraph")
        before = line
    return kinds


def numbers(text: str, korean: bool) -> list[str]:
    """Figures of the prose and the tables: 22,363; .0531; -0.9%; 20000000 for 20 million and 2,000만."""
    plain = _LINK.sub("", _SPAN.sub("", prose(text)))
    if korean:
        plain = re.sub(r"([\d.,]+)(만(?!큼)|억)", lambda found: _times(found[1], found[2]), plain)
    else:
        for words, digits in SPELLED.items():
            plain = re.sub(words.replace(" ", r"\s+"), digits, plain)
        plain = re.sub(
            r"([\d.]+)(?: to ([\d.]+))? (million|billion)",
            lambda found: " ".join(_times(number, found[3]) for number in found.groups()[:2] if number),
            plain,
        )
    return [re.sub(r"\s", "", number) for number in _NUMBER.findall(plain)]


def _times(number: str, word: str) -> str:
    factor = {"만": 10**4, "million": 10**6, "억": 10**8, "billion": 10**9}[word]
    return str(round(float(number.replace(",", "")) * factor))


def links(page: str, text: str) -> list[str]:
    """Targets as paths from the repository's root, with the heading they lead to."""
    found = []
    for link in _LINK.findall(_SPAN.sub("`", prose(text))):
        path, mark, anchor = link.partition("#")
        inside = "://" not in link
        found.append(
            posixpath.normpath(posixpath.join(posixpath.dirname(page), path)) + mark + anchor if inside else link
        )
    return found


def expected_links(page: str, text: str) -> list[str]:
    """Where the Korean page has to lead: to Korean pages where there are some, and back to English."""
    found = []
    for link in links(page, text):
        path, mark, anchor = link.partition("#")
        if path == PAGES[page]:
            found.append(page)
        elif path in PAGES:
            anchors = {_slug(english): _slug(korean) for english, korean in HEADINGS[path].items()}
            found.append(PAGES[path] + mark + anchors.get(anchor, anchor))
        else:
            found.append(link)
    return found


def _slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def drift(page: str, english: str, korean: str, known: dict[str, str]) -> Iterator[str]:
    """What the Korean page does not have as the English one has it."""
    english = re.sub(r"<details>.*<!-- made: files -->.*?</details>\n", "LIST\n", english, flags=re.S)
    ours, theirs = sections(english), sections(korean)
    wanted = [(part.level, known.get(part.heading, SETTING.sub(r"설정 \1", part.heading))) for part in ours]
    there = [(part.level, part.heading) for part in theirs]
    if wanted != there:
        yield f"headings: {_between(list(map(str, wanted)), list(map(str, there)))}"
        return
    kinds: dict[str, tuple[Callable[[str], list[str]], Callable[[str], list[str]]]] = {
        "code": (code, code),
        "inline code": (lambda text: sorted(spans(text)), lambda text: sorted(spans(text))),
        "links": (
            lambda text: sorted([*expected_links(page, text), *([LIST_OF_FILES] if "LIST\n" in text else [])]),
            lambda text: sorted(links(PAGES[page], text)),
        ),
        "shape": (shape, shape),
        "numbers": (lambda text: sorted(numbers(text, False)), lambda text: sorted(numbers(text, True))),
    }
    for our, their in zip(ours, theirs, strict=True):
        for kind, (of_english, of_korean) in kinds.items():
            if (first := of_english(our.text)) != (second := of_korean(their.text)):
                yield f"{kind} of '{our.heading}': {_between(first, second)}"


def _between(english: list[str], korean: list[str]) -> str:
    missing, more = Counter(english) - Counter(korean), Counter(korean) - Counter(english)
    return (
        f"Korean lacks {list(missing.elements())}, has besides {list(more.elements())}" if missing or more else "order"
    )


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_the_korean_page_is_in_step(page: str) -> None:
    assert list(drift(page, read(page), read(PAGES[page]), HEADINGS[page])) == []


@pytest.mark.parametrize("page", PAGES)
def test_each_page_leads_to_the_other_at_its_top(page: str) -> None:
    assert PAGES[page] in links(page, sections(read(page))[0].text.strip().split("\n")[0])
    assert page in links(PAGES[page], sections(read(PAGES[page]))[0].text.strip().split("\n")[0])


ENGLISH = """# Shop

[한국어](README.ko.md)

## Start

A [guide](docs/quickstart.md) and [why](docs/protocols.md). `make demo` takes a third of the time:

```bash
make demo  # all
```

- PPO -0.9 %, SASRec .0531, 0.8 million weights, 22,363 users

| a | b |
|---|---:|
| c | 95 % |

```python
def gains(slates):
    return slates / 2
```
"""
KOREAN = """# 상점

[English](README.md)

## 시작

[안내](docs/ko/index.md)와 [이유](docs/protocols.md). `make demo`에는 3분의 1의 시간이 걸립니다:

```bash
make demo  # 모두
```

- PPO -0.9%, SASRec .0531, 가중치 80만 개, 사용자 22,363명

| 가 | 나 |
|---|---:|
| 다 | 95% |

```python
def gains(slates):
    return slates / 2
```
"""
WORDS = {"Shop": "상점", "Start": "시작"}


def test_two_pages_that_say_the_same_are_in_step() -> None:
    assert list(drift("README.md", ENGLISH, KOREAN, WORDS)) == []


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("- PPO", "## New\n\n- PPO", "headings: Korean lacks [\"(2, 'New')\"], has besides []"),
        ("## Start", "### Start", "headings: Korean lacks [\"(3, '시작')\"], has besides [\"(2, '시작')\"]"),
        ("make demo  #", "make repro  #", "code of 'Start': Korean lacks ['make repro'], has besides ['make demo']"),
        ("slates / 2", "slates / 3", "code of 'Start': Korean lacks"),
        ("`make demo`", "`make repro`", "inline code of 'Start': Korean lacks ['make repro']"),
        ("docs/protocols.md", "docs/sft.md", "links of 'Start': Korean lacks ['docs/sft.md']"),
        ("22,363", "22,364", "numbers of 'Start': Korean lacks ['22,364'], has besides ['22,363']"),
        ("95 %", "90 %", "numbers of 'Start': Korean lacks ['90%'], has besides ['95%']"),
        ("-0.9 %", "+0.9 %", "numbers of 'Start': Korean lacks ['+0.9%'], has besides ['-0.9%']"),
        (".0531", ".0532", "numbers of 'Start': Korean lacks ['.0532'], has besides ['.0531']"),
        ("0.8 million", "8 million", "numbers of 'Start': Korean lacks ['8000000'], has besides ['800000']"),
        ("| c |", "| c | d |", "shape of 'Start': Korean lacks ['row of 3'], has besides ['row of 2']"),
        ("- PPO", "One more.\n\n- PPO", "shape of 'Start': Korean lacks ['paragraph'], has besides []"),
        ("- PPO", "- One more.\n- PPO", "shape of 'Start': Korean lacks ['item'], has besides []"),
    ],
)
def test_each_kind_of_drift_is_found(old: str, new: str, found: str) -> None:
    assert ENGLISH.count(old) == 1
    (only,) = drift("README.md", ENGLISH.replace(old, new), KOREAN, WORDS)
    assert only.startswith(found)


@pytest.mark.parametrize(
    ("old", "new"), [("docs/ko/index.md", "docs/quickstart.md"), ("(README.md)", "(README.ko.md)")]
)
def test_a_korean_page_leads_to_korean_pages_and_back(old: str, new: str) -> None:
    (only,) = drift("README.md", ENGLISH, KOREAN.replace(old, new), WORDS)
    assert only.startswith("links of ") and only.endswith(f"has besides ['{new.strip('()')}']")


def test_the_list_of_files_may_be_a_link() -> None:
    made = (
        "<details>\n<summary>Every file</summary>\n\n<!-- made: files -->\n| f |\n<!-- end: files -->\n\n</details>\n"
    )
    link = "[목록](README.md#files)\n"
    assert list(drift("README.md", ENGLISH + made, KOREAN + link, WORDS)) == []
    (only,) = drift("README.md", ENGLISH + made, KOREAN + link.replace("#files", ""), WORDS)
    assert only == "links of 'Start': Korean lacks ['README.md#files'], has besides ['README.md']"


def test_comments_and_docstrings_may_be_translated() -> None:
    first = '```bash\nmake demo   # all\n```\n```python\ndef f():\n    """One."""\n    return "# 1"  # two\n```\n'
    second = '```bash\nmake demo # 모두\n```\n```python\ndef f():\n    """하나."""\n    return "# 1"\n```\n'
    assert code(first) == code(second) == ["make demo", "def f():\n    return '# 1'"]


def test_numbers_of_both_languages_are_read_alike() -> None:
    english = "-0.9 % of 22,363, .9 to 1.2 % (1+100), 0.5 to 7 billion, 20 million, GPT-2, rl4rec, a third, 3.11"
    korean = "22,363의 -0.9%, .9~1.2%(1+100), 5억~70억, 2,000만, GPT-2, rl4rec, 3분의 1만큼, 3.11"
    expected = [
        "-0.9%",
        "22,363",
        ".9",
        "1.2%",
        "1",
        "100",
        "500000000",
        "7000000000",
        "20000000",
        "2",
        "3",
        "1",
        "3.11",
    ]
    assert sorted(numbers(english, False)) == sorted(numbers(korean, True)) == sorted(expected)
