"""Several CPU processes: one writer, one log, and every stage does what one process does with the same settings."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from rl4rec.data.dataset import PreparedData
from rl4rec.model.crossfit_embeddings import CrossfitEmbeddings, load_crossfit
from rl4rec.model.policy import SlatePolicy
from tests.graph import ROOT, run
from tests.train.helpers import measured, same_weights

pytestmark = pytest.mark.slow
ACCELERATE = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
RL = {
    "k": 5,
    "candidates": {"negatives": 10},
    "sft_coef": 0.1,
    "eval_every": 2,
    "logging_steps": 1,
    "precision": "fp32",
    "sft_continued": {"learning_rate": 5e-3},
}
SHARED = {"learning_rate": 5e-3, "max_steps": 3, "entropy_coef": 0.01, "kl_coef": 0.05}


def rl_settings(mini_batch: int = 16, **changes: object) -> dict[str, object]:
    """The same for any number of processes."""
    shared = SHARED | changes
    return RL | {
        "ppo": {**shared, "batch_size": 32, "mini_batch_size": mini_batch},
        "grpo": {**shared, "batch_size": 8, "num_sample_generations": 4},
    }


def command(
    folder: Path, *arguments: str, processes: int, by_hand: bool = False, **params: object
) -> subprocess.Popen[str]:
    """Start a pipeline script in `folder` with these params on CPUs; `by_hand`: with `accelerate launch`."""
    folder.mkdir(exist_ok=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(params | {"tracking": {"enabled": False}}))
    script = [str(ROOT / "pipelines" / arguments[0]), *arguments[1:]]
    # `--cpu` would start a single process (several only with an MPI hostfile): the variable keeps GPUs out instead
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "RL4REC_PROCESSES": str(processes)}
    return subprocess.Popen(
        [sys.executable, *(ACCELERATE if by_hand else []), *script],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def launch(folder: Path, *arguments: str, processes: int, by_hand: bool = False, **params: object) -> str:
    """Run a pipeline script to its end, and return what it has written to stderr."""
    process = command(folder, *arguments, processes=processes, by_hand=by_hand, **params)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors[-3000:]
    return errors


def make_start(folder: Path, data: PreparedData, policy: SlatePolicy) -> Path:
    """What RL starts from, the same in every folder."""
    rows = torch.randn(2, 24, 16, generator=torch.Generator().manual_seed(1))
    shutil.copytree(data.folder, folder / "data/prepared")
    policy.save_pretrained(folder / "models/sft")
    shutil.copytree(data.tokenizer_folder, folder / "models/sft", dirs_exist_ok=True)
    CrossfitEmbeddings(rows, rows.clone(), policy.config.item_offset).save(folder / "models/crossfit")
    return folder


def assert_equal_up_to_rounding(one: Path, other: Path, *, rtol: float, atol: float) -> None:
    first, second = (SlatePolicy.from_pretrained(path).state_dict() for path in (one, other))
    for name, weight in first.items():
        if name.endswith("c_attn.bias"):
            weight[16:32] = second[name][16:32] = (
                0.0  # the keys': attention ignores them, Adam scales their rounding up
            )
        assert torch.allclose(second[name], weight, rtol=rtol, atol=atol), name


def log_rows(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("algorithm", "mini_batch", "counts"),
    [
        ("ppo", 16, (2, 3)),
        ("ppo", 2, (2,)),  # of two prompts: often both are one process's
        ("grpo", 16, (2, 3)),
        ("sft_continued", 16, (2, 3)),
    ],
)
@pytest.mark.parametrize("tiny_policy", ["cosine"], indirect=True)
def test_several_processes_do_what_one_does(
    algorithm: str,
    mini_batch: int,
    counts: tuple[int, ...],
    save_prepared: PreparedData,
    tiny_policy: SlatePolicy,
    tmp_path: Path,
) -> None:
    """Three do not share the prompts evenly."""
    script = ("sft_continued.py",) if algorithm == "sft_continued" else ("rl.py", algorithm)
    folders = {count: make_start(tmp_path / str(count), save_prepared, tiny_policy) for count in (1, *counts)}
    for processes, folder in folders.items():
        launch(folder, *script, processes=processes, rl=rl_settings(mini_batch))
    alone = measured(log_rows(folders[1] / f"logs/{algorithm}.jsonl"))
    for folder in (folders[count] for count in counts):
        saved = folder / "models" / algorithm
        assert_equal_up_to_rounding(folders[1] / "models" / algorithm, saved, rtol=1e-4, atol=1e-6)
        trained = SlatePolicy.from_pretrained(saved).state_dict()
        assert (trained["lm.transformer.wte.weight"] == tiny_policy.lm.transformer.wte.weight).all()  # body only
        assert (trained["lm.transformer.ln_f.weight"] != tiny_policy.lm.transformer.ln_f.weight).any()
        rows = log_rows(folder / f"logs/{algorithm}.jsonl")
        assert [row["step"] for row in rows if "train/loss" in row] == [1, 2, 3]  # one writer
        assert rows[-1]["samples"] == 3 * (8 if algorithm == "sft_continued" else 32)
        for ours, theirs in zip(alone, measured(rows), strict=True):
            assert theirs == pytest.approx(ours, rel=1e-4, abs=1e-6)
        assert not (folder / "checkpoints" / algorithm).exists()


@pytest.mark.parametrize("tiny_policy", ["cosine"], indirect=True)
def test_accelerate_launch_by_hand_does_the_same(
    save_prepared: PreparedData, tiny_policy: SlatePolicy, tmp_path: Path
) -> None:
    folders = [make_start(tmp_path / name, save_prepared, tiny_policy) for name in ("own", "by_hand")]
    for folder, by_hand in zip(folders, (False, True), strict=True):
        launch(folder, "rl.py", "grpo", processes=2, by_hand=by_hand, rl=rl_settings())
    assert same_weights(*(folder / "models/grpo" for folder in folders))


SFT = {
    "max_steps": 3,
    "batch_size": 16,
    "learning_rate": 1e-3,
    "precision": "fp32",
    "sampled_items": 64,
    "logging_steps": 1,
}
POLICY = {"n_embd": 16, "dropout": 0.0, "max_history": 8, "score": "dot"}


@pytest.mark.parametrize(("softmax", "counts"), [("full", (2, 3)), ("sampled", (2,))])
def test_sft_on_several_processes_does_what_it_does_on_one(
    softmax: str, counts: tuple[int, ...], save_prepared: PreparedData, tmp_path: Path
) -> None:
    folders = {count: tmp_path / str(count) for count in (1, *counts)}
    for processes, folder in folders.items():
        shutil.copytree(save_prepared.folder, folder / "data/prepared")
        launch(folder, "sft.py", processes=processes, policy=POLICY, sft=SFT | {"softmax": softmax}, rl={"k": 5})
    alone = measured(log_rows(folders[1] / "logs/sft.jsonl"))
    for folder in (folders[count] for count in counts):
        assert_equal_up_to_rounding(folders[1] / "models/sft", folder / "models/sft", rtol=1e-3, atol=1e-5)
        rows = log_rows(folder / "logs/sft.jsonl")
        losses = [row["train/loss"] for row in rows if "train/loss" in row]
        assert len(losses) == 3 and losses[0] == pytest.approx(math.log(24), abs=0.3)  # not its half or its double
        for ours, theirs in zip(alone, measured(rows), strict=True):
            assert theirs == pytest.approx(ours, rel=1e-3, abs=1e-6)
        assert rows[-1]["samples"] == 3 * 16


@pytest.mark.parametrize("tiny_policy", ["dot"], indirect=True)
def test_cross_fitting_on_two_processes_does_what_it_does_on_one(
    save_prepared: PreparedData, tiny_policy: SlatePolicy, tmp_path: Path
) -> None:
    folders = [make_start(tmp_path / name, save_prepared, tiny_policy) for name in ("one", "two")]
    rl = {"k": 5, "crossfit": {"split_points": 2, "num_epochs": 1}}
    sft = SFT | {"learning_rate": 1e-4}
    for folder, count in zip(folders, (1, 2), strict=True):
        shutil.rmtree(folder / "models/crossfit")
        launch(folder, "crossfit.py", processes=count, policy=POLICY, sft=sft, rl=rl)
    one, two = (load_crossfit(folder / "models/crossfit", tables=2) for folder in folders)
    assert one is not None and two is not None
    assert torch.allclose(one.inputs, two.inputs, rtol=1e-3, atol=1e-5)
    assert torch.allclose(one.outputs, two.outputs, rtol=1e-3, atol=1e-5)


APART = """
import os, sys
sys.path.insert(0, os.environ["PIPELINES"])
import rl
from rl4rec._stage import run_variant_stage
if os.environ.get("RANK") == "1":
    os.chdir(os.environ["APART"])
run_variant_stage(rl.main, ["grpo"], distributed=True)
"""


@pytest.mark.parametrize("tiny_policy", ["cosine"], indirect=True)
def test_two_processes_that_are_killed_go_on_as_if_nothing_had_happened(
    save_prepared: PreparedData, tiny_policy: SlatePolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless process 1 is on another machine, say, and does not see the checkpoint."""
    whole, cut, apart = (make_start(tmp_path / name, save_prepared, tiny_policy) for name in ("whole", "cut", "apart"))
    rl = rl_settings(max_steps=20)
    launch(whole, "rl.py", "grpo", processes=2, rl=rl)
    process = command(cut, "rl.py", "grpo", processes=2, rl=rl)
    until = time.monotonic() + 120
    while not any(cut.glob("checkpoints/grpo/checkpoint-*/manifest.json")) and time.monotonic() < until:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    time.sleep(2)  # the processes that it had started end by themselves
    newest = max(int(path.parent.name.split("-")[1]) for path in cut.glob("checkpoints/grpo/*/manifest.json"))
    assert newest < 20

    (tmp_path / "apart.py").write_text(APART)
    monkeypatch.setenv("PIPELINES", str(ROOT / "pipelines"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("APART", str(apart))
    (apart / "params.yaml").write_text((cut / "params.yaml").read_text())
    stopped = command(cut, str(tmp_path / "apart.py"), "grpo", "--quiet", processes=2, rl=rl)
    _, errors = stopped.communicate(timeout=240)
    assert (stopped.returncode, errors) == (
        2,
        f"error: checkpoints/grpo: the processes see different checkpoints (rank 0 step {newest}, rank 1 none) and "
        "cannot go on together. Put checkpoints/grpo where all machines see the same files, or remove it on every "
        "machine to begin anew\n",
    )

    errors = launch(cut, "rl.py", "grpo", processes=2, rl=rl)
    assert f"resuming from checkpoints/grpo/checkpoint-{newest}\n" in errors
    assert same_weights(whole / "models/grpo", cut / "models/grpo")
    first, second = (log_rows(folder / "logs/grpo.jsonl") for folder in (whole, cut))
    assert measured(first) == measured(second)


@pytest.mark.parametrize("tiny_policy", ["cosine"], indirect=True)
def test_a_mistake_is_said_once(save_prepared: PreparedData, tiny_policy: SlatePolicy, tmp_path: Path) -> None:
    folder = make_start(tmp_path / "two", save_prepared, tiny_policy)
    process = command(folder, "rl.py", "grpo", "--quiet", processes=2, rl=rl_settings() | {"max_kl": 1e-9})
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 2
    assert errors.startswith("error: training has diverged at step ") and errors.count("\n") == 1


@pytest.mark.parametrize("tiny_policy", ["cosine"], indirect=True)
def test_dvc_repro_runs_a_stage_in_two_processes_and_then_has_nothing_to_do(
    save_prepared: PreparedData, tiny_policy: SlatePolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_start(tmp_path / "project", save_prepared, tiny_policy)
    settings = {"rl": rl_settings(), "tracking": {"enabled": False}}
    (folder / "params.yaml").write_text(yaml.safe_dump(settings))
    shutil.copytree(ROOT / "pipelines", folder / "pipelines", ignore=shutil.ignore_patterns("__pycache__"))
    stage = {
        "cmd": "RL4REC_PROCESSES=2 ACCELERATE_USE_CPU=1 python pipelines/rl.py grpo",
        "deps": ["pipelines/rl.py", "data/prepared", "models/sft", "models/crossfit"],
        "params": ["rl"],
        "outs": ["models/grpo", "logs/grpo.jsonl"],
    }
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"rl": stage}}))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    run(folder, "dvc", "init", "--no-scm", "--quiet")
    assert "Running stage 'rl'" in run(folder, "dvc", "repro")
    assert (folder / "models/grpo/model.safetensors").exists() and len(log_rows(folder / "logs/grpo.jsonl")) > 3
    again = run(folder, "dvc", "repro")
    assert "Stage 'rl' didn't change, skipping" in again and "Running" not in again
