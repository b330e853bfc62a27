"""Two at once: pipelines in one checkout, deliveries to one store, readers while a policy is replaced."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import polars as pl
import pytest
import torch

from rl4rec.data.ingest import ingest
from rl4rec.data.sources.interactions import read_interactions
from rl4rec.data.store import list_store
from rl4rec.errors import UserError
from rl4rec.model.load import load_policy, save_policy
from rl4rec.model.policy import SlatePolicy
from rl4rec.params import Columns
from tests.graph import TINY, make_project

SLOW_PREPARE = """
import time
from pathlib import Path
from rl4rec.params import Params
from rl4rec._stage import run_stage
def main(params: Params) -> None:
    print(params.data.source)
    while not Path("go").exists():
        time.sleep(0.05)
    Path("data/prepared").mkdir(parents=True)
    Path("data/prepared/done").write_text("")
run_stage(main)
"""


@pytest.mark.slow
def test_of_two_pipelines_in_one_checkout_the_second_is_told_who_holds_it(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project", TINY)
    (project / "pipelines/prepare.py").write_text(SLOW_PREPARE)
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "DVC_NO_ANALYTICS": "1",
    }
    command = ["dvc", "repro", "prepare"]
    first = subprocess.Popen(command, cwd=project, env=environment, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    for line in first.stdout:
        if "> python pipelines/prepare.py" in line:
            break
    second = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    assert second.returncode != 0
    assert "blocked by" in second.stderr and str(first.pid) in second.stderr
    (project / "go").touch()
    first.communicate(timeout=60)
    assert first.returncode == 0 and (project / "data/prepared/done").is_file()


def test_deliveries_at_once_are_whole_or_refused(tmp_path: Path) -> None:
    store, refused = tmp_path / "store", []

    def deliver(number: int) -> None:
        rows = [(f"u{number}-{row}", f"i{row}", row) for row in range(200)]
        file = tmp_path / f"delivery-{number}.csv"
        pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row").write_csv(file)
        while True:
            try:
                ingest(file, store, Columns())
                return
            except UserError as error:
                refused.append(str(error))

    stop, sizes = threading.Event(), set()

    def read() -> None:
        while not stop.is_set():
            for part in list_store(store).tables if store.exists() else ():
                sizes.add(len(read_interactions(part, Columns())))

    reader = threading.Thread(target=read)
    reader.start()
    writers = [threading.Thread(target=deliver, args=(number,)) for number in range(6)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    stop.set()
    reader.join()
    assert sum(len(read_interactions(part, Columns())) for part in list_store(store).tables) == 6 * 200
    assert sizes <= {200}
    assert all("another ingestion is under way" in message for message in refused)


@pytest.mark.parametrize("tiny_policy", ["dot"], indirect=True)
def test_a_reader_gets_one_policy_or_the_other_or_an_error(tiny_policy: SlatePolicy, tmp_path: Path) -> None:
    stop, read_one, found, refused = threading.Event(), threading.Event(), set(), []

    def read() -> None:
        while not stop.is_set():
            try:
                policy = load_policy(tmp_path / "policy", then="Wait.")
            except UserError as error:
                refused.append(str(error))
                continue
            found.add(tuple({value for weight in policy.state_dict().values() for value in weight.unique().tolist()}))
            read_one.set()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for value in (1.0, 2.0) * 15:
            with torch.no_grad():
                for weight in tiny_policy.parameters():
                    weight.fill_(value)
            save_policy(tiny_policy, tmp_path / "policy")
        assert read_one.wait(60)  # while it is replaced all the time, a slow reader may get messages only
    finally:
        stop.set()
        reader.join()
    assert found and found <= {(1.0,), (2.0,)}
    assert all(message.endswith("Wait.") for message in refused), refused
