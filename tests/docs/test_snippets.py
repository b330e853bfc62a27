"""Commands and settings in the guides are true: they exist, with these options, and the settings validate."""

import itertools
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from rl4rec.cli import app
from rl4rec.ops.sweep.settings import SweepParams
from rl4rec.ops.workspace import merge_settings
from rl4rec.params import Params
from rl4rec.settings import validate_settings
from tests.docs.markdown import GUIDES, ROOT, blocks, code_spans

COMMAND = typer.main.get_command(app)
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
NAMES = set(vars(COMMAND)["commands"])
INLINE = re.compile(r"(make|dvc (repro|exp run|commit)|python|accelerate launch|pytest) [\w.'\"/-]+")
SHELLS = {"bash", "sh", "shell", "console"}
CHECKED = [*GUIDES, ROOT / "README.md"]  # the recipes of CONTRIBUTING.md are followed by a test of their own


def stages() -> set[str]:
    """Names of `dvc.yaml`, with those that `foreach` makes."""
    found = set()
    for name, stage in yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"].items():
        found |= {name, *(f"{name}@{variant}" for variant in stage.get("foreach", ()))}
    return found


STAGES = stages()


def commands(text: str) -> Iterator[list[str]]:
    """Each simple command of a shell text as words, without its environment."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars="|&;()<>")
        lexer.commenters, lexer.whitespace_split = "#", True
        words: list[str] = []
        for token in [*lexer, ";"]:
            if not set(token) <= set("|&;()<>"):
                words.append(token)
                continue
            while words and re.match(r"\w+=", words[0]):
                words.pop(0)
            if words and words[0] == "sudo":
                words = list(itertools.dropwhile(lambda word: word == "sudo" or "=" in word, words))
            if words:
                yield words
            words = []


def values_of(text: str) -> list[str]:
    """What `-S key=...` tries: one value, `a,b`, `choice(a,b)` or `range(a,b)`."""
    if text.startswith("range("):
        low, high = text.removeprefix("range(").rstrip(")").split(",")
        return [low, str(int(high) - 1)]
    return text.removeprefix("choice(").rstrip(")").split(",") if not text.startswith("[") else [text]


def check_experiment(words: list[str]) -> None:
    """The settings of `dvc exp run -S ... -S ...` validate together."""
    given = [after for flag, after in itertools.pairwise(words) if flag in ("-S", "--set-param")]
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for combination in itertools.product(*(values_of(item.partition("=")[2]) for item in given)):
        settings = params
        for item, value in zip(given, combination, strict=True):
            change: Any = yaml.safe_load(value)
            for key in reversed(item.partition("=")[0].split(".")):
                change = {key: change}
            settings = merge_settings(settings, change)
        validate_settings(settings, "dvc exp run", Params)


def check_script(words: list[str]) -> None:
    script = next((word for word in words if word.endswith(".py")), None)
    assert script is None or (ROOT / script).is_file(), f"no such script: {script}"
    if script == "pipelines/rl.py":
        assert {"ppo", "grpo"} & set(words)


def check_command(words: list[str]) -> None:
    """One command of the guides, as far as it can be known without running it."""
    match words:
        case ["rl4rec", *rest]:
            rest = [word for word in rest if word not in ("--help", "--version")] or ["check-params"]
            with COMMAND.make_context("rl4rec", [*rest], resilient_parsing=False) as context:
                name, command, arguments = COMMAND.resolve_command(context, [*context._protected_args, *context.args])
                assert command is not None
                command.make_context(name, [*arguments], parent=context)
        case ["make", *rest]:
            for word in rest:
                variable = re.match(r"([A-Z_]+)=", word)
                assert re.search(rf"\b{variable[1]}\b", MAKEFILE) if variable else word in TARGETS, word
        case ["dvc", "exp", "run", *rest]:
            check_experiment(rest)
        case ["dvc", "repro" | "commit" as verb, *rest]:
            named = {word for word in rest if not word.startswith("-")}
            assert named <= STAGES, f"dvc {verb}: no stage {named - STAGES}"
        case ["python" | "pytest" | "accelerate" as program, *rest]:
            check_script(rest)
            assert program != "pytest" or all((ROOT / word.partition("::")[0]).exists() for word in rest if "/" in word)


def check_shell(text: str) -> None:
    """Every command of a shell text."""
    for words in commands(text):
        check_command(words)


def check_yaml(text: str) -> None:
    """Settings validate over those of the project; another file of YAML is named for what it is."""
    content = yaml.safe_load(text)
    assert isinstance(content, dict)
    if content.keys() <= Params.model_fields.keys():
        base = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
        validate_settings(merge_settings(base, content), "snippet", Params)
    elif content.keys() <= SweepParams.model_fields.keys():
        base = yaml.safe_load((ROOT / "sweep.yaml").read_text(encoding="utf-8"))
        validate_settings({**base, **content}, "snippet", SweepParams)
    elif "distributed_type" in content:
        from accelerate.commands.config.config_args import ClusterConfig

        assert content.keys() <= ClusterConfig.__dataclass_fields__.keys()
    else:
        assert content.keys() & {"jobs", "services"}, f"YAML of no known kind: {', '.join(content)}"


@pytest.mark.parametrize("page", CHECKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_settings_are_true(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    checks: list[tuple[Callable[[str], None], str]] = []
    for block in blocks(text):
        if block.language in SHELLS:
            checks.append((check_shell, block.text))
        elif block.language in ("yaml", "yml"):
            checks.append((check_yaml, block.text))
    checks += [(check_shell, span) for span in code_spans(text) if INLINE.match(span) and "<" not in span]
    names = [re.match(r"rl4rec ([a-z][a-z-]+)", span) for span in code_spans(text)]
    wrong = [f"no such command: rl4rec {name[1]}" for name in names if name and name[1] not in NAMES]
    for check, snippet in checks:
        try:
            check(snippet)
        except SystemExit as ended:  # an option that prints and ends
            if ended.code:
                wrong.append(f"exit status {ended.code}\n{snippet}")
        except Exception as error:
            wrong.append(f"{type(error).__name__}: {error}\n{snippet}")
    assert wrong == [], "\n\n".join(wrong)


@pytest.mark.parametrize(
    "text",
    [
        "rl4rec promote --polcy grpo",
        "rl4rec recommend --users x.parquet",  # --out is needed
        "rl4rec reprommend",
        "make chaoss",
        "make ui PRT=5001",
        "dvc repro rl@gppo",
        "dvc exp run -S rl.grpo.learning_rte=1e-4",
        "dvc exp run -S rl.ppo.batch_size=100",  # does not go with mini_batch_size
        "dvc exp run --queue -S 'rl.keep=choice(last,worst)'",
        "accelerate launch pipelines/lr.py grpo",
        "OMP_NUM_THREADS=1 python benchmarks/nothing.py",
        "git add . && pytest tests/nowhere",
    ],
)
def test_a_false_command_is_found(text: str) -> None:
    with pytest.raises(Exception, match=r"\S"):
        check_shell(text)


@pytest.mark.parametrize(
    "text",
    ["rl: {candidates: {negativs: 10}}", "rl: {k: 7}", "stage: rl@gppo", "distributed_type: X\nnum_procs: 2", "x: 1"],
)
def test_false_settings_are_found(text: str) -> None:
    with pytest.raises(Exception, match=r"\S"):
        check_yaml(text)
