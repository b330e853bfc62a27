"""Checkpoints: which one is resumed, damage, and that nothing in them is a pickle."""

from __future__ import annotations

import json
import logging
import os
import pickle
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from rl4rec.data.dataset import PreparedData
from rl4rec.model.policy import SlatePolicy
from rl4rec.train.checkpoints import (
    latest_checkpoint,
    load_generators,
    load_optimizer,
    run_digest,
    save_generators,
    save_optimizer,
    seal,
)
from tests.train.helpers import make_trainer, measured, raises_interrupted, rl_params, same_weights


def checkpoint(folder: Path, step: int) -> Path:
    path = folder / f"checkpoint-{step}"
    (path / "best").mkdir(parents=True)
    (path / "model.safetensors").write_bytes(bytes(range(200)))
    (path / "best/config.json").write_text("{}")
    return path


def test_of_sealed_checkpoints_of_the_same_run_the_newest_is_found_and_two_are_kept(tmp_path: Path) -> None:
    folder = tmp_path / "ck"
    digest = run_digest({"learning_rate": 1e-3})
    assert digest != run_digest({"learning_rate": 2e-3})
    assert latest_checkpoint(folder, digest) is None
    for step in (5, 10, 20):
        seal(checkpoint(folder, step))
    checkpoint(folder, 100)  # interrupted while it was written
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == [
        "checkpoint-10",
        "checkpoint-100",
        "checkpoint-20",
    ]
    assert latest_checkpoint(folder, digest) == folder / "checkpoint-20"
    assert not (folder / "checkpoint-100").exists()
    assert latest_checkpoint(folder, run_digest({"learning_rate": 2e-3})) is None
    assert not list(folder.glob("checkpoint-*"))


def flip_a_bit(path: Path) -> None:
    content = bytearray((path / "model.safetensors").read_bytes())
    content[77] ^= 4
    (path / "model.safetensors").write_bytes(content)


DAMAGE: list[tuple[Callable[[Path], object], str]] = [
    (flip_a_bit, "model.safetensors has changed since it was written"),
    (lambda path: (path / "model.safetensors").write_bytes(b"\0" * 100), "model.safetensors has changed"),
    (lambda path: (path / "best/config.json").unlink(), "best/config.json: No such file"),
    (lambda path: (path / "manifest.json").write_text('{"model'), "manifest.json cannot be read"),
    (lambda path: (path / "manifest.json").unlink(), "it was not written to its end"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], object], message: str
) -> None:
    folder = tmp_path / "ck"
    assert latest_checkpoint(folder, "d") is None
    for step in (5, 10):
        seal(checkpoint(folder, step))
    damage(folder / "checkpoint-10")
    with caplog.at_level(logging.WARNING):
        assert latest_checkpoint(folder, "d") == folder / "checkpoint-5"
    assert f"{folder}/checkpoint-10 cannot be used: {message}" in caplog.text
    damage(folder / "checkpoint-5")
    assert latest_checkpoint(folder, "d") is None


def test_optimizer_and_schedule_come_back_bit_for_bit(tmp_path: Path) -> None:
    def make() -> tuple[torch.nn.Linear, torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
        torch.manual_seed(0)
        layer = torch.nn.Linear(3, 2)
        optimizer = torch.optim.AdamW(
            [{"params": [layer.weight], "lr": 0.1}, {"params": [layer.bias], "lr": 0.3}], betas=(0.9, 0.98)
        )
        return layer, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 3))

    def train(layer: torch.nn.Linear, optimizer: torch.optim.Optimizer, schedule: object, steps: int) -> None:
        for _ in range(steps):
            layer(torch.randn(4, 3)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()  # type: ignore[attr-defined]

    def draw() -> list[float]:
        return [random.random(), float(np.random.random()), float(np.random.standard_normal()), float(torch.rand(()))]

    first, second = make(), make()
    train(*first, 3)
    save_optimizer(*first[1:], tmp_path)
    save_generators(tmp_path, rank=0)
    second[0].load_state_dict(first[0].state_dict())
    expected = draw()
    train(*first, 4)
    load_optimizer(*second[1:], tmp_path)
    load_generators(tmp_path, rank=0)
    assert draw() == expected
    train(*second, 4)
    assert torch.equal(first[0].weight, second[0].weight) and torch.equal(first[0].bias, second[0].bias)
    assert second[2].get_last_lr() == first[2].get_last_lr()
    assert second[1].param_groups[0]["betas"] == (0.9, 0.98)


@pytest.mark.parametrize("algorithm", ["ppo", "grpo", "sft_continued"])
@pytest.mark.parametrize("tiny_policy", ["cosine"], indirect=True)
def test_a_run_resumes_from_the_checkpoint_before_a_damaged_one_without_unpickling(
    algorithm: str, tiny_policy: SlatePolicy, tiny_data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rl = rl_params(eval_every=2)
    rows: dict[str, list[dict[str, float]]] = {"whole": [], "broken": [], "resumed": []}

    def run(name: str, folder: str, interrupt_at: int | None = None) -> SlatePolicy:
        trainer = make_trainer(algorithm, tiny_policy, tiny_data, rl, rows[name], interrupt_at=interrupt_at)
        trainer.train(checkpoints=tmp_path / folder, digest="d")
        return trainer.policy

    whole = run("whole", "whole")
    assert raises_interrupted(lambda: run("broken", "cut", interrupt_at=8))
    kept = sorted((tmp_path / "cut").glob("checkpoint-*"))
    assert [path.name for path in kept] == ["checkpoint-4", "checkpoint-6"]
    for path in kept[1].rglob("*"):
        assert path.is_dir() or path.suffix in (".safetensors", ".json"), path
    flip_a_bit(kept[1])

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a file was unpickled")

    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(pickle, "load", refuse)
    monkeypatch.setattr(pickle, "Unpickler", refuse)
    assert same_weights(whole, run("resumed", "cut"))
    assert measured(rows["whole"]) == measured(rows["resumed"])


def test_a_checkpoint_of_another_run_is_not_used(
    tiny_policy: SlatePolicy, tiny_data: PreparedData, tmp_path: Path
) -> None:
    other, alone = (make_trainer("grpo", tiny_policy, tiny_data, rl_params()) for _ in range(2))
    make_trainer("grpo", tiny_policy, tiny_data, rl_params(eval_every=2)).train(checkpoints=tmp_path, digest="d")
    rows: list[dict[str, float]] = []
    other.run._on_log = rows.append
    other.train(checkpoints=tmp_path, digest="another")
    assert [row["step"] for row in rows if "train/loss" in row] == [2, 4, 6, 8]
    alone.train()
    assert same_weights(other.policy, alone.policy)


TOGETHER = """
import json, os
from pathlib import Path
from accelerate import Accelerator
from rl4rec._stage import run_stage
from rl4rec.errors import UserError
from rl4rec.train.checkpoints import common_checkpoint

def main(params):
    accelerator, seen = Accelerator(), {}
    for case in json.loads(Path("cases.json").read_text()):
        os.chdir(Path(case, os.environ["RANK"]))
        try:
            seen[case] = str(common_checkpoint(Path("ck"), "d", accelerator))
        except UserError as error:
            seen[case] = str(error)
        os.chdir("../..")
    Path(f"seen-{accelerator.process_index}.json").write_text(json.dumps(seen))

run_stage(main, distributed=True)
"""


@pytest.mark.slow
def test_processes_go_on_from_one_checkpoint_that_all_see_or_from_none(tmp_path: Path) -> None:
    """Each in a folder of its own, as on machines that share none; where they share one, a link."""

    def make(path: Path, *steps: int) -> Path:
        latest_checkpoint(path, "d")
        for step in steps:
            seal(checkpoint(path, step))
        return path

    cases = {
        "shared": "ck/checkpoint-10",
        "damaged": "ck/checkpoint-5",  # process 0 removes the newest before the others look
        "nothing": "None",
        "another_run": "None",
        "not_there": "rank 0 step 10, rank 1 none, rank 2 step 10",
        "older": "rank 0 step 10, rank 1 step 5, rank 2 step 10",
        "other_content": "rank 0 step 10, rank 1 step 10 with other content, rank 2 step 10",
        "only_others": "rank 0 none, rank 1 step 10, rank 2 step 10",
    }
    for case in cases:
        for rank in range(3):
            (tmp_path / case / str(rank)).mkdir(parents=True)
        own = {rank: tmp_path / case / str(rank) / "ck" for rank in range(3)}
        first = make(own[0], *(() if case in ("nothing", "only_others") else (5, 10)))
        if case in ("damaged", "another_run"):
            (first / "checkpoint-10/model.safetensors").write_bytes(b"damaged")
        if case == "another_run":
            (first / "run.json").write_text("{}")
        if case == "only_others":
            make(own[1], 5, 10)
            own[2].symlink_to(own[1])
            continue
        own[2].symlink_to(first)
        if case == "older":
            make(own[1], 5)
        elif case == "other_content":
            make(own[1], 5)
            (checkpoint(own[1], 10) / "best/config.json").write_text("{ }")
            seal(own[1] / "checkpoint-10")
        elif case != "not_there":
            own[1].symlink_to(first)
    (tmp_path / "cases.json").write_text(json.dumps(list(cases)))
    (tmp_path / "params.yaml").write_text("{}")
    (tmp_path / "script.py").write_text(TOGETHER)
    environment = os.environ | {"RL4REC_PROCESSES": "3", "ACCELERATE_USE_CPU": "1"}
    command = [sys.executable, "script.py", "--quiet"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("cannot be used") == 1 and "checkpoint-10 cannot be used" in done.stderr
    results = [json.loads((tmp_path / f"seen-{rank}.json").read_text()) for rank in range(3)]
    assert results[0] == results[1] == results[2]
    for case, expected in cases.items():
        if expected.startswith("rank"):
            expected = (
                f"ck: the processes see different checkpoints ({expected}) and cannot go on together. Put ck where all "
                "machines see the same files, or remove it on every machine to begin anew"
            )
        assert results[0][case] == expected, case
