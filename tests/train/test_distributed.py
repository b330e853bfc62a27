"""Two CPU processes under `accelerate launch`: one writer, one log, and RL does what one process would do."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from rl4rec.data.dataset import PreparedData
from rl4rec.model.crossfit_embeddings import CrossfitEmbeddings
from rl4rec.model.policy import SlatePolicy
from tests.train.helpers import measured

ROOT = Path(__file__).parents[2]


def launch(folder: Path, *arguments: str, processes: int, **params: object) -> None:
    """Run a pipeline script in `folder` with these params, on CPU, in one process or under `accelerate launch`."""
    folder.mkdir(exist_ok=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(params | {"tracking": {"enabled": False}}))
    command = [sys.executable]
    if processes > 1:
        # `--cpu` would start a single process (several only with an MPI hostfile): the variable keeps GPUs out instead
        command += ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
        command += ["--main_process_port", "0"]  # any that is free
    command += [str(ROOT / "pipelines" / arguments[0]), *arguments[1:]]
    environment = os.environ | {"ACCELERATE_USE_CPU": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]


def log_rows(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "mini_batch"),
    [("ppo", 16), ("ppo", 2), ("grpo", 16), ("sft_continued", 16)],  # of two prompts: often both are one process's
)
@pytest.mark.parametrize("tiny_policy", ["cosine"], indirect=True)
def test_two_processes_do_the_same_as_one_on_the_same_batch(
    algorithm: str, mini_batch: int, save_prepared: PreparedData, tiny_policy: SlatePolicy, tmp_path: Path
) -> None:
    shared = {"learning_rate": 5e-3, "max_steps": 3, "entropy_coef": 0.01, "kl_coef": 0.05}
    rows = torch.randn(2, 24, 16, generator=torch.Generator().manual_seed(1))
    tables = CrossfitEmbeddings(rows, rows.clone(), tiny_policy.config.item_offset)
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        shutil.copytree(save_prepared.folder, folder / "data/prepared")
        tiny_policy.save_pretrained(folder / "models/sft")
        shutil.copytree(save_prepared.tokenizer_folder, folder / "models/sft", dirs_exist_ok=True)
        tables.save(folder / "models/crossfit")
        rl = {
            "k": 5,
            "candidates": {"negatives": 10},
            "sft_coef": 0.1,
            "eval_every": 2,
            "logging_steps": 1,
            "ppo": {**shared, "batch_size": 32, "mini_batch_size": mini_batch},
            "grpo": {**shared, "batch_size": 8, "num_sample_generations": 4},
            "sft_continued": {"learning_rate": 5e-3},
        }
        script = ("sft_continued.py",) if algorithm == "sft_continued" else ("rl.py", algorithm)
        launch(folder, *script, processes=processes, rl=rl)

    one, two = (SlatePolicy.from_pretrained(tmp_path / name / "models" / algorithm).state_dict() for name in "12")
    for name, weight in one.items():
        if name.endswith("c_attn.bias"):
            weight[16:32] = two[name][16:32] = 0.0  # the keys': attention ignores them, Adam scales their rounding up
        assert torch.allclose(two[name], weight, rtol=1e-4, atol=1e-6), name
    assert (two["lm.transformer.wte.weight"] == tiny_policy.lm.transformer.wte.weight).all()  # body only
    assert (two["lm.transformer.ln_f.weight"] != tiny_policy.lm.transformer.ln_f.weight).any()

    first, second = (log_rows(tmp_path / name / f"logs/{algorithm}.jsonl") for name in "12")
    assert [row["step"] for row in second if "train/loss" in row] == [1, 2, 3]  # one writer
    assert second[-1]["samples"] == 3 * (8 if algorithm == "sft_continued" else 32)
    for ours, theirs in zip(measured(first), measured(second), strict=True):
        assert theirs == pytest.approx(ours, rel=1e-4, abs=1e-6)
    assert not (tmp_path / "2/checkpoints" / algorithm).exists()


@pytest.mark.slow
@pytest.mark.parametrize("softmax", ["full", "sampled"])
def test_sft_on_two_processes_does_the_same_as_on_one(
    softmax: str, save_prepared: PreparedData, tmp_path: Path
) -> None:
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        shutil.copytree(save_prepared.folder, folder / "data/prepared")
        sft = {"max_steps": 3, "batch_size": 16, "learning_rate": 1e-3, "precision": "fp32"}
        launch(
            folder,
            "sft.py",
            processes=processes,
            policy={"n_embd": 16, "dropout": 0.0, "max_history": 8, "score": "dot"},
            sft=sft | {"softmax": softmax, "sampled_items": 64, "logging_steps": 1},
            rl={"k": 5},
        )
    one, two = (SlatePolicy.from_pretrained(tmp_path / name / "models/sft").state_dict() for name in "12")
    for name, weight in one.items():
        if name.endswith("c_attn.bias"):
            weight[16:32] = two[name][16:32] = 0.0  # the keys', as above
        assert torch.allclose(two[name], weight, rtol=1e-3, atol=1e-5), name
    first, second = (log_rows(tmp_path / name / "logs/sft.jsonl") for name in "12")
    losses = [row["train/loss"] for row in second if "train/loss" in row]
    assert len(losses) == 3 and losses[0] == pytest.approx(math.log(24), abs=0.3)  # not its half or its double
    for ours, theirs in zip(measured(first), measured(second), strict=True):
        assert theirs == pytest.approx(ours, rel=1e-3, abs=1e-6)
    assert second[-1]["samples"] == 3 * 16
