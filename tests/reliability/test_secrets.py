"""Passwords and tokens are in no message, no log line and no MLflow param; downloads do not leave TLS."""

from __future__ import annotations

import http.server
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import mlflow
import pytest
import yaml
from mlflow import MlflowClient

from rl4rec._console import RedactingFormatter, redact
from rl4rec.data.download import RemoteFile, download
from rl4rec.data.sources.amazon import OFFICIAL
from rl4rec.errors import UserError
from rl4rec.ops.download import download_policy
from rl4rec.ops.tracking import stage_run
from rl4rec.params import Params
from tests.reliability.conftest import ROOT, Run

PASSWORD = "hunter2-and/more@x"
URI = f"postgresql://dana:{PASSWORD}@db.example/mlflow"


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("postgresql://dana:pw@host:5432/db", "postgresql://***@host:5432/db"),
        ("mysql+pymysql://dana:p@w/d@host/db failed", "mysql+pymysql://***@host/db failed"),
        ("https://token@host/x and https://a:b@c", "https://***@host/x and https://***@c"),
        ("see 'http://u:p@h'", "see 'http://***@h'"),
        ("https://h/x?a=1&token=abc&b=2", "https://h/x?a=1&token=***&b=2"),
        ("https://h/x?X-Amz-Signature=abcdef&y=1", "https://h/x?X-Amz-Signature=***&y=1"),
        ("http://127.0.0.1:5000/#/models/rl4rec@champion", "http://127.0.0.1:5000/#/models/rl4rec@champion"),
        ("models:/rl4rec@champion, dvc repro evaluate@sft", "models:/rl4rec@champion, dvc repro evaluate@sft"),
        ("sqlite:///mlflow.db", "sqlite:///mlflow.db"),
    ],
)  # fmt: skip
def test_what_is_a_secret_and_what_is_not(text: str, redacted: str) -> None:
    assert redact(text) == redacted


@pytest.mark.parametrize(
    "name", ["MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN"]
)
def test_the_environments_secrets(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "s3cr3t-value")
    assert redact("header: Bearer s3cr3t-value.") == "header: Bearer ***."
    monkeypatch.setenv(name, "true")  # not a secret, but a switch
    assert redact("it is true") == "it is true"


def test_log_lines_and_their_tracebacks() -> None:
    try:
        raise ValueError(f"cannot connect to {URI}")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "f", 1, "trying %s", (URI,), sys.exc_info())
    line = RedactingFormatter("%(message)s").format(record)
    assert "hunter2" not in line and line.count("***@db.example") == 2


def test_settings_are_printed_and_tracked_without_the_password(
    workspace: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"tracking": {"uri": URI, "system_metrics": False}}
    (workspace / "params.yaml").write_text(yaml.safe_dump(settings))
    done = run("rl4rec", "check-params")
    assert done.status == 0 and "***@db.example" in done.out and "hunter2" not in done.out + done.err

    database = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)  # wins over the settings
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t0ken-value")
    monkeypatch.setenv("RL4REC_PIPELINE_ID", "secrets")
    with stage_run("sft", Params.model_validate(settings)) as stage:
        stage.log_params({"note": f"came with t0ken-value from {URI}"})
    client = MlflowClient(database)
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    values = {key: value for found in runs for key, value in found.data.params.items()}
    assert values["tracking.uri"] == "postgresql://***@db.example/mlflow"
    assert values["note"] == "came with *** from postgresql://***@db.example/mlflow"
    assert not [key for key, value in values.items() if "hunter2" in value or "t0ken" in value]


@pytest.mark.parametrize("debug", ["", "1"])
def test_a_server_that_refuses_is_named_without_the_password(tmp_path: Path, debug: str) -> None:
    """Through the real command: nothing answers at the address, and MLflow's error has it in full."""
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"tracking": {"uri": "http://dana:hunter2%40x@127.0.0.1:9"}}))
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    environment |= {"MLFLOW_TRACKING_TOKEN": "t0ken-value", "RL4REC_DEBUG": debug, "PYTHONPATH": str(ROOT)}
    environment |= {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "2"}
    done = subprocess.run(
        [sys.executable, "-c", "from rl4rec.cli import main; main()", "rollback"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "error: MLflow registry" in done.stderr
    assert ("Traceback" in done.stderr) == bool(debug)
    assert "hunter2" not in done.stdout + done.stderr and "t0ken" not in done.stdout + done.stderr


def test_a_warning_of_tracking_has_no_password(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError(f"cannot connect to {URI}")

    monkeypatch.setattr(mlflow, "set_experiment", refuse)
    monkeypatch.setattr(mlflow, "set_tracking_uri", lambda _: None)
    with stage_run("sft", Params.model_validate({"tracking": {"uri": URI}})):
        pass
    assert "cannot connect to postgresql://***@db.example" in caplog.text
    assert "hunter2" not in caplog.text


# --- no way out of the folder, no way off TLS --------------------------------------------------------


def test_the_official_files_come_over_tls() -> None:
    assert all(remote.url.startswith("https://") for remote in OFFICIAL)


@pytest.mark.parametrize("name", ["../x.gz", "a/b.gz", "/etc/x", "..", ""])
def test_a_download_stays_in_its_folder(name: str) -> None:
    with pytest.raises(ValueError, match="not a plain file name"):
        RemoteFile(name, "https://host/x.gz")


@pytest.mark.parametrize(
    "url", ["http://host/x", "ftp://host/x", "file:///etc/passwd", "http://127.0.0.1.evil.example/x"]
)
def test_a_download_is_over_tls(url: str) -> None:
    with pytest.raises(ValueError, match="not an https address"):
        RemoteFile("x", url)


@pytest.fixture
def redirecting() -> Iterator[str]:
    """A server that sends everybody to an address without TLS."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self.send_response(302)
            self.send_header("Location", "http://mirror.example/x")
            self.end_headers()

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/x"
    server.shutdown()
    server.server_close()


def test_a_redirection_off_tls_is_refused(redirecting: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"redirects to http://mirror\.example/x, which is not protected by TLS"):
        download(RemoteFile("x", redirecting), tmp_path, timeout_s=5, retries=0)
    assert not [path for path in tmp_path.iterdir() if path.stat().st_size]


def test_a_model_that_names_files_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model" / "artifacts" / "sft").mkdir(parents=True)
    for file in ("sft/model.safetensors", "items.parquet"):
        (tmp_path / "model" / "artifacts" / file).touch()
    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", lambda *_, **__: str(tmp_path / "model"))

    def described(path: str) -> None:
        flavor = {"artifacts": {"policy": {"path": "artifacts/sft"}, "items": {"path": path}}}
        found = SimpleNamespace(flavors={"python_function": flavor})
        monkeypatch.setattr(mlflow.models.Model, "load", cast(Any, lambda _: found))

    described("artifacts/items.parquet")
    assert download_policy("models:/x/1", tmp_path)[1] == tmp_path / "model/artifacts/items.parquet"
    for path in ("../../etc/passwd", "/etc/passwd"):
        described(path)
        with pytest.raises(UserError, match="names a file outside of the model"):
            download_policy("models:/x/1", tmp_path)
