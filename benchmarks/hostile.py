"""Does `rl4rec serve` survive its callers? `python benchmarks/hostile.py`.

A policy of Beauty's size (12,101 made-up items) is served. First come hostile requests (seeded; `HOSTILE` lists the
kinds): broken JSON, wrong types, bodies that are too large, malformed HTTP, connections that stall or break off. Then
many clients at once send good requests for a while, and every answer is compared with that of a `Recommender` in this
process. Writes `benchmarks/results/hostile.json` (or `--out`); exit status 1 if the server died or restarted, answered
with a status of 500 and above, wrote a traceback to its log, gave a wrong answer, or kept memory.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import random
import socket
import struct
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from common import RESULTS, machine, serving_workspace
from servers import policy_server

from rl4rec.serve.recommender import Recommender, load_recommender

JSON = {"Content-Type": "application/json"}
POST = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
GOOD = 300  # good requests to choose from
THREADS = 8  # that send hostile requests
CHECK_EVERY = 50  # hostile requests
KEPT_MB = 64  # of resident memory after the second half of the hostile requests and the load, above the first half's


class Port:
    """Sends requests to the server, and counts what comes back."""

    def __init__(self, address: str) -> None:
        self.host, _, port = address.removeprefix("http://").partition(":")
        self.port = int(port)
        self.statuses: Counter[str] = Counter()

    def connect(self) -> socket.socket:
        return socket.create_connection((self.host, self.port), timeout=60)

    def send(
        self, body: bytes, headers: dict[str, str] = JSON, method: str = "POST", path: str = "/invocations"
    ) -> None:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            answer.read()
            self.statuses[str(answer.status)] += 1
        except (BrokenPipeError, ConnectionResetError, http.client.BadStatusLine):
            self.statuses["closed"] += 1
        finally:
            connection.close()

    def raw(self, data: bytes, *, read: bool = True, reset: bool = False) -> None:
        """Bytes as they are; `reset`: break the connection off instead of closing it."""
        with self.connect() as connection, contextlib.suppress(ConnectionError):
            if reset:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.sendall(data)
            if not read:
                self.statuses["not read"] += 1
                return
            connection.shutdown(socket.SHUT_WR)
            found = connection.recv(65536)
            status = found[9:12].decode("latin1") if found.startswith(b"HTTP/1.1 ") else "closed"
            self.statuses[status] += 1


Kind = Callable[[random.Random, Port, dict[str, Any]], None]
VALUES = (
    None,
    True,
    -1,
    0,
    2.5,
    10**30,
    "",
    "i1",
    "\x00",
    "\ud800",
    [],
    [[]],
    {},
    {"history": ["i1"]},
    [None],
    ["i1", 7],
)
SMUGGLED = (
    b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % 10**30,
    b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n{}",
    b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n{}",
    b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}",
    b"POST /invocations HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n{}\r\n0\r\n\r\n",
    b"POST /invocations HTTP/9.9\r\nHost: x\r\n\r\n",
    b"POST /invocations HTTP/1.1\r\n\r\n",
    b"GET http://[::1 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /%ff%fe%00 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /ping HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    b"GET /ping HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
    b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # the beginning of TLS
    b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n" * 50,
)


def bytes_flipped(rng: random.Random, port: Port, good: dict[str, Any]) -> None:
    body = bytearray(json.dumps(good).encode())
    for _ in range(rng.randint(1, 8)):
        body[rng.randrange(len(body))] = rng.randrange(256)
    port.send(bytes(body))


def cut_short(rng: random.Random, port: Port, good: dict[str, Any]) -> None:
    body = json.dumps(good).encode()
    port.send(body[: rng.randrange(len(body))])


def value_replaced(rng: random.Random, port: Port, good: dict[str, Any]) -> None:
    places: list[tuple[Any, Any]] = []
    todo: list[Any] = [good]
    while todo:
        node = todo.pop()
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                todo.append(node[key])
    node, key = rng.choice(places)
    node[key] = rng.choice(VALUES)
    port.send(json.dumps(good).encode())


def key_renamed(rng: random.Random, port: Port, good: dict[str, Any]) -> None:
    node = rng.choice([good, good["dataframe_records"][0], good["params"]])
    key = rng.choice(list(node))
    node[rng.choice([key.upper(), key + " ", "", "\ud800", "__class__", "inputs", "messages"])] = node.pop(key)
    port.send(json.dumps(good).encode())


def key_twice(rng: random.Random, port: Port, good: dict[str, Any]) -> None:
    text = json.dumps(good)
    port.send((text[:-1] + "," + text[1:]).encode())


def nested(rng: random.Random, port: Port, good: dict[str, Any]) -> None:
    deep = rng.choice([50, 900, 5_000, 200_000])
    opened, closed = rng.choice([("[", "]"), ('{"a":', "}")])
    inner = "1" if opened != "[" else ""
    text = opened * deep + inner + (closed * deep if rng.random() < 0.5 else "")
    port.send(rng.choice([text, '{"dataframe_records": [{"history": ' + text + "}]}"]).encode())


def numbers(rng: random.Random, port: Port, good: dict[str, Any]) -> None:
    k = rng.choice(["9" * 5000, "1e999", "-0", "NaN", "-Infinity", "1E400", "0x10", "1_0", "٣", str(2**63), "12102"])
    port.send(('{"dataframe_records": [{"history": []}], "params": {"k": ' + k + "}}").encode())


def large(rng: random.Random, port: Port, good: dict[str, Any]) -> None:
    text = rng.choice(["x" * 1_500_000, '","'.join(["i1"] * 400_000), "i1"])
    body = ('{"dataframe_records": [{"history": ["' + text + '"]}]}').encode()
    if rng.random() < 0.3:  # in chunks, so that no length is declared
        port.raw(POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n")
    else:
        port.send(body)


def expensive(rng: random.Random, port: Port, good: dict[str, Any]) -> None:
    rows, k = rng.choice([(10_001, 1), (10_000, 21), (1000, 1), (40, 5000), (1, 12_101), (17, 12_101)])
    port.send(json.dumps({"dataframe_records": [{"history": ["i1"]}] * rows, "params": {"k": k}}).encode())


def wrong_headers(rng: random.Random, port: Port, good: dict[str, Any]) -> None:
    kinds = [
        "text/csv",
        "application/vnd.apache.parquet",
        "",
        "application/json; charset=utf-16",
        "x" * 5000,
        "a\xff/b",
    ]
    port.send(json.dumps(good).encode(), {"Content-Type": rng.choice(kinds)})


def wrong_method_or_path(rng: random.Random, port: Port, good: dict[str, Any]) -> None:
    method = rng.choice(["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "HEAD", "BREW"])
    path = rng.choice(["/invocations", "/", "/docs", "/invocations/", "//", "/ping?" + "a" * 9000, "/%00", "*"])
    port.send(json.dumps(good).encode(), JSON, method, path)


def noise(rng: random.Random, port: Port, good: dict[str, Any]) -> None:
    port.raw(rng.randbytes(rng.choice([1, 100, 100_000])))


def malformed(rng: random.Random, port: Port, good: dict[str, Any]) -> None:
    port.raw(rng.choice(SMUGGLED))


def broken_off(rng: random.Random, port: Port, good: dict[str, Any]) -> None:
    """Gone in the middle of the request, or before the answer."""
    body = json.dumps(good).encode()
    data = POST + b"Content-Length: %d\r\n\r\n" % len(body) + body
    port.raw(rng.choice([data, data[: rng.randrange(len(data))]]), read=False, reset=rng.random() < 0.5)


HOSTILE: tuple[Kind, ...] = (
    bytes_flipped, cut_short, value_replaced, value_replaced, key_renamed, key_twice, nested, numbers, large, expensive,
    wrong_headers, wrong_method_or_path, noise, malformed, broken_off,
)  # fmt: skip


def good_requests(recommender: Recommender) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Requests and their right answers."""
    rng = np.random.default_rng(0)
    pairs = []
    for _ in range(GOOD):
        rows = int(rng.choice([1, 1, 1, 4]))
        histories = [[f"i{item}" for item in rng.integers(0, 12_200, rng.integers(0, 30))] for _ in range(rows)]
        exclude = [[f"i{item}" for item in rng.integers(0, 12_101, 3)] for _ in range(rows)]
        k = int(rng.choice([5, 10, 20]))
        records = [{"history": h, "exclude": e} for h, e in zip(histories, exclude, strict=True)]
        answers = [row._asdict() for row in recommender.answer(histories, k=k, exclude=exclude)]
        pairs.append(({"dataframe_records": records, "params": {"k": k}}, answers))
    return pairs


def right(connection: http.client.HTTPConnection, body: bytes, expected: list[dict[str, Any]]) -> tuple[int, bool]:
    """Status of a good request, and whether its answer is right; of scores, to six digits."""
    connection.request("POST", "/invocations", body, JSON)
    answer = connection.getresponse()
    content = answer.read()
    if answer.status != 200:
        return answer.status, False
    found = json.loads(content)["predictions"]
    same = len(found) == len(expected) and all(
        (row["items"], row["unknown"]) == (wanted["items"], wanted["unknown"])
        and np.allclose(row["scores"], wanted["scores"], rtol=1e-5, atol=1e-6)
        for row, wanted in zip(found, expected, strict=True)
    )
    return 200, same


def attack(port: Port, goods: list[tuple[dict[str, Any], list[dict[str, Any]]]], numbers: range) -> Counter[str]:
    """Send hostile requests from some threads, with good ones in between; statuses and wrong answers of those."""
    checked: Counter[str] = Counter()
    idle = [port.connect() for _ in range(20)]  # that never say anything

    def one(number: int) -> None:
        rng = random.Random(number)
        HOSTILE[number % len(HOSTILE)](rng, port, json.loads(json.dumps(rng.choice(goods)[0])))
        if number % CHECK_EVERY == 0:
            body, expected = rng.choice(goods)
            connection = http.client.HTTPConnection(port.host, port.port, timeout=60)
            status, same = right(connection, json.dumps(body).encode(), expected)
            connection.close()
            checked[str(status)] += 1
            checked["wrong"] += not same

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(one, numbers))
    for connection in idle:
        connection.close()
    return checked


def load(
    port: Port, goods: list[tuple[dict[str, Any], list[dict[str, Any]]]], clients: int, seconds: float
) -> tuple[Counter[str], list[float]]:
    """Good requests from many clients at once; statuses and wrong answers, and the milliseconds of each."""
    counted: Counter[str] = Counter()
    took: list[float] = []
    until = time.monotonic() + seconds
    bodies = [(json.dumps(body).encode(), expected) for body, expected in goods]

    def client(number: int) -> None:
        rng = random.Random(number)
        connection = http.client.HTTPConnection(port.host, port.port, timeout=120)
        while time.monotonic() < until:
            since = time.perf_counter()
            try:
                status, same = right(connection, *rng.choice(bodies))
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                counted[type(error).__name__] += 1
                counted["failed"] += 1
                continue
            took.append(1000 * (time.perf_counter() - since))
            counted[str(status)] += 1
            counted["wrong"] += not same
        connection.close()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return counted, took


def resident_mb(process: psutil.Process) -> float:
    return round(float(process.memory_info().rss) / 2**20, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--out", type=Path, default=RESULTS / "hostile.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        data = serving_workspace(folder)
        recommender = load_recommender(folder / "policy", data.folder / "items.parquet")
        goods = good_requests(recommender)
        with policy_server(folder, "--model", str(folder / "policy"), "--timeout", "60") as (address, pid):
            port, process = Port(address), psutil.Process(pid)
            started = process.create_time()
            warm, _ = load(port, goods, 4, min(args.seconds, 3))
            memory = {"warm": resident_mb(process)}
            since = time.perf_counter()
            checked = attack(port, goods, range(args.requests // 2))
            memory["half_way"] = resident_mb(process)
            checked += attack(port, goods, range(args.requests // 2, args.requests))
            hostile_seconds = time.perf_counter() - since
            memory["after_hostile"] = resident_mb(process)
            loaded, took = load(port, goods, args.clients, args.seconds)
            memory["after_load"] = resident_mb(process)
            alive = process.is_running() and psutil.Process(pid).create_time() == started
        log = (folder / "server.log").read_text(encoding="utf-8", errors="replace")
    tracebacks = log.count("Traceback")
    statuses = dict(sorted(port.statuses.items()))
    result = {
        "hostile": {"requests": args.requests, "seconds": round(hostile_seconds, 1), "statuses": statuses},
        "good_between": {"requests": checked["200"], "wrong": checked["wrong"]},
        "load": {
            "clients": args.clients,
            "seconds": args.seconds,
            "requests": loaded["200"],
            "requests_per_s": round(loaded["200"] / args.seconds, 1),
            "p50_ms": round(float(np.quantile(took, 0.5)), 1),
            "p99_ms": round(float(np.quantile(took, 0.99)), 1),
            "wrong": loaded["wrong"] + loaded["failed"],
        },
        "memory_mb": memory,
        "crashes": int(not alive),
        "server_errors": sum(
            count
            for found in (port.statuses, warm, checked, loaded)
            for code, count in found.items()
            if code.isdigit() and int(code) >= 500
        ),
        "tracebacks": tracebacks,
        "machine": machine(),
    }  # fmt: skip
    text = json.dumps(result, indent=2) + "\n"
    args.out.write_text(text, encoding="utf-8")
    sys.stdout.write(text)
    wrong = result["good_between"]["wrong"] + result["load"]["wrong"] + result["crashes"]  # type: ignore[index]
    kept = memory["after_load"] - memory["half_way"]
    if wrong or result["server_errors"] or tracebacks or kept > KEPT_MB:
        raise SystemExit(f"the server did not survive unharmed; the end of its log:\n{log[-5000:]}")


if __name__ == "__main__":
    main()
