"""The logged model over HTTP: behind `rl4rec serve`, and behind MLflow's own server."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import polars as pl
import psutil
import pytest
import torch

from rl4rec.data.dataset import PreparedData, Ragged
from rl4rec.data.vocabulary import build_tokenizer
from rl4rec.model.create import create_policy
from rl4rec.ops.tracking import log_policy_model
from rl4rec.params import PolicyParams
from rl4rec.serve.http import MAX_BODY, listen
from rl4rec.serve.recommender import Recommender, load_recommender
from tests.servers import free_port, model_server

ROOT = Path(__file__).parents[2]
ITEMS = [f"i{item}" for item in range(24)]
ITEMS[6:8] = "12", "-7"  # as of data whose ids are whole numbers
JSON = {"Content-Type": "application/json"}
SERVERS = ("rl4rec", "mlflow")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with an untrained policy and its vocabulary."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "params.yaml").write_text("{}")
    (folder / "prepared").mkdir()
    pl.DataFrame({"item": ITEMS, "count": range(24)}).write_parquet(folder / "prepared" / "items.parquet")
    torch.manual_seed(0)
    params = PolicyParams(n_layer=1, n_embd=16, n_head=1, max_history=8)
    policy, _ = create_policy(params, ITEMS, build_tokenizer(ITEMS))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    policy.save_pretrained(folder / "policy")
    return folder


@pytest.fixture(scope="module")
def addresses(folder: Path) -> Iterator[dict[str, str]]:
    """The same logged model behind both servers."""
    data = PreparedData(
        folder=folder / "prepared",
        users=["u"],
        item_ids=ITEMS,
        item_counts=np.arange(24),
        sequences=Ragged.from_rows([[0, 1, 2]]),
        stats={"data_hash": "tiny"},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        experiment = mlflow.create_experiment("served", artifact_location=str(folder / "artifacts"))
        with mlflow.start_run(experiment_id=experiment):
            model = log_policy_model(folder / "policy", data).model_uri
        (folder / "mlflow").mkdir()
        with model_server(folder, model) as ours, model_server(folder / "mlflow", model, mlflow=True) as theirs:
            yield {"rl4rec": ours, "mlflow": theirs}


@pytest.fixture(scope="module")
def recommender(folder: Path) -> Recommender:
    return load_recommender(folder / "policy", folder / "prepared" / "items.parquet")


def send(
    address: str,
    body: bytes | str | Iterator[bytes] | None,
    headers: Mapping[str, str] = JSON,
    *,
    method: str = "POST",
    path: str = "/invocations",
) -> tuple[int, str]:
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=60)
    try:
        connection.request(method, path, body, dict(headers))
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def records(*rows: Mapping[str, Any], **params: Any) -> str:
    return json.dumps({"dataframe_records": rows} | ({"params": params} if params else {}))


def one(history: Any, **others: Any) -> str:
    return records({"history": history}, **others)


def check_good(address: str, recommender: Recommender) -> None:
    histories = [["i3", "i4"], ["i9"], [], ["i1", "strange"], ["?"]]
    excluded = [["i5", "nothing"], [], ["i23"], ["i2"], []]
    body = records(*({"history": h, "exclude": e} for h, e in zip(histories, excluded, strict=True)), k=4)
    status, text = send(address, body)
    assert status == 200, text
    expected = recommender.recommend(histories, k=4, exclude=excluded)
    found = json.loads(text)["predictions"]
    assert [row["items"] for row in found] == [row.items for row in expected]
    assert [row["unknown"] for row in found] == [["nothing"], [], [], ["strange"], ["?"]]
    assert np.allclose([row["scores"] for row in found], [row.scores for row in expected])
    assert found[2]["items"] == ["i22", "i21", "i20", "i19"]  # cold: by popularity, without the excluded i23


@pytest.mark.parametrize("server", SERVERS)
def test_good_requests(addresses: dict[str, str], recommender: Recommender, server: str) -> None:
    address = addresses[server]
    assert send(address, None, method="GET", path="/ping") == (200, "\n")
    check_good(address, recommender)
    (expected,) = recommender.recommend([["i3"]], k=10)
    for body in (
        one(["i3"]),
        one(["i3"], k=10),
        records({"history": ["i3"], "exclude": None}),
        json.dumps({"dataframe_split": {"columns": ["history"], "data": [[["i3"]]]}}),
        json.dumps({"dataframe_split": {"columns": ["exclude", "history"], "index": [7], "data": [[[], ["i3"]]]}}),
    ):
        status, text = send(address, body)
        assert status == 200, text
        assert [row["items"] for row in json.loads(text)["predictions"]] == [expected.items], body
    # Items to exclude for some histories only.
    status, text = send(address, records({"history": ["i3"]}, {"history": ["i3"], "exclude": expected.items[:1]}, k=9))
    assert status == 200, text
    first, second = (row["items"] for row in json.loads(text)["predictions"])
    assert first == expected.items[:9] and second == expected.items[1:10]


@pytest.mark.parametrize("server", SERVERS)
def test_whole_numbers_are_ids(addresses: dict[str, str], recommender: Recommender, server: str) -> None:
    (expected,) = recommender.recommend([["i3", "12", "-7"]], k=5, exclude=[["i5", "99"]])
    assert expected.unknown == ["99"]
    for body in (
        records({"history": ["i3", 12, -7], "exclude": ["i5", 99]}, k=5),
        json.dumps(
            {
                "dataframe_split": {"columns": ["history", "exclude"], "data": [[["i3", 12, -7], ["i5", 99]]]},
                "params": {"k": 5},
            }
        ),
    ):
        status, text = send(addresses[server], body)
        assert status == 200, text
        (found,) = json.loads(text)["predictions"]
        assert (found["items"], found["unknown"]) == (expected.items, ["99"])
    (numbers,) = recommender.recommend([["12", "-7"]], k=5)
    status, text = send(addresses[server], one([12, -7], k=5))
    assert (status, json.loads(text)["predictions"][0]["items"]) == (200, numbers.items)


NO_ID = "an item id must be text or a whole number, got "
# name: body, what rl4rec's message says, what MLflow's does
BAD: dict[str, tuple[str | bytes, str, str]] = {
    "empty body": ("", "expected a JSON object", "valid JSON"),
    "not JSON": ("{history", "expected a JSON object in UTF-8", "valid JSON"),
    "not UTF-8": (b'{"dataframe_records": [{"history": ["\xff"]}]}', "expected a JSON object in UTF-8", "valid JSON"),
    "a list": ("[]", "should be an object. Expected", "must be a JSON dictionary"),
    "no records": ('{"params": {"k": 3}}', "expected {", "dataframe_records"),
    "no rows": (records(), "may have 1 to", "history"),
    "rows that are lists": (json.dumps({"dataframe_records": [["i3"]]}), "should be an object", "history"),
    "no history": (records({"items": ["i3"]}), "history: Field required", "history"),
    "no history in one": (
        records({"history": ["i3"]}, {"exclude": []}),
        "1.history: Field required",
        "expected a list",
    ),
    "text for a history": (one("i3"), "history: Input should be a valid list", "expected a list"),
    "an object for a history": (one({"i3": 1}), "history: Input should be a valid list", "expected a list"),
    "null for a history": (one(None), "history: Input should be a valid list", "expected a list"),
    "a fraction for an id": (one([3.0, 4]), f"history.0: {NO_ID}3.0", f"{NO_ID}3.0"),
    "a truth value among ids": (one(["i3", True]), f"history.1: {NO_ID}True", f"{NO_ID}True"),
    "a number of 100 digits": (one([10**100]), f"history.0: {NO_ID}a huge number", f"{NO_ID}a huge number"),
    "null for an id": (one(["i3", None]), f"history.1: {NO_ID}None", f"{NO_ID}None"),
    "a list for an id": (one([["i3"]]), f"history.0: {NO_ID}a list", f"{NO_ID}a list"),
    "NaN for an id": ('{"dataframe_records": [{"history": [NaN]}]}', "JSON, which has no NaN", f"{NO_ID}nan"),
    "lists in lists": (
        one(json.loads("[" * 400 + "]" * 400)),
        f"history.0: {NO_ID}a list",
        f"{NO_ID}a list",
    ),
    "text to exclude": (records({"history": [], "exclude": "i3"}), "exclude: Input should be", "expected a list"),
    "fractions to exclude": (records({"history": [], "exclude": [0.5]}), f"exclude.0: {NO_ID}0.5", f"{NO_ID}0.5"),
    "k is 0": (one([], k=0), "whole number from 1 to 24", "whole number from 1 to 24"),
    "k is negative": (one([], k=-1), "whole number from 1 to 24", "whole number from 1 to 24"),
    "k is large": (one([], k=25), "whole number from 1 to 24", "whole number from 1 to 24"),
    "k is huge": (one([], k=10**40), "whole number from 1 to 24", "whole number from 1 to 24"),
    "k is a fraction": (one([], k=2.5), "params.k: Input should be a valid integer", "DataType.long"),
    "k is text": (one([], k="3"), "params.k: Input should be a valid integer", "DataType.long"),
    "k is a truth value": (one([], k=True), "params.k: Input should be a valid integer", "DataType.long"),
    "k is null": (one([], k=None), "params.k: Input should be a valid integer", "whole number"),
    "k is a list": (one([], k=[3]), "params.k: Input should be a valid integer", "scalar"),
    "params is a list": ('{"dataframe_records": [{"history": []}], "params": [3]}', "params: should be", "dictionary"),
    "too many rows": (records(*[{"history": []}] * 10_001, k=1), "may have 1 to 10000", "may have 1 to 10000"),
    "a long history": (one(["a"] * 100_001), "at most 100000 item ids", "at most 100000 item ids"),
    "too much in all": (records(*[{"history": []}] * 9000, k=23), "lists of 200000 items", "lists of 200000 items"),
}


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("name", BAD)
def test_bad_requests_are_refused_with_a_reason(
    addresses: dict[str, str], recommender: Recommender, server: str, name: str
) -> None:
    body, *messages = BAD[name]
    status, text = send(addresses[server], body)
    assert status == 400, text
    assert messages[SERVERS.index(server)] in json.loads(text)["message"]
    assert "Traceback" not in text and "stack" not in text and len(text) < 2000
    check_good(addresses[server], recommender)


# What MLflow's server answers with status 500 or a traceback, or lets pass.
STRICT: dict[str, tuple[str | bytes | None, dict[str, str], int, str]] = {
    "nested too deep": ("[" * 100_000, JSON, 400, "nested too deep"),
    "thousands of digits": ('{"params": {"k": %s}}' % ("9" * 5000), JSON, 400, "limit"),
    "a key twice": ('{"dataframe_records": [{"history": ["i1"], "history": ["i2"]}]}', JSON, 400, "given twice"),
    "misspelt params": ('{"dataframe_records": [{"history": []}], "parms": {"k": 3}}', JSON, 400, "parms: not"),
    "misspelt k": (one([], K=3), JSON, 400, "params.K: not expected"),
    "a further column": (records({"history": [], "histroy": ["i1"]}), JSON, 400, "histroy: not expected"),
    "both forms": (
        json.dumps({"dataframe_records": [], "dataframe_split": {"columns": ["history"], "data": []}}),
        JSON, 400, "or dataframe_split in place of",
    ),
    "a row that is too short": (
        json.dumps({"dataframe_split": {"columns": ["history", "exclude"], "data": [[["i1"]]]}}),
        JSON, 400, "as many values in every row",
    ),
    "half a surrogate pair as a key": ('{"\\ud800": 1}', JSON, 400, "unable to parse raw data"),
    "infinity": (one([], k=float("inf")), JSON, 400, "has no Infinity"),
    "no content type": (one([]), {}, 415, "application/json"),
    "CSV": ("history\ni1", {"Content-Type": "text/csv"}, 415, "application/json"),
    "another encoding": (one([]), {"Content-Type": "application/json; charset=latin1"}, 415, "UTF-8"),
    "a large body": ('{"dataframe_records": [{"history": ["%s"]}]}' % ("x" * MAX_BODY), JSON, 413, f"{MAX_BODY} bytes"),
}  # fmt: skip


@pytest.mark.parametrize("name", STRICT)
def test_what_mlflow_lets_pass_or_fails_on(addresses: dict[str, str], recommender: Recommender, name: str) -> None:
    body, headers, expected, message = STRICT[name]
    status, text = send(addresses["rl4rec"], body, headers)
    assert status == expected, text
    assert message in json.loads(text)["message"]
    check_good(addresses["rl4rec"], recommender)


def test_a_body_of_unknown_length_is_read_only_so_far(addresses: dict[str, str], recommender: Recommender) -> None:
    status, text = send(addresses["rl4rec"], iter([b" " * 2**16] * 40))
    assert (status, "at most" in text) == (413, True)
    check_good(addresses["rl4rec"], recommender)


def test_other_methods_and_paths(addresses: dict[str, str]) -> None:
    for method, path, expected in (("GET", "/invocations", 405), ("POST", "/elsewhere", 404), ("GET", "/docs", 404)):
        status, text = send(addresses["rl4rec"], None, method=method, path=path)
        assert (status, json.loads(text)["error_code"]) == (expected, "BAD_REQUEST")


def test_only_this_machine_is_listened_to(addresses: dict[str, str]) -> None:
    for address in addresses.values():
        port = int(address.rpartition(":")[2])
        sockets = psutil.net_connections("tcp")
        found = [entry.laddr.ip for entry in sockets if entry.status == "LISTEN" and entry.laddr.port == port]
        assert found == ["127.0.0.1"]


def test_answers_do_not_wait_for_acknowledgements() -> None:
    with listen("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        connection, _ = listening.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_connection_that_stalls_is_cut(folder: Path, recommender: Recommender) -> None:
    (folder / "data").mkdir(exist_ok=True)
    (folder / "data" / "prepared").symlink_to(folder / "prepared")
    with model_server(folder, str(folder / "policy"), timeout=1) as address:
        host, _, port = address.removeprefix("http://").partition(":")
        begun = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
        for sent in (b"", b"POST /invoc", begun):
            with socket.create_connection((host, int(port)), timeout=30) as connection:
                connection.sendall(sent)
                with contextlib.suppress(ConnectionResetError):
                    assert connection.recv(1) == b""  # closed, where a server that waits would end in a TimeoutError
        check_good(address, recommender)
    assert "Traceback" not in (folder / "server.log").read_text()


def test_a_port_that_is_taken(folder: Path) -> None:
    (folder / "again" / "data").mkdir(parents=True)
    (folder / "again" / "params.yaml").write_text("{}")
    (folder / "again" / "data" / "prepared").symlink_to(folder / "prepared")
    with socket.create_server(("127.0.0.1", port := free_port())):
        command = [sys.executable, "-c", "from rl4rec.cli import main; main()", "serve", "--port", str(port)]
        command += ["--model", str(folder / "policy"), "--root", str(folder / "again")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr and "Traceback" not in done.stderr


def test_hostile_requests_and_many_clients(tmp_path: Path) -> None:
    """The benchmark, in small: every kind of hostile request, then clients at once whose answers are checked."""
    command = [sys.executable, str(ROOT / "benchmarks" / "hostile.py"), "--requests", "300", "--clients", "20"]
    command += ["--seconds", "3", "--out", str(tmp_path / "hostile.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    found = json.loads((tmp_path / "hostile.json").read_text())
    assert sum(found["hostile"]["statuses"].values()) == 300
    assert {"400", "404", "413", "415"} <= found["hostile"]["statuses"].keys()
    assert found["good_between"] == {"requests": 6, "wrong": 0}
    assert found["load"]["requests"] >= 20 and found["load"]["wrong"] == 0
    assert (found["crashes"], found["server_errors"], found["tracebacks"]) == (0, 0, 0)
