"""MLflow down, hanging, failing, dying and coming back; the process killed: training goes on, all arrives, once."""

from __future__ import annotations

import http.server
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from rl4rec.errors import UserError
from rl4rec.ops.tracking import delivery, outbox, stage_run, sync
from rl4rec.ops.tracking.outbox_files import OutboxFiles
from rl4rec.params import Params
from tests.ops.tracking.test_tracking import prepared, saved
from tests.servers import free_port, mlflow_server

PARAMS = Params.model_validate({"tracking": {"system_metrics": False}})
OUTBOX = Path(".rl4rec/outbox")


@pytest.fixture
def workspace(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RL4REC_PIPELINE_ID", "test")
    monkeypatch.setattr(outbox, "_GATHER_SECONDS", 0.05)
    monkeypatch.setattr(outbox, "_RETRY_SECONDS", 0.2)
    yield tmp_path
    join()
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")


def join() -> None:
    """Wait for the threads of runs that were given up: a stage's process would have ended."""
    for thread in threading.enumerate():
        if thread.name == "tracking":
            thread.join(timeout=60)
            assert not thread.is_alive()


def use(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)


def database(workspace: Path) -> str:
    return f"sqlite:///{workspace}/mlflow.db"


def only_run(address: str, name: str = "sft") -> Run:
    client = MlflowClient(address)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    (run,) = client.search_runs(experiments, f"attributes.run_name = '{name}'")
    return run


def steps(address: str, run: Run, metric: str = "train/loss") -> list[int]:
    return [entry.step for entry in MlflowClient(address).get_metric_history(run.info.run_id, metric)]


class Failing(http.server.BaseHTTPRequestHandler):
    """Answers every request with status 500."""

    def do_GET(self) -> None:
        self.send_response(500)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = do_PUT = do_PATCH = do_GET

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def refusing() -> Iterator[str]:
    yield f"http://127.0.0.1:{free_port()}"


@contextmanager
def hanging() -> Iterator[str]:
    """Accepts connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def failing() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Failing) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("broken", [refusing, hanging, failing])
def test_a_broken_server_costs_two_stages_five_seconds_in_all_and_nothing_is_lost(
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    broken: Callable[[], Iterator[str]],
) -> None:
    with caplog.at_level(logging.WARNING), broken() as address:  # type: ignore[attr-defined]
        use(monkeypatch, address)
        lost = 0.0
        for stage in ("prepare", "sft"):
            start = time.monotonic()
            with stage_run(stage, PARAMS) as run:
                for step in range(100):
                    run.log_metrics({"train/loss": 1.0}, step=step)
            lost += time.monotonic() - start
    assert lost < 5.5  # the test's own work included
    assert "MLflow did not take everything" in caplog.text
    assert len(list(OUTBOX.glob("*.jsonl"))) == 2

    join()
    use(monkeypatch, database(workspace))
    assert sync(PARAMS.tracking) == 2
    for stage in ("prepare", "sft"):
        run_there = only_run(database(workspace), stage)
        assert run_there.info.status == "FINISHED"
        assert steps(database(workspace), run_there) == list(range(100))
    assert sync(PARAMS.tracking) == 0
    assert not list(OUTBOX.glob("*.jsonl"))


def test_a_server_that_dies_and_comes_back_has_each_row_once(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Dying(MlflowClient):
        """Fails now and then: before it has stored a batch, or after, when the answer is lost."""

        calls = 0

        def log_batch(self, *given: object, **named: object) -> None:  # type: ignore[override]
            Dying.calls += 1
            if Dying.calls % 4 == 1:
                raise ConnectionError("went away before")
            super().log_batch(*given, **named)  # type: ignore[arg-type]
            if Dying.calls % 4 == 3:
                raise ConnectionError("went away after")

    use(monkeypatch, database(workspace))
    monkeypatch.setattr(mlflow, "MlflowClient", Dying)
    with stage_run("sft", PARAMS) as run:
        for step in range(300):
            run.log_metrics({"train/loss": 1.0 / (step + 1)}, step=step)
            time.sleep(0.002)
    join()
    for _ in range(20):
        if not list(OUTBOX.glob("*.jsonl")):
            break
        sync(PARAMS.tracking)
    assert Dying.calls >= 4
    found = only_run(database(workspace))
    assert steps(database(workspace), found) == list(range(300))
    assert found.info.status == "FINISHED"
    assert found.data.params["sft.batch_size"] == "256"


def test_what_the_server_will_never_take_does_not_hold_up_the_rest(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    use(monkeypatch, database(workspace))

    def refused(*_: object, **__: object) -> None:
        raise OSError("the bucket says no")

    monkeypatch.setattr(delivery, "log_policy_model", refused)
    (workspace / "policy").mkdir()
    (workspace / "policy/config.json").write_text("{}")
    with caplog.at_level(logging.WARNING), stage_run("sft", PARAMS) as run:
        run.log_metrics({"bad name: é?": 1.0}, step=0)
        run.log_artifact(workspace / "gone.html")
        run.log_policy(workspace / "policy", prepared(workspace / "prepared"))
        run.log_metrics({"train/loss": 1.0}, step=1)
        time.sleep(2)
    join()
    sync(PARAMS.tracking)
    for what in ("metrics not tracked", "artifact not tracked: ", "policy not tracked: the bucket says no"):
        assert what in caplog.text
    found = only_run(database(workspace))
    assert (found.info.status, found.data.metrics) == ("FINISHED", {"train/loss": 1.0})


CHILD = """
import sys, time
from rl4rec.params import Params
from rl4rec.ops.tracking import stage_run
with stage_run("sft", Params.model_validate({"tracking": {"system_metrics": False}})) as run:
    for step in range(50):
        run.log_metrics({"train/loss": 1.0}, step=step)
    print("logged", flush=True)
    time.sleep(60)
"""


def test_the_run_of_a_killed_process_is_completed_by_the_next_one(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, database(workspace))
    root = Path(__file__).parents[3]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    child = subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, env=environment)
    assert child.stdout is not None and child.stdout.readline() == b"logged\n"
    (path,) = OUTBOX.glob("*.jsonl")
    assert not outbox.send_left_behind(path, PARAMS.tracking)  # at work
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    with path.open("a") as torn:
        torn.write('{"do": "metr')  # killed while it wrote
    with stage_run("evaluate", PARAMS):
        pass
    found = only_run(database(workspace))
    assert found.info.status == "KILLED"
    assert steps(database(workspace), found) == list(range(50))
    assert not list(OUTBOX.glob("*.jsonl"))


def test_a_server_back_in_the_middle_gets_the_training_before_its_result(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "log_policy_model", lambda *_: None)
    policy, data = saved(workspace / "policy", b"1"), prepared(workspace / "prepared")
    with refusing() as address:
        use(monkeypatch, address)
        with stage_run("sft", PARAMS) as run:
            run.log_policy(policy, data)
        join()
        use(monkeypatch, address)
        (OUTBOX / "silent-since").unlink()
        with stage_run("evaluate", PARAMS) as run:
            time.sleep(1)  # what is left is refused once more
            use(monkeypatch, database(workspace))
            run.log_result({"test/full/ndcg@10": 0.5}, policy)
    join()
    assert only_run(database(workspace)).data.metrics == {"test/full/ndcg_at_10": 0.5}
    assert not list(OUTBOX.glob("*.jsonl"))


def test_what_waits_in_a_project_that_is_moved_is_sent_from_there(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setattr(delivery, "log_policy_model", lambda folder, data: sent.append((folder, data.folder)))
    monkeypatch.setattr(delivery, "load_prepared", lambda folder: SimpleNamespace(folder=folder))
    sent: list[tuple[Path, Path]] = []
    project, outside = workspace / "project", tmp_path_factory.mktemp("outside") / "note.md"
    project.mkdir()
    monkeypatch.chdir(project)
    policy, data = saved(project / "policy", b"1"), prepared(project / "prepared")
    (project / "report.md").write_text("here")
    outside.write_text("outside")
    with refusing() as address:
        use(monkeypatch, address)
        with stage_run("sft", PARAMS) as run:
            run.log_artifact(Path("report.md"))
            run.log_artifact(outside)
            run.log_policy(policy, data)
        join()
    project.rename(workspace / "moved")
    monkeypatch.chdir(workspace / "moved")
    use(monkeypatch, database(workspace))
    assert sync(PARAMS.tracking) == 1
    assert sent == [(workspace / "moved" / "policy", workspace / "moved" / "prepared")]
    found = MlflowClient(database(workspace)).list_artifacts(only_run(database(workspace)).info.run_id)
    assert [file.path for file in found] == ["note.md", "report.md"]


def test_a_disk_that_is_full_costs_the_copy_only(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    use(monkeypatch, database(workspace))
    Path(".rl4rec").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING), stage_run("sft", PARAMS) as run:
        run.log_metrics({"train/loss": 1.0}, step=1)
    assert "the outbox of MLflow cannot be written" in caplog.text
    assert only_run(database(workspace)).data.metrics == {"train/loss": 1.0}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("where", ["left_behind", "sent"])
def test_a_fault_of_the_sending_thread_does_not_hold_up_the_stage(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def fault(*_: object) -> None:
        raise RuntimeError("a file went away in between")

    use(monkeypatch, database(workspace))
    monkeypatch.setattr(outbox, "_STUCK_SECONDS", 60.0)
    monkeypatch.setattr(OutboxFiles, where, fault)
    start = time.monotonic()
    with stage_run("sft", PARAMS) as run:
        run.log_metrics({"train/loss": 1.0}, step=1)
    assert time.monotonic() - start < 30
    assert len(list(OUTBOX.glob("*.jsonl"))) == (0 if where == "left_behind" else 1)


def test_sync_says_what_keeps_it(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with refusing() as address:
        use(monkeypatch, address)
        with stage_run("sft", PARAMS):
            pass
        join()
        with pytest.raises(UserError, match=rf"MLflow at {address} did not take everything, the rest stays: "):
            sync(PARAMS.tracking)
    assert list(OUTBOX.glob("*.jsonl"))


def test_secrets_stay_out_of_the_outbox(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with refusing() as address:
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "hush-hush-token")
        use(monkeypatch, address.replace("http://", "http://user:hush-hush@"))
        with stage_run("sft", PARAMS) as run:
            run.log_params({"note": "hush-hush-token"})
    assert "hush" not in next(OUTBOX.glob("*.jsonl")).read_text()


@pytest.mark.slow
def test_a_real_server_killed_and_started_again_in_the_middle(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = database(workspace)
    port_of: list[str] = []
    with mlflow_server(workspace, address) as first:
        use(monkeypatch, first)
        port_of.append(first)
        tracked = stage_run("sft", PARAMS)
        run = tracked.__enter__()
        for step in range(50):
            run.log_metrics({"train/loss": 1.0}, step=step)
        time.sleep(1)
    for step in range(50, 100):  # nobody listens
        run.log_metrics({"train/loss": 1.0}, step=step)
        time.sleep(0.01)
    with mlflow_server(workspace, address, port=int(first.rpartition(":")[2])):
        for step in range(100, 150):
            run.log_metrics({"train/loss": 1.0}, step=step)
        (workspace / "report.md").write_text("#")
        run.log_artifact(workspace / "report.md")
        time.sleep(1)
        tracked.__exit__(None, None, None)
        found = only_run(address)
        assert steps(address, found) == list(range(150))
        assert found.info.status == "FINISHED"
        assert [file.path for file in MlflowClient(first).list_artifacts(found.info.run_id)] == ["report.md"]
    assert not list(OUTBOX.glob("*.jsonl"))
