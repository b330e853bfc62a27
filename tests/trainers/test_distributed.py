"""Two CPU processes under a distributed launcher: equal weights everywhere, one writer, one log."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rl4rec.data.prepared import PreparedData
from rl4rec.distributed import refuse_data_parallel
from rl4rec.errors import UserError
from rl4rec.policy import SlatePolicy

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_rl_runs_on_two_processes(
    algorithm: str, save_prepared: PreparedData, tiny_policy: SlatePolicy, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    save_prepared.folder.rename(tmp_path / "data/prepared")
    tiny_policy.save_pretrained(tmp_path / "models/sft")
    for path in (tmp_path / "data/prepared/tokenizer").iterdir():
        (tmp_path / "models/sft" / path.name).write_bytes(path.read_bytes())
    shared = {"learning_rate": 5e-3, "max_steps": 3}
    params = {
        "rl": {
            "k": 5,
            "candidates": {"negatives": 10},
            "eval_every": 2,
            "logging_steps": 1,
            "ppo": {**shared, "batch_size": 16, "mini_batch_size": 8},
            "grpo": {**shared, "batch_size": 4, "num_sample_generations": 4},
        },
        "tracking": {"enabled": False},
    }
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    # what `accelerate launch` starts on a machine with GPUs; for CPUs it would want MPI
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(ROOT / "pipelines/rl.py"), algorithm]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"ACCELERATE_USE_CPU": "1"}, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]

    rows = [json.loads(line) for line in (tmp_path / f"logs/{algorithm}.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "train/reward" in row] == [1, 2, 3]
    assert rows[-1]["samples"] == 3 * 2 * 16  # both processes' slates
    trained = SlatePolicy.from_pretrained(tmp_path / "models" / algorithm)
    assert (trained.lm.transformer.wte.weight == tiny_policy.lm.transformer.wte.weight).all()  # body only
    assert (trained.lm.transformer.ln_f.weight != tiny_policy.lm.transformer.ln_f.weight).any()
    assert not (tmp_path / "checkpoints" / algorithm).exists()


@pytest.mark.slow
@pytest.mark.parametrize("softmax", ["full", "sampled"])
def test_sft_runs_on_two_processes(softmax: str, save_prepared: PreparedData, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    save_prepared.folder.rename(tmp_path / "data/prepared")
    sft = {"max_steps": 2, "batch_size": 8, "learning_rate": 1e-3, "precision": "fp32", "softmax": softmax}
    params = {
        "policy": {"n_embd": 16, "dropout": 0.0, "max_history": 8, "score": "dot"},
        "sft": sft | {"sampled_items": 64, "logging_steps": 1},
        "rl": {"k": 5},
        "tracking": {"enabled": False},
    }
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(ROOT / "pipelines/sft.py")]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"ACCELERATE_USE_CPU": "1"}, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in (tmp_path / "logs/sft.jsonl").read_text().splitlines()]
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert len(losses) == 2 and losses[0] == pytest.approx(math.log(24), abs=0.3)  # not its half or its double
    assert rows[-1]["samples"] == 2 * 2 * 8


def test_one_process_for_several_gpus_is_refused() -> None:
    refuse_data_parallel(0)
    refuse_data_parallel(1)
    with pytest.raises(UserError, match="accelerate launch"):
        refuse_data_parallel(2)
