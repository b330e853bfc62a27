"""The command and the workspaces it makes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rl4rec.errors import UserError
from rl4rec.ops.workspace import make_workspace
from rl4rec.settings import load_params

ROOT = Path(__file__).parents[2]


def command(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-c", "from rl4rec.cli import main; main()", *arguments]
    return subprocess.run(line, cwd=cwd, capture_output=True, text=True, check=False)


def test_check_params_prints_the_resolved_settings(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("sft: {batch_size: 7}\n")
    result = command("check-params", cwd=tmp_path)
    assert result.returncode == 0
    printed = yaml.safe_load(result.stdout)
    assert printed["sft"]["batch_size"] == 7
    assert printed["rl"]["grpo"]["num_sample_generations"] == 8  # a default


def test_check_dvc_reports_problems_and_fails(tmp_path: Path) -> None:
    assert command("check-dvc").returncode == 0
    (tmp_path / "params.yaml").write_text("{}")
    (tmp_path / "dvc.yaml").write_text("stages: {a: {cmd: python pipelines/a.py}}")
    result = command("check-dvc", "--root", str(tmp_path))
    assert result.returncode == 2
    assert "the script 'pipelines/a.py' does not exist" in result.stderr
    assert "Traceback" not in result.stderr


def test_show_comparison_before_there_is_one(tmp_path: Path) -> None:
    result = command("show-comparison", "--root", str(tmp_path))
    assert result.returncode == 2
    assert "metrics/comparison.json: no such file. Run `dvc repro compare`" in result.stderr


def test_show_comparison_says_whether_there_is_a_report(tmp_path: Path) -> None:
    (tmp_path / "metrics").mkdir()
    shutil.copy(ROOT / "metrics" / "comparison.json", tmp_path / "metrics")
    report = tmp_path / "reports" / "comparison.html"
    shown = command("show-comparison", "--root", str(tmp_path)).stdout.splitlines()
    assert shown[-2:] == [
        f"Report:     none here yet; dvc repro writes {report}",
        f"MLflow UI:  make ui DIR={tmp_path}   prints the address to open",
    ]
    report.parent.mkdir()
    report.touch()
    shown = command("show-comparison", "--root", str(tmp_path)).stdout.splitlines()
    assert shown[-2] == f"Report:     {report}"


def test_a_refits_metrics_are_collected_and_marked(tmp_path: Path) -> None:
    metrics = tmp_path / ".refit" / "metrics"
    metrics.mkdir(parents=True)
    content = {
        "protocol": {"k": [5, 10], "negatives": {"n": 100}},
        "metrics": {"test/full/ndcg@10": 0.06, "test/sampled100/ndcg@10": 0.37},
    }
    for policy in ("sft", "sft_continued", "ppo"):
        (metrics / f"{policy}.json").write_text(json.dumps(content))
    missing = command("collect-refit", str(tmp_path / ".refit"), "--root", str(tmp_path))
    assert missing.returncode == 2
    assert "grpo.json: no such file. Run `make refit`" in missing.stderr
    (metrics / "grpo.json").write_text(json.dumps(content))
    result = command("collect-refit", str(tmp_path / ".refit"), "--root", str(tmp_path))
    assert result.returncode == 0
    assert "full 0.0600, sampled 0.3700" in result.stdout
    found = json.loads((tmp_path / "metrics/refit/grpo.json").read_text())
    assert found["protocol"]["feedback"] == "latest"
    assert found["metrics"] == content["metrics"]


def test_a_path_of_the_project_means_the_same_in_a_workspace(tmp_path: Path) -> None:
    changes = tmp_path / "changes.yaml"
    changes.write_text("data: {source: sequences, path: shop.txt}\n")
    make_workspace(ROOT, tmp_path / "space", changes)
    assert load_params(tmp_path / "space" / "params.yaml").data.path == str(ROOT / "shop.txt")


def test_no_command_heavy_at_import() -> None:
    code = "import sys, rl4rec.cli; sys.exit(bool({'torch', 'mlflow', 'polars', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture
def overrides(tmp_path: Path) -> Path:
    path = tmp_path / "changes.yaml"
    path.write_text("data: {source: simulated}\nrl: {grpo: {batch_size: 8}}\n")
    return path


def test_a_workspace_links_the_code_and_changes_the_settings(tmp_path: Path, overrides: Path) -> None:
    folder = tmp_path / "space"
    assert command("workspace", str(folder), "--overrides", str(overrides)).returncode == 0
    params, committed = load_params(folder / "params.yaml"), load_params(ROOT / "params.yaml")
    assert (params.data.source, params.rl.grpo.batch_size) == ("simulated", 8)
    assert params.rl.ppo == committed.rl.ppo
    for name in ("dvc.yaml", "pipelines", "rl4rec"):
        assert (folder / name).resolve() == ROOT / name
    # A project of its own: DVC looks no further up.
    assert "no_scm = true" in (folder / ".dvc" / "config").read_text()
    assert not list(folder.glob("*.new"))


def test_a_workspace_of_any_name_stays_out_of_commits(tmp_path: Path, overrides: Path) -> None:
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    make_workspace(ROOT, tmp_path / "shop", overrides)
    line = ["git", "-C", tmp_path, "status", "--porcelain", "--untracked-files=all"]
    assert subprocess.run(line, capture_output=True, text=True, check=True).stdout == "?? changes.yaml\n"


def test_a_policy_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("{}")
    for name in ("ppo", "grpo"):
        (tmp_path / "models" / name).mkdir(parents=True)
        (tmp_path / "models" / name / "config.json").write_text("{}")
    result = command("serve", "--root", str(tmp_path), "--model", "models/grop")
    assert result.returncode == 2
    assert result.stderr == (
        "error: --model 'models/grop': no such folder here (the path does not start at --root). "
        f"Policies in {tmp_path}/models: grpo, ppo.\n"
    )


def test_a_workspace_is_refreshed_and_keeps_its_results(tmp_path: Path, overrides: Path) -> None:
    folder = tmp_path / "space"
    make_workspace(ROOT, folder, overrides)
    (folder / "dvc.lock").write_text("lock")
    overrides.write_text("data: {source: simulated, k_core: 3}\n")
    make_workspace(ROOT, folder, overrides)
    assert load_params(folder / "params.yaml").data.k_core == 3
    assert (folder / "dvc.lock").read_text() == "lock"


def test_the_demo_is_valid_and_simulated(tmp_path: Path) -> None:
    make_workspace(ROOT, tmp_path / "demo", ROOT / "demo.yaml")
    assert load_params(tmp_path / "demo" / "params.yaml").data.source == "simulated"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("data: {sorce: simulated}", "did you mean 'source'?"),
        ("- 1", "expected settings nested as in params.yaml"),
        ("data: {", "not valid YAML"),
    ],
)
def test_invalid_overrides_change_nothing(tmp_path: Path, overrides: Path, text: str, part: str) -> None:
    make_workspace(ROOT, tmp_path / "space", overrides)
    before = (tmp_path / "space" / "params.yaml").read_text()
    overrides.write_text(text)
    with pytest.raises(UserError) as caught:
        make_workspace(ROOT, tmp_path / "space", overrides)
    assert part in str(caught.value)
    assert "changes.yaml" in str(caught.value)
    assert (tmp_path / "space" / "params.yaml").read_text() == before
    assert not list((tmp_path / "space").glob(".params*"))


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path, overrides: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="is not a workspace"):
        make_workspace(ROOT, tmp_path / "home", overrides)
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["thesis.txt"]
