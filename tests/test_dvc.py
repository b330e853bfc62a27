"""dvc.yaml against scripts: a small made-up project, broken in one way at a time, and the real one."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from rl4rec._dvc import check_dvc, dvc_stages, imported_modules, params_read
from rl4rec.errors import UserError
from rl4rec.params import Params

ROOT = Path(__file__).parents[1]
EVALUATED = ("popularity", "sft", "sft_continued", "ppo", "grpo")

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
        f"dvc.yaml: train@{variant}: add '{file}' or its package to deps: train.py uses it"
        for variant in ("ppo", "grpo")
        for file in sorted(beside)
    ]
    edit(project, "dvc.yaml", "input.csv", ", ".join([*sorted(beside), "input.csv"]))
    edit(project, "dvc.yaml", "pipelines/show.py, ", "pipelines/show.py, pipelines/reward.py, ")
    assert check_dvc(project) == ["dvc.yaml: show@a: 'pipelines/reward.py' in deps is not used by show.py"]


def test_modules_without_influence_are_neither_listed_nor_followed(project: Path) -> None:
    (project / "rl4rec/_stage.py").write_text("from rl4rec import unrelated\n")
    assert "rl4rec/unrelated.py" not in imported_modules(project, project / "pipelines/train.py")
    assert check_dvc(project) == []


API = """
from rl4rec.core.model import fit
from rl4rec.lazy import x as looked_up
from rl4rec.unrelated import other

__all__ = ["fit", "train", "other_stage"]
DEFAULT = looked_up

def train(fit):
    return fit, _helper()

def other_stage():
    return other

def _helper():
    return DEFAULT
"""


@pytest.mark.parametrize(
    ("called", "needed"),
    [
        ("train", {"rl4rec/api.py", "rl4rec/lazy.py"}),  # through its helper; its parameter `fit` is not the import
        ("fit", {"rl4rec/core/__init__.py", "rl4rec/core/model.py", "rl4rec/lazy.py"}),  # handed on, not written there
        ("other_stage", {"rl4rec/api.py", "rl4rec/unrelated.py"}),
    ],
)
def test_of_the_api_only_what_the_script_calls_is_followed(project: Path, called: str, needed: set[str]) -> None:
    (project / "rl4rec/api.py").write_text(API)
    script = project / "pipelines/show.py"
    script.write_text(f"from rl4rec import api\napi.{called}()\n")
    assert imported_modules(project, script) == needed


def test_a_whole_package_may_be_listed_if_something_of_it_is_used(project: Path) -> None:
    edit(project, "dvc.yaml", "rl4rec/core/model.py, rl4rec/lazy.py", "rl4rec/core, rl4rec/lazy.py")
    (project / "rl4rec/core/unused.py").write_text("x = 1\n")
    assert check_dvc(project) == []
    (project / "rl4rec/empty").mkdir()
    (project / "rl4rec/empty/unused.py").write_text("x = 1\n")
    edit(project, "dvc.yaml", "rl4rec/core,", "rl4rec/core, rl4rec/empty,")
    assert check_dvc(project)[0] == "dvc.yaml: train@ppo: 'rl4rec/empty' in deps is not used by train.py"


def test_a_folder_that_other_stages_fill_may_be_a_dependency(project: Path) -> None:
    edit(project, "dvc.yaml", '"${item.model}"', "models")
    assert check_dvc(project) == []


@pytest.mark.parametrize(
    ("edited", "reruns"),
    [
        ("rl4rec/train/ppo.py", {"sft", "crossfit", "rl@ppo", "rl@grpo", "sft_continued"}),
        ("rl4rec/report/plots.py", {"compare"}),
        ("rl4rec/evaluation/compare.py", {"compare", *(f"evaluate@{key}" for key in EVALUATED)}),
        ("rl4rec/data/ingest.py", {"prepare"}),
        ("rl4rec/ops/tracking/run.py", set()),
    ],
)
def test_what_an_edit_reruns(edited: str, reruns: set[str]) -> None:
    stages = dvc_stages(ROOT)
    found = {name for name, stage in stages for dep in stage.get("deps", []) if Path(edited).is_relative_to(dep)}
    assert found == reruns


def test_settings_that_a_script_reads(project: Path) -> None:
    assert params_read(project / "pipelines/train.py") == {"rl", "policy.dropout", "evaluate"}


@pytest.mark.parametrize(
    ("file", "old", "new", "problem"),
    [
        (
            "dvc.yaml",
            ", rl4rec/lazy.py",
            "",
            "train@ppo: add 'rl4rec/lazy.py' or its package to deps: train.py uses it",
        ),
        (
            "dvc.yaml",
            "rl4rec/lazy.py",
            "rl4rec/lazy.py, rl4rec/unrelated.py",
            "train@grpo: 'rl4rec/unrelated.py' in deps is not used by train.py",
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
        ("params.yaml", "    loss_type: grpo\n", "", "params.yaml: 'rl.grpo.loss_type' is missing"),
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
