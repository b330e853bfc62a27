"""The whole graph, run by DVC in a project of its own on a very small simulated shop."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import mlflow
import pytest
import yaml

from rl4rec.settings import load_params
from tests.docs.markdown import glossary, in_general
from tests.graph import POLICIES, ROOT, STAGES, finished_graph, make_project, run, stages_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # the graph is made once, by whoever comes first


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project after its first `dvc repro`, committed."""
    folder = finished_graph(tmp_path_factory)
    assert stages_run((folder / "output.txt").read_text()) == STAGES
    return folder / "project"


def test_every_logged_metric_is_in_the_glossary(project: Path) -> None:
    logged = set()
    for log in (project / "logs").glob("*.jsonl"):
        logged |= {in_general(key) for line in log.read_text().splitlines() for key in json.loads(line)}
    assert "train/reward" in logged and "train/prompts_per_second" in logged
    assert logged - {"summary"} <= glossary()


def test_every_output_is_there(project: Path) -> None:
    for policy in POLICIES:
        metrics = json.loads((project / "metrics" / f"{policy}.json").read_text())["metrics"]
        assert 0 <= metrics["test/full/ndcg@5"] <= 1
        assert 0 <= metrics["valid/sampled20/ndcg@10"] <= 1
        assert (project / "ranks" / f"{policy}.parquet").is_file()
        assert (project / "slates" / f"{policy}.parquet").is_file()
    comparison = json.loads((project / "metrics" / "comparison.json").read_text())
    low, high = comparison["grpo_vs_sft"]["test/sampled20/ndcg@5"]["ci95"]
    assert low <= high
    assert "GRPO" in (project / "reports" / "comparison.md").read_text()
    assert (project / "reports" / "comparison.html").is_file()
    assert (project / "models/crossfit/crossfit.safetensors").is_file()
    for policy in ("sft", "sft_continued", "ppo", "grpo"):
        assert (project / "models" / policy / "model.safetensors").is_file()
        *_, summary = (json.loads(line) for line in (project / "logs" / f"{policy}.jsonl").read_text().splitlines())
        assert summary["summary"] is True
    assert not list(project.rglob("*.part"))


def test_the_comparison_is_shown(project: Path) -> None:
    shown = run(project, sys.executable, "-c", "from rl4rec.cli import main; main()", "show-comparison", "--root", ".")
    assert "GRPO" in shown
    assert str(project / "reports" / "comparison.html") in shown
    assert "make ui " in shown


def test_what_git_sees(project: Path) -> None:
    tracked = run(project, "git", "ls-files").splitlines()
    assert {"dvc.lock", "data/raw.json", "metrics/comparison.json", "metrics/popularity.json"} <= set(tracked)
    assert not [
        path for path in tracked if path.startswith(("models/", "logs/", "ranks/", "slates/", "reports/", "mlruns/"))
    ]
    assert run(project, "git", "status", "--porcelain") == ""


def test_a_second_repro_does_nothing(project: Path) -> None:
    before = (project / "dvc.lock").read_text()
    assert stages_run(run(project, "dvc", "repro")) == set()
    assert (project / "dvc.lock").read_text() == before


def test_mlflow_has_a_run_for_the_pipeline_and_one_for_each_stage(project: Path) -> None:
    client = mlflow.MlflowClient(f"sqlite:///{project}/mlflow.db")
    experiment = client.get_experiment_by_name("rl4rec")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    (pipeline,) = [name for name in runs if name.startswith("pipeline-")]
    assert runs.keys() - {pipeline} == {stage.replace("@", "-") for stage in STAGES - {"champion"}}
    parent = runs.pop(pipeline).info.run_id
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {parent}
    assert all(run.inputs.dataset_inputs for run in runs.values())
    ppo, grpo = runs["rl-ppo"].data.metrics, runs["rl-grpo"].data.metrics
    for name in ("train/reward", "train/kl", "train/entropy", "train/grad_norm", "valid/full/ndcg_at_5"):
        assert name in ppo
        assert name in grpo
    models = client.search_logged_models([experiment.experiment_id])
    assert {model.source_run_id for model in models} == {
        runs[n].info.run_id for n in ("sft", "sft_continued", "rl-ppo", "rl-grpo")
    }
    assert any("comparison.html" in a.path for a in client.list_artifacts(runs["compare"].info.run_id, "report"))


def test_a_logged_policy_serves_raw_item_ids(project: Path) -> None:
    client = mlflow.MlflowClient(f"sqlite:///{project}/mlflow.db")
    experiment = client.get_experiment_by_name("rl4rec")
    model, *_ = client.search_logged_models([experiment.experiment_id])
    path = Path(model.artifact_location.removeprefix("file://"))
    code = (
        "import json, sys, mlflow, polars as pl\n"
        f"ids = pl.read_parquet({str(project / 'data/prepared/items.parquet')!r})['item'].to_list()\n"
        f"model = mlflow.pyfunc.load_model({str(path)!r})\n"
        "known, unknown = model.predict([{'history': ids[:2]}, {'history': ['?']}], params={'k': 4})['items']\n"
        "print(json.dumps([ids, known, unknown]))\n"
    )
    ids, known, unknown = json.loads(run(project, sys.executable, "-W", "ignore", "-c", code))
    assert len(known) == len(set(known)) == 4
    assert not set(known) & set(ids[:2])
    assert len(unknown) == 4
    assert not list(path.rglob("*.pkl"))


@pytest.mark.parametrize(
    ("key", "stages"),
    [
        ("rl.grpo.learning_rate=8e-05", {"rl@grpo", "sft_continued", "compare"}),
        ("rl.ppo.clip_range=0.3", {"rl@ppo", "compare"}),
        ("rl.num_slates=256", {"rl@ppo", "rl@grpo", "sft_continued", "compare"}),
        ("rl.crossfit.num_epochs=3", {"crossfit", "rl@ppo", "rl@grpo", "sft_continued", "compare"}),
        ("sft.seed=3", {"sft", "crossfit"}),
        ("policy.dropout=0.1", {"sft"}),
        ("compare.seed=1", {"compare"}),
        ("evaluate.seed=1", {f"evaluate@{policy}" for policy in POLICIES} | {"compare"}),
        ("data.k_core=2", {"prepare"}),
        ("tracking.enabled=false", set()),
    ],
)
def test_a_setting_changes_only_the_stages_that_read_it(project: Path, key: str, stages: set[str]) -> None:
    params = (project / "params.yaml").read_text()
    name, _, value = key.partition("=")
    changed = yaml.safe_load(params)
    *sections, last = name.split(".")
    section = changed
    for part in sections:
        section = section[part]
    section[last] = yaml.safe_load(value)
    try:
        (project / "params.yaml").write_text(yaml.safe_dump(changed))
        assert set(json.loads(run(project, "dvc", "status", "--json"))) - {"fingerprint"} == stages
    finally:
        (project / "params.yaml").write_text(params)


def test_ones_own_reward_changes_rl_only(project: Path) -> None:
    reward = project / "pipelines/reward.py"
    text = reward.read_text()
    try:
        reward.write_text(text + "# changed\n")
        assert set(json.loads(run(project, "dvc", "status", "--json"))) - {"fingerprint"} == {"rl@ppo", "rl@grpo"}
    finally:
        reward.write_text(text)


def test_an_experiment_reruns_only_what_it_changes(project: Path) -> None:
    output = run(project, "dvc", "exp", "run", "-S", "rl.grpo.learning_rate=8e-05")
    assert stages_run(output) == {"rl@grpo", "sft_continued", "evaluate@grpo", "compare"}
    default = load_params(ROOT / "params.yaml").rl.grpo.learning_rate
    assert run(project, "dvc", "params", "diff").split()[-2:] == [str(default), "8e-05"]
    assert "grpo" in run(project, "dvc", "exp", "show", "--csv")
    difference = json.loads(run(project, "dvc", "metrics", "diff", "--json"))
    assert difference.keys() == {"metrics/grpo.json", "metrics/comparison.json"}
    assert all(change["old"] != change["new"] for change in difference["metrics/grpo.json"].values())
    run(project, "dvc", "plots", "show", "--out", "plots")
    assert "<img" in (project / "plots" / "index.html").read_text()


def test_a_changed_raw_file_reruns_prepare(tmp_path: Path) -> None:
    shop = tmp_path / "shop.txt"
    shop.write_text("".join(f"u{user} a b c d e\n" for user in range(6)))
    folder = make_project(tmp_path / "project", {"data": {"source": "sequences", "path": str(shop), "k_core": 2}})
    assert stages_run(run(folder, "dvc", "repro", "prepare")) == {"prepare"}
    assert stages_run(run(folder, "dvc", "repro", "prepare")) == set()
    shop.write_text(shop.read_text() + "u7 a b c d e\n")
    assert stages_run(run(folder, "dvc", "repro", "prepare")) == {"prepare"}
    assert json.loads((folder / "data/prepared/stats.json").read_text())["users"] == 7
