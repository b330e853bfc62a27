"""Latency and throughput of the served policy: `python benchmarks/serve.py`.

Ours: the MLflow model of a policy (12,101 made-up items, one layer, width 64) behind `mlflow models serve`, and behind
`rl4rec serve`. The peer: the same architecture as transformers has it, behind `mlflow models serve`, generating ten
item tokens greedily (with beams of one and no repeated item, `no_repeat_ngram_size=1`). All answer the same histories
over HTTP: one request after the other, with 1 and with 64 histories a request, then one history a request from eight
clients at once. The servers run side by side and take turns, so that what else the machine does hits all alike. Writes
`benchmarks/results/serve.json`.
"""

from __future__ import annotations

import http.client
import itertools
import json
import os
import statistics
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import mlflow
import numpy as np
from common import Numbers, now, plain_model, save, serving_workspace
from servers import mlflow_server, policy_server

from rl4rec.data.vocabulary import ITEM_OFFSET
from rl4rec.ops.tracking import log_policy_model

REQUESTS = {1: 100, 64: 10}  # a round
CLIENTS, SECONDS = 8, 5.0  # at once, and for how long a round
ROUNDS = 3
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


class Client:
    """Asks for ten items for some histories at a time, on one connection that is kept open."""

    def __init__(self, address: str, histories: list[list[str]]) -> None:
        self.connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=60)
        self.histories = itertools.cycle(histories)

    def ask(self, size: int) -> float:
        """Milliseconds of a request with `size` histories."""
        rows = [{"history": next(self.histories)} for _ in range(size)]
        body = json.dumps({"dataframe_records": rows}).encode()
        since = now()
        self.connection.request("POST", "/invocations", body, {"Content-Type": "application/json"})
        lists = json.loads(self.connection.getresponse().read())["predictions"]
        took = 1000 * (now() - since)
        assert len(lists) == size and len(lists[0]["items"]) == 10
        return took


def at_once(address: str, histories: list[list[str]]) -> float:
    """Requests of one history a second, from several clients."""
    until, counts = time.monotonic() + SECONDS, [0] * CLIENTS

    def work(number: int) -> None:
        client = Client(address, histories[number:])
        while time.monotonic() < until:
            client.ask(1)
            counts[number] += 1
        client.connection.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / SECONDS


def measure(addresses: dict[str, str], histories: list[list[str]]) -> dict[str, dict[str, Numbers]]:
    took = {name: {size: [] for size in REQUESTS} for name in addresses}  # type: dict[str, dict[int, list[float]]]
    rates: dict[str, list[float]] = {name: [] for name in addresses}
    for address in addresses.values():  # the first requests find nothing warm
        for size in REQUESTS:
            Client(address, histories).ask(size)
    for _ in range(ROUNDS):
        for size, count in REQUESTS.items():
            for name, address in addresses.items():
                client = Client(address, histories)
                took[name][size] += [client.ask(size) for _ in range(count)]
                client.connection.close()
        for name, address in addresses.items():
            rates[name].append(at_once(address, histories))
    return {
        name: {
            f"batch_{size}": {
                "p50_ms": round(statistics.median(each), 2),
                "p99_ms": round(float(np.quantile(each, 0.99)), 2),
                "requests_per_s": round(1000 / statistics.mean(each), 1),
            }
            for size, each in took[name].items()
        }
        | {"at_once": {"clients": CLIENTS, "requests_per_s": round(statistics.median(rates[name]), 1)}}
        for name in addresses
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        folder = Path(scratch)
        data = serving_workspace(folder)
        histories = [[data.item_ids[item] for item in data.sequences[row][:-1]] for row in range(2000)]
        plain_model().save_pretrained(folder / "plain")
        (folder / "peer.py").write_text(PEER.format(offset=ITEM_OFFSET), encoding="utf-8")
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
        experiment = mlflow.create_experiment("serve", artifact_location=str(folder / "artifacts"))
        with mlflow.start_run(experiment_id=experiment):
            ours = log_policy_model(folder / "policy", data)
            peer = mlflow.pyfunc.log_model(
                name="peer",
                python_model=str(folder / "peer.py"),
                artifacts={"model": str(folder / "plain")},
                signature=ours.signature,
                pip_requirements=[],
            )
        for name in ("mlflow", "peer"):
            (folder / name).mkdir()
        addresses = {
            "rl4rec_serve": stack.enter_context(policy_server(folder, "--model", ours.model_uri))[0],
            "mlflow_serve": stack.enter_context(mlflow_server(folder / "mlflow", ours.model_uri))[0],
            "generate": stack.enter_context(mlflow_server(folder / "peer", peer.model_uri))[0],
        }
        found = measure(addresses, histories)
    ratio = {}
    for name in ("rl4rec_serve", "mlflow_serve"):
        for part in ("batch_1", "batch_64"):
            ratio[f"{name}_{part}_p50_vs_generate"] = round(
                found[name][part]["p50_ms"] / found["generate"][part]["p50_ms"], 3
            )
        ratio[f"{name}_requests_per_s_vs_generate"] = round(
            found[name]["at_once"]["requests_per_s"] / found["generate"]["at_once"]["requests_per_s"], 2
        )
    save("serve", "http", ratio, found)


if __name__ == "__main__":
    main()
