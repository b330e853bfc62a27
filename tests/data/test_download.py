"""Downloads from a local server that cuts, stalls, corrupts, ignores Range or has a new version."""

import gzip
import hashlib
import http.server
import random
import threading
import time
from collections.abc import Iterator

import pytest

from rl4rec.data.download import RemoteFile, download
from rl4rec.data.sources import amazon
from rl4rec.errors import UserError
from rl4rec.params import DataParams

CONTENT = gzip.compress(random.Random(0).randbytes(300_000), mtime=0)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Answers each request by the next of `plan`, then normally."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.plan: list[str] = []
        self.ranges: list[str | None] = []
        self.content, self.etag = CONTENT, '"v1"'
        self.release = threading.Event()

    def url(self, name: str = "x.gz") -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        server.ranges.append(self.headers.get("Range"))
        what = server.plan.pop(0) if server.plan else "whole"
        if what.isdigit():
            self.send_error(int(what))
            return
        body, start = server.content, 0
        if self.headers.get("Range") and self.headers.get("If-Range") == server.etag and what != "ignore-range":
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        if start >= len(body):
            self.send_error(416)
            return
        shift = 7 if what == "wrong-place" else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start - shift}-{len(body) - 1}/{len(body)}")
        if what != "no-length":
            self.send_header("Content-Length", str(len(body) - start + shift))
        self.send_header("ETag", server.etag)
        self.end_headers()
        part = body[start - shift :]
        if what == "corrupt":
            part = part[:1000] + bytes([part[1000] ^ 255]) + part[1001:]
        if what in ("cut", "stall"):
            part = part[:100_000]
        if what == "nothing":
            part = b""
        self.wfile.write(part)
        self.wfile.flush()
        if what == "stall":
            server.release.wait(5)
        self.close_connection = True


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.release.set()
        server.shutdown()
        thread.join()


def fetch(server: Server, folder, *, sha256: str | None = SHA256, retries: int = 2, timeout_s: float = 5.0):
    remote = RemoteFile("x.gz", server.url(), sha256)
    return download(remote, folder, timeout_s=timeout_s, retries=retries, first_pause_s=0.001)


def assert_complete(folder, content: bytes = CONTENT) -> None:
    assert (folder / "x.gz").read_bytes() == content
    assert (folder / "x.gz.sha256").read_text() == f"{hashlib.sha256(content).hexdigest()}  x.gz\n"
    assert sorted(path.name for path in folder.iterdir()) == ["x.gz", "x.gz.sha256"]


def test_straight(server, tmp_path):
    assert fetch(server, tmp_path / "new" / "raw") == tmp_path / "new" / "raw" / "x.gz"
    assert_complete(tmp_path / "new" / "raw")
    assert server.ranges == [None]


def test_cut_is_resumed_where_it_stopped(server, tmp_path):
    server.plan = ["cut"]
    fetch(server, tmp_path)
    assert_complete(tmp_path)
    assert server.ranges == [None, "bytes=100000-"]


def test_retries_count_only_while_nothing_comes(server, tmp_path):
    server.plan = ["cut", "cut"]
    fetch(server, tmp_path, retries=1)
    assert server.ranges == [None, "bytes=100000-", "bytes=200000-"]
    assert_complete(tmp_path)


def test_stall_is_noticed_and_resumed(server, tmp_path):
    server.plan = ["stall"]
    start = time.monotonic()
    fetch(server, tmp_path, timeout_s=0.2)
    assert time.monotonic() - start < 3
    assert_complete(tmp_path)
    assert server.ranges == [None, "bytes=100000-"]


@pytest.mark.parametrize("sha256", [SHA256, None], ids=["digest", "gzip"])
def test_damage_starts_over(server, tmp_path, sha256):
    server.plan = ["corrupt"]
    fetch(server, tmp_path, sha256=sha256)
    assert_complete(tmp_path)
    assert server.ranges == [None, None]


def test_a_server_that_ignores_range(server, tmp_path):
    server.plan = ["cut", "ignore-range"]
    fetch(server, tmp_path)
    assert_complete(tmp_path)
    assert server.ranges == [None, "bytes=100000-"]


def test_a_server_that_resumes_at_another_place(server, tmp_path, caplog):
    server.plan = ["cut", "wrong-place"]
    fetch(server, tmp_path)
    assert_complete(tmp_path)
    assert "resumed at another place" in caplog.text


def test_a_new_version_is_not_spliced_to_the_old_one(server, tmp_path):
    server.plan = ["cut", "503", "503"]
    with pytest.raises(UserError, match="answered 503"):
        fetch(server, tmp_path)
    assert (tmp_path / "x.gz.part").stat().st_size == 100_000
    server.content, server.etag = gzip.compress(b"new" * 99_999), '"v2"'
    fetch(server, tmp_path, sha256=None)
    assert_complete(tmp_path, server.content)


def test_an_earlier_run_is_resumed(server, tmp_path):
    server.plan = ["cut", "nothing"]
    with pytest.raises(UserError, match="got 100,000 of 300,"):
        fetch(server, tmp_path, retries=1)
    assert not (tmp_path / "x.gz").exists()
    server.ranges.clear()
    fetch(server, tmp_path)
    assert server.ranges == ["bytes=100000-"]
    assert_complete(tmp_path)


def test_a_complete_part_that_was_not_moved_yet(server, tmp_path):
    (tmp_path / "x.gz.part").write_bytes(CONTENT)
    (tmp_path / "x.gz.part.etag").write_text('"v1"')
    fetch(server, tmp_path)
    assert_complete(tmp_path)


def test_unknown_length_relies_on_the_archive(server, tmp_path):
    server.plan = ["no-length"]
    fetch(server, tmp_path, sha256=None)
    assert_complete(tmp_path)


def test_always_damaged(server, tmp_path):
    server.plan = ["corrupt"] * 3
    with pytest.raises(UserError, match="failed 3 times in a row, last: wrong SHA-256"):
        fetch(server, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("status", ["403", "404", "410"])
def test_a_refusal_is_not_retried(server, tmp_path, status):
    server.plan = [status]
    with pytest.raises(UserError, match=f"{server.url()}: the server refused it: {status}"):
        fetch(server, tmp_path)
    assert len(server.ranges) == 1


def test_a_busy_server_is_retried(server, tmp_path):
    server.plan = ["429", "500"]
    fetch(server, tmp_path)
    assert_complete(tmp_path)


def test_nobody_there(tmp_path):
    with Server() as closed:
        remote = RemoteFile("x.gz", closed.url())
    with pytest.raises(UserError, match="failed 2 times in a row"):
        download(remote, tmp_path, timeout_s=0.5, retries=1, first_pause_s=0.001)


def test_beauty_takes_the_next_address_where_one_fails(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    remotes = tuple(RemoteFile(name, server.url(name)) for name in ("reviews_Beauty_5.json.gz", "ratings_Beauty.csv"))
    monkeypatch.setattr(amazon, "OFFICIAL", remotes)
    server.plan, server.content = ["404"], b"u,A,5.0,3\n"
    files = amazon.fetch_beauty(DataParams())
    assert [str(file) for file in files] == ["data/raw/ratings_Beauty.csv"]
    monkeypatch.delenv("RL4REC_DATA_HOME", raising=False)
    assert amazon.find_beauty(DataParams()) == files
    assert amazon.read_beauty(files).rows() == [("u", "A", 3)]


def test_beauty_says_what_to_put_where(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(amazon, "OFFICIAL", (RemoteFile("ratings_Beauty.csv", server.url()),))
    server.plan = ["404"]
    with pytest.raises(
        UserError, match=r"refused it: 404[^\0]*Put one of reviews_Beauty_5.json.gz,[^\0]*RL4REC_DATA_HOME"
    ):
        amazon.fetch_beauty(DataParams())
    with pytest.raises(UserError, match=r"download.enabled is false\. Put one of"):
        amazon.fetch_beauty(DataParams.model_validate({"download": {"enabled": False}}))
