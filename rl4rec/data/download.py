"""Downloading a raw file so that a cut, a stall or damage cannot leave a wrong file behind.

The transfer goes to `<name>.part` and resumes from there (HTTP Range, guarded by If-Range so that two versions are
never spliced). Once its size, its SHA-256 (where known) and its gzip integrity are right, it is moved into place and
the digest that was observed is written beside it (`<name>.sha256`, the format of `sha256sum -c`).
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import logging
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl4rec._console import Progress
from rl4rec.errors import UserError

_BLOCK = 1 << 18
_RETRIABLE = (408, 425, 429)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RemoteFile:
    """A file at its official address.

    Raises:
        ValueError: the name is no plain file name, or the address is not `https` (a server on this machine may do
            without).
    """

    name: str
    url: str
    sha256: str | None = None  # None: the host publishes none

    def __post_init__(self) -> None:
        if self.name != Path(self.name).name or self.name in ("", ".."):
            raise ValueError(f"not a plain file name: {self.name!r}")
        if not _protected(self.url):
            raise ValueError(f"not an https address: {self.url}")


def _protected(url: str) -> bool:
    parts = urllib.parse.urlsplit(url)
    return parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost", "::1"))


class _NoDowngrade(urllib.request.HTTPRedirectHandler):
    """Follows redirections, but none that leaves TLS."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if not _protected(newurl):
            raise UserError(f"{req.full_url}: the server redirects to {newurl}, which is not protected by TLS")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Failed(Exception):
    """One attempt failed in a way that another one may not."""


@dataclass
class _Part:
    """The unfinished file, and the server's mark of the version that it belongs to."""

    path: Path

    @property
    def mark(self) -> Path:
        return self.path.with_name(self.path.name + ".etag")

    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def drop(self) -> None:
        self.path.unlink(missing_ok=True)
        self.mark.unlink(missing_ok=True)


def download(remote: RemoteFile, folder: Path, *, timeout_s: float, retries: int, first_pause_s: float = 1.0) -> Path:
    """Fetch a file, resuming an earlier attempt.

    Args:
        remote: what and where from.
        folder: where to; made if it is missing.
        timeout_s: seconds without a byte after which an attempt counts as stalled.
        retries: attempts in a row that may fail without bringing the transfer further, after the first.
        first_pause_s: seconds before the first retry; doubles each time, to at most 30.

    Returns:
        The path of the complete, verified file.

    Raises:
        UserError: the server refused it, or the retries are used up; what was fetched so far is kept for next time
            unless it was damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target, part = folder / remote.name, _Part(folder / f"{remote.name}.part")
    furthest, failures = part.size(), 0
    while True:
        try:
            _fetch(remote.url, part, timeout_s)
            digest = _verify(remote, part)
            break
        except (_Failed, OSError, http.client.HTTPException) as error:
            if part.size() > furthest:
                furthest, failures = part.size(), 0
            failures += 1
            if failures > retries:
                raise UserError(f"{remote.url}: failed {failures} times in a row, last: {error}") from None
            pause = min(first_pause_s * 2 ** (failures - 1), 30.0)
            _log.warning("%s: %s; again in %.0f s", remote.name, error, pause)
            time.sleep(pause)
    os.replace(part.path, target)
    part.drop()
    target.with_name(f"{target.name}.sha256").write_text(f"{digest}  {target.name}\n", encoding="ascii")
    return target


def _fetch(url: str, part: _Part, timeout_s: float) -> None:
    have = part.size()
    headers = {"Accept-Encoding": "identity", "User-Agent": "rl4rec"}
    mark = part.mark.read_text(encoding="utf-8") if part.mark.exists() else ""
    if have and mark:
        headers |= {"Range": f"bytes={have}-", "If-Range": mark}
    try:
        opener = urllib.request.build_opener(_NoDowngrade)  # verifies certificates, as urlopen does
        answer = opener.open(urllib.request.Request(url, headers=headers), timeout=timeout_s)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416:
                part.drop()
                raise _Failed("the server has a different file than the unfinished one here; starting over") from None
            if error.code < 500 and error.code not in _RETRIABLE:
                raise UserError(f"{url}: the server refused it: {error.code} {error.reason}") from None
            raise _Failed(f"the server answered {error.code} {error.reason}") from None
    with answer:
        start, total = _extent(answer, have if "Range" in headers else 0, part)
        part.mark.write_text(_version(answer.headers), encoding="utf-8")
        _copy(answer, part, start, total)
    if total is not None and part.size() != total:
        if part.size() > total:
            part.drop()
        raise _Failed(f"got {part.size():,} of {total:,} bytes")


def _version(headers: http.client.HTTPMessage) -> str:
    tag = str(headers.get("ETag", ""))
    return tag if tag and not tag.startswith("W/") else str(headers.get("Last-Modified", ""))


def _extent(answer: http.client.HTTPResponse, asked: int, part: _Part) -> tuple[int, int | None]:
    """Where in the file the answer starts, and the size of the whole file if it is stated."""
    if answer.status == 206:
        extent = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
        if extent is None or int(extent[1]) != asked:
            part.drop()
            raise _Failed("the server resumed at another place than asked; starting over")
        return asked, None if extent[2] == "*" else int(extent[2])
    length = answer.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def _copy(answer: http.client.HTTPResponse, part: _Part, start: int, total: int | None) -> None:
    bar = Progress(part.path.name.removesuffix(".part"), total=total, initial=start, unit="B")
    with part.path.open("r+b" if start else "wb") as file, bar:
        file.seek(start)
        while block := answer.read1(_BLOCK):
            file.write(block)
            bar.update(len(block))
        file.truncate()


def _verify(remote: RemoteFile, part: _Part) -> str:
    with part.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    problem = None
    if remote.sha256 is not None and digest != remote.sha256:
        problem = f"wrong SHA-256: expected {remote.sha256}, got {digest}"
    elif part.size() == 0:
        problem = "the file is empty"
    elif remote.name.endswith(".gz"):
        try:
            with gzip.open(part.path) as archive:
                while archive.read(_BLOCK):
                    pass
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            problem = f"damaged gzip archive: {error}"
    if problem is not None:
        part.drop()
        raise _Failed(f"{problem}; starting over")
    return digest
