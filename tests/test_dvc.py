"""dvc.yaml against scripts: a small made-up project, broken in one way at a time, and the real one."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from rl4rec._dvc import check_dvc, imported_modules, params_read
from rl4rec.errors import UserError
from rl4rec.params import Params

ROOT = Path(__file__).parents[1]

TRAIN = """
from rl4rec.core import model
from rl4rec.params import Params
from rl4rec._stage import run_stage

def main(params: Params, algorithm: str) -> None:
    rl = params.rl
    model.fit(rl, params.policy.dropout, params.evaluate.model_dump())
    with stage_run("rl", params):
        pass
"""

DVC = """
stages:
  train:
    foreach: [ppo, grpo]
    do:
      cmd: python pipelines/train.py ${item}
      params: [RL, "rl.${item}", policy.dropout, evaluate]
      deps: [pipelines/train.py, rl4rec/core/model.py, rl4rec/lazy.py, input.csv]
      outs: ["models/${item}"]
  show:
    foreach:
      a: {model: models/ppo}
    do:
      cmd: python pipelines/show.py ${key}
      deps: [pipelines/show.py, "${item.model}"]
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    shared = [f"rl.{name}" for name in type(Params().rl).model_fields if name not in ("ppo", "grpo", "sft_continued")]
    files = {
        "params.yaml": yaml.safe_dump(Params().model_dump(mode="json")),
        "dvc.yaml": DVC.replace("RL", ", ".join(shared)),
        "input.csv": "",
        "pipelines/train.py": TRAIN,
        "pipelines/show.py": "print()\n",
        "rl4rec/__init__.py": "",
        "rl4rec/params.py": "",
        "rl4rec/_stage.py": "",
        "rl4rec/lazy.py": "x = 1\n",
        "rl4rec/types_only.py": "x = 1\n",
        "rl4rec/unrelated.py": "x = 1\n",
        "rl4rec/core/__init__.py": '"""Nothing but a docstring."""\n',
        "rl4rec/core/model.py": (
            "import numpy\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import rl4rec.types_only\n"
            "def fit():\n    from rl4rec import lazy\n"
        ),
    }
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return tmp_path


def edit(project: Path, name: str, old: str, new: str) -> None:
    text = (project / name).read_text()
    assert old in text
    (project / name).write_text(text.replace(old, new))


def test_a_graph_that_agrees(project: Path) -> None:
    assert check_dvc(project) == []


def test_the_graph_of_this_project_agrees() -> None:
    assert check_dvc(ROOT) == []


def test_imports_are_followed_also_inside_functions(project: Path) -> None:
    assert imported_modules(project, project / "pipelines/train.py") == {
        "rl4rec/core/__init__.py",
        "rl4rec/core/model.py",
        "rl4rec/lazy.py",
    }


def test_modules_beside_the_script_are_followed_and_must_be_listed(project: Path) -> None:
    edit(project, "pipelines/train.py", "    rl = params.rl\n", "    rl = params.rl\n    from reward import gains\n")
    (project / "pipelines/reward.py").write_text("import table\nfrom rl4rec import unrelated\ngains = 1\n")
    (project / "pipelines/table.py").write_text("rows = []\n")
    beside = {"pipelines/reward.py", "pipelines/table.py", "rl4rec/unrelated.py"}
    assert imported_modules(project, project / "pipelines/train.py") >= beside
    assert check_dvc(project) == [
        f"dvc.yaml: train@{variant}: add '{file}' to deps: train.py imports it"
        for variant in ("ppo", "grpo")
        for file in sorted(beside)
    ]
    edit(project, "dvc.yaml", "input.csv", ", ".join([*sorted(beside), "input.csv"]))
    edit(project, "dvc.yaml", "pipelines/show.py, ", "pipelines/show.py, pipelines/reward.py, ")
    assert check_dvc(project) == ["dvc.yaml: show@a: 'pipelines/reward.py' in deps is not imported by show.py"]


def test_modules_without_influence_are_neither_listed_nor_followed(project: Path) -> None:
    (project / "rl4rec/_stage.py").write_text("from rl4rec import unrelated\n")
    assert "rl4rec/unrelated.py" not in imported_modules(project, project / "pipelines/train.py")
    assert check_dvc(project) == []


def test_imports_of_modules_without_influence_are_not_followed(project: Path) -> None:
    (project / "rl4rec/_stage.py").write_text("from rl4rec import unrelated\n")
    assert "rl4rec/unrelated.py" not in imported_modules(project, project / "pipelines/train.py")
    assert check_dvc(project) == []


def test_settings_that_a_script_reads(project: Path) -> None:
    assert params_read(project / "pipelines/train.py") == {"rl", "policy.dropout", "evaluate"}


@pytest.mark.parametrize(
    ("file", "old", "new", "problem"),
    [
        ("dvc.yaml", ", rl4rec/lazy.py", "", "train@ppo: add 'rl4rec/lazy.py' to deps: train.py imports it"),
        (
            "dvc.yaml",
            "rl4rec/lazy.py",
            "rl4rec/lazy.py, rl4rec/unrelated.py",
            "train@grpo: 'rl4rec/unrelated.py' in deps is not imported by train.py",
        ),
        ("dvc.yaml", "input.csv", "absent.csv", "train@ppo: the dependency 'absent.csv' is neither a file nor"),
        ("dvc.yaml", "model: models/ppo", "model: models/dpo", "show@a: the dependency 'models/dpo' is neither"),
        ("dvc.yaml", "policy.dropout, ", "", "train@ppo: add 'policy.dropout' (or its section) to params"),
        ("dvc.yaml", ', "rl.${item}"', "", "train@grpo: add 'rl.grpo.batch_size' (or its section) to params"),
        ("dvc.yaml", "evaluate]", "evaluate, sft.seed]", "train@ppo: 'sft.seed' is covered by params but not read"),
        ("dvc.yaml", "evaluate]", "evaluate, sft.sede]", "train@ppo: 'sft.sede' in params is not in params.yaml"),
        ("dvc.yaml", '"rl.${item}"', "rl.ppo, rl.grpo", "train@ppo: 'rl.grpo.batch_size' is covered by params"),
        (
            "dvc.yaml",
            "pipelines/show.py ${key}",
            "pipelines/shows.py ${key}",
            "the script 'pipelines/shows.py' does not",
        ),
        ("params.yaml", "    loss_type: dr_grpo\n", "", "params.yaml: 'rl.grpo.loss_type' is missing"),
        ("pipelines/train.py", "params.policy.dropout", "params.sft.seed", "train@ppo: add 'sft.seed'"),
    ],
)
def test_what_disagrees_is_named(project: Path, file: str, old: str, new: str, problem: str) -> None:
    edit(project, file, old, new)
    assert any(problem in found for found in check_dvc(project)), check_dvc(project)


def test_handing_over_all_settings_is_refused(project: Path) -> None:
    edit(project, "pipelines/train.py", "model.fit(rl,", "model.fit(params,")
    with pytest.raises(UserError, match=r"train\.py:8: hand over a section"):
        check_dvc(project)


def test_a_missing_or_damaged_dvc_yaml(project: Path) -> None:
    (project / "dvc.yaml").write_text("stages: [")
    with pytest.raises(UserError, match="not valid YAML"):
        check_dvc(project)
    (project / "dvc.yaml").unlink()
    with pytest.raises(UserError, match="no such file"):
        check_dvc(project)
