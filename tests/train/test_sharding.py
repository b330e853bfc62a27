"""Weights of the blocks spread over two processes (FSDP): the same training, half of the blocks in each."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rl4rec.data.dataset import PreparedData
from rl4rec.errors import UserError
from rl4rec.model.load import load_policy, save_policy
from rl4rec.model.policy import SlatePolicy
from rl4rec.model.sharding import is_sharded, shard, spread, wants_sharding, whole
from tests.graph import ROOT
from tests.train.sharded import NAMES, Rows, make, trained


@pytest.mark.slow
@pytest.mark.parametrize("tiny_policy", ["cosine"], indirect=True)
def test_two_processes_with_half_of_the_blocks_each_train_as_one(
    save_prepared: PreparedData, tiny_policy: SlatePolicy, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    save_prepared.folder.rename(tmp_path / "data/prepared")
    save_policy(tiny_policy, tmp_path / "start")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "RL4REC_SHARD": "true", "PYTHONPATH": str(ROOT)}
    script = [str(ROOT / "tests/train/sharded.py"), str(tmp_path)]
    done = subprocess.run([*command, *script], env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]
    found = load_file(tmp_path / "found.safetensors")
    for name in NAMES:
        rows: Rows = []
        trainer = make(name, load_policy(tmp_path / "start"), save_prepared, rows)
        trainer.train()
        assert 0.45 < found[f"{name}/held"] < 0.55
        for key, weight in trained(trainer).items():
            its = found[f"{name}/{key}"].clone()
            if key.endswith("c_attn.bias"):
                its[16:32] = weight[16:32]  # the keys': attention ignores them, Adam scales their rounding up
            assert torch.allclose(its, weight, rtol=1e-3, atol=5e-5), (name, key)
        norms = [row["train/grad_norm"] for row in rows if "train/grad_norm" in row]
        assert found[f"{name}/log"].tolist() == pytest.approx(norms, rel=1e-3)
    for key in trained(make("ppo, all", load_policy(tmp_path / "start"), save_prepared, [])):
        assert torch.equal(found[f"ppo, all, resumed/{key}"], found[f"ppo, all/{key}"]), key


def test_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    for given, wanted in (("", False), ("false", False), ("true", True)):
        monkeypatch.setenv("RL4REC_SHARD", given)
        assert wants_sharding() is wanted
    monkeypatch.setenv("RL4REC_SHARD", "yes")
    with pytest.raises(UserError, match="RL4REC_SHARD: expected true or false, got 'yes'"):
        wants_sharding()


def test_in_one_process_all_is_whole(tiny_policy: SlatePolicy) -> None:
    weight = next(tiny_policy.parameters())
    assert not is_sharded(tiny_policy) and whole(weight) is weight and spread(weight, weight) is weight


def test_an_architecture_without_known_blocks_is_refused() -> None:
    with pytest.raises(UserError, match="RL4REC_SHARD: the blocks of Linear are not known"):
        shard(torch.nn.Linear(2, 2), torch.device("cpu"), 2)
