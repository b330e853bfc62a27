"""Servers that tests start on free ports of this machine."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def mlflow_server(folder: Path, backend: str, port: int | None = None) -> Iterator[str]:
    """An MLflow server with artifacts in `folder`; its address."""
    address = f"http://127.0.0.1:{(port := port or free_port())}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", backend, "--artifacts-destination", str(folder / "artifacts")]
    settings = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")} | settings
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait(f"{address}/health", process, folder / "server.log")
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)


@contextmanager
def model_server(folder: Path, model: str, *, mlflow: bool = False, timeout: float = 30) -> Iterator[str]:
    """`rl4rec serve`, or `mlflow models serve`, of a model of MLflow; its address. Logs to `folder/server.log`."""
    port = free_port()
    if mlflow:
        command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", model, "--env-manager", "local"]
        command += ["--workers", "1", "--port", str(port)]
    else:
        code = "from rl4rec.cli import main; main()"
        command = [sys.executable, "-c", code, "serve", "--model", model, "--port", str(port)]
        command += ["--timeout", str(timeout), "--root", str(folder)]
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait(f"http://127.0.0.1:{port}/ping", process, folder / "server.log")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)


def postgres_programs() -> Path | None:
    """Where `initdb` and `postgres` are: on the path, or where Debian puts them."""
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return versions[-1].parent if versions else None


@contextmanager
def postgres_server(folder: Path, programs: Path) -> Iterator[str]:
    """A PostgreSQL server whose data are in `folder`; the address of its database for SQLAlchemy."""
    prefix: list[str] = []
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root; Debian's package made a user for it
        prefix = ["runuser", "-u", "postgres", "--"]
        for part in (folder, *folder.parents):
            if part.is_relative_to("/tmp") and part != Path("/tmp"):
                part.chmod(part.stat().st_mode | 0o011)
        shutil.chown(folder, "postgres")
    data, port = folder / "data", free_port()
    subprocess.run(
        [*prefix, programs / "initdb", "-D", data, "-U", "mlflow", "-A", "trust", "--no-sync"],
        check=True, capture_output=True, cwd=folder,
    )  # fmt: skip
    command = [*prefix, programs / "postgres", "-D", data, "-h", "127.0.0.1", "-p", str(port), "-k", folder, "-F"]
    with (folder / "postgres.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, start_new_session=True)
    try:
        for _ in range(150):
            ready = [programs / "pg_isready", "-h", "127.0.0.1", "-p", str(port), "-q"]
            if subprocess.run(ready, check=False).returncode == 0:
                break
            assert process.poll() is None, (folder / "postgres.log").read_text()
            time.sleep(0.2)
        yield f"postgresql://mlflow@127.0.0.1:{port}/postgres"
    finally:
        os.killpg(process.pid, signal.SIGINT)
        process.wait(timeout=30)


def _wait(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        try:
            urllib.request.urlopen(address, timeout=1).close()
            return
        except OSError:
            assert process.poll() is None, log.read_text()
            time.sleep(0.2)
    raise AssertionError(f"{address} does not answer:\n{log.read_text()}")
