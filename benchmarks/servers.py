"""Servers that the benchmarks measure, each in a process of its own on a free port of this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def policy_server(folder: Path, *options: str) -> Iterator[tuple[str, int]]:
    """`rl4rec serve` in a workspace; its address and process id."""
    code = "from rl4rec.cli import main; main()"
    with _started(folder, [sys.executable, "-c", code, "serve", "--root", str(folder), *options, "--port"]) as found:
        yield found


@contextlib.contextmanager
def mlflow_server(folder: Path, model: str) -> Iterator[tuple[str, int]]:
    """`mlflow models serve`; its address and process id."""
    options = ["--env-manager", "local", "--workers", "1", "--port"]
    with _started(folder, [sys.executable, "-m", "mlflow", "models", "serve", "-m", model, *options]) as found:
        yield found


@contextlib.contextmanager
def _started(folder: Path, command: list[str]) -> Iterator[tuple[str, int]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = folder / "server.log"
    with log.open("wb") as out:
        process = subprocess.Popen([*command, str(port)], stdout=out, stderr=out, start_new_session=True)
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(600):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{address}/ping", timeout=2).close()
                break
            if process.poll() is not None:
                raise SystemExit(f"{' '.join(command)} failed:\n{log.read_text(encoding='utf-8')[-3000:]}")
            time.sleep(0.2)
        yield address, process.pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()
