"""Latency and throughput of the served policy: `python benchmarks/serve.py`.

Ours: the MLflow model of a policy (12,101 made-up items, one layer, width 64) behind `mlflow models serve`. The peer:
the same architecture as transformers has it, behind the same server, generating ten item tokens greedily (with beams of
one and no repeated item, `no_repeat_ngram_size=1`). Both answer the same histories over HTTP, one request after the
other, with 1 and with 64 histories a request. Writes `benchmarks/results/serve.json`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import polars as pl
from common import POLICY, Numbers, made_up_data, now, plain_model, save

from rl4rec.data.vocabulary import ITEM_OFFSET, build_tokenizer
from rl4rec.policy_init import create_policy
from rl4rec.tracking import log_policy_model

REQUESTS = {1: 200, 64: 30}
PEER = """
from pathlib import Path
import mlflow, pandas as pd, torch
from mlflow.pyfunc.model import PythonModel
from transformers import GPT2LMHeadModel

class Generate(PythonModel):
    def load_context(self, context):
        self.model = GPT2LMHeadModel.from_pretrained(context.artifacts["model"]).train(False)

    def predict(self, model_input, params=None):
        rows = [[int(item[1:]) + {offset} for item in row] for row in model_input["history"]]
        width = max(map(len, rows))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
        with torch.no_grad():
            out = self.model.generate(ids, attention_mask=(ids > 0).long(), max_new_tokens=10, min_new_tokens=10,
                                      do_sample=False, no_repeat_ngram_size=1, pad_token_id=0)
        return pd.DataFrame({{"items": [[f"i{{int(i) - {offset}}}" for i in row] for row in out[:, width:]]}})

mlflow.models.set_model(Generate())
"""


@contextlib.contextmanager
def served(model: str) -> Iterator[str]:
    """`mlflow models serve`; the address of its invocations."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "models",
        "serve",
        "-m",
        model,
        "--env-manager",
        "local",
        "-p",
        str(port),
    ]
    process = subprocess.Popen(
        [*command, "-w", "1"],
        env=os.environ,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(600):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=2).close()
                break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def measure(address: str, histories: list[list[str]]) -> dict[str, Numbers]:
    found: dict[str, Numbers] = {}
    for size, count in REQUESTS.items():
        seconds = []
        for number in range(count + 5):
            rows = [histories[(number * size + row) % len(histories)] for row in range(size)]
            body = json.dumps({"dataframe_records": [{"history": row} for row in rows]}).encode()
            request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
            since = now()
            with urllib.request.urlopen(request, timeout=60) as answer:
                lists = json.loads(answer.read())["predictions"]
            seconds.append(now() - since)
            assert len(lists) == size and len(lists[0]["items"]) == 10
        seconds = seconds[5:]
        found[f"batch_{size}"] = {
            "p50_ms": round(1000 * statistics.median(seconds), 2),
            "p99_ms": round(1000 * float(np.quantile(seconds, 0.99)), 2),
            "histories_per_s": round(size / statistics.median(seconds), 1),
        }
    return found


def main() -> None:
    data = made_up_data()
    histories = [[data.item_ids[item] for item in data.sequences[row][:-1]] for row in range(2000)]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        mlflow.set_experiment(artifact_location=str(folder / "artifacts"), experiment_name="serve")
        policy, _ = create_policy(POLICY, data.item_ids, build_tokenizer(data.item_ids))
        policy.save_pretrained(folder / "policy")
        prepared = folder / "prepared"
        prepared.mkdir()
        pl.DataFrame({"item": data.item_ids, "count": data.item_counts}).write_parquet(prepared / "items.parquet")
        plain_model().save_pretrained(folder / "plain")
        (folder / "peer.py").write_text(PEER.format(offset=ITEM_OFFSET), encoding="utf-8")
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        with mlflow.start_run():
            from dataclasses import replace

            ours = log_policy_model(folder / "policy", replace(data, folder=prepared))
            peer = mlflow.pyfunc.log_model(
                name="peer",
                python_model=str(folder / "peer.py"),
                artifacts={"model": str(folder / "plain")},
                signature=ours.signature,
                pip_requirements=[],
            )
        result = {}
        for name, model in (("ours", ours), ("generate", peer)):
            with served(model.model_uri) as address:
                result[name] = measure(address, histories)
    ratio = {
        f"{key}_batch_{size}_vs_generate": round(
            result["ours"][f"batch_{size}"][key] / result["generate"][f"batch_{size}"][key], 3
        )
        for size in REQUESTS
        for key in ("p50_ms", "histories_per_s")
    }
    save("serve", "http", ratio, result)


if __name__ == "__main__":
    main()
