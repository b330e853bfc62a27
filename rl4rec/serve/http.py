"""The policy over HTTP for callers who need not be trusted: `rl4rec serve`.

Requests and answers are those of `mlflow models serve` (`dataframe_records` or `dataframe_split`, `params`; see
`serving.py`), as JSON only. MLflow's own server reads a body of any size, answers some broken requests with status 500
or with a traceback, and ignores what it does not know, a misspelt `params` among it. Here a body has at most
`MAX_BODY` bytes, what is not expected is refused with status 4xx and a message, and a connection that stalls is cut.
"""

from __future__ import annotations

import asyncio
import json
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, Literal

import uvicorn
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from rl4rec.errors import UserError
from rl4rec.serve.recommender import InvalidRequest, Recommender, id_text

MAX_BODY = 2**20  # bytes
MAX_CONNECTIONS = 512  # beyond them requests get status 503

_FORM = (
    '{"dataframe_records": [{"history": ["id", ...], "exclude": ["id", ...]}, ...], "params": {"k": 10}}, where '
    "exclude and params may be left out, and an id is text or a whole number"
)
_Ids = Annotated[list[Annotated[str, BeforeValidator(id_text)]], Field(fail_fast=True)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class _Record(_Part):
    history: _Ids
    exclude: _Ids | None = None


class _Split(_Part):
    columns: list[Literal["history", "exclude"]]
    data: Annotated[list[Annotated[list[Any], Field(fail_fast=True)]], Field(fail_fast=True)]
    index: Any = None  # pandas writes one; rows are answered in their order


class _Params(_Part):
    k: int = 10


class _Body(_Part):
    dataframe_records: Annotated[list[_Record], Field(fail_fast=True)] | None = None
    dataframe_split: _Split | None = None
    params: _Params | None = None


def answer(recommender: Recommender, body: bytes) -> bytes:
    """The JSON answer to a JSON request.

    Raises:
        InvalidRequest: the request is not of the expected form, or too large.
    """
    try:
        content = json.loads(body.decode(), object_pairs_hook=_distinct, parse_constant=_no_constant)
        asked = _Body.model_validate(content)
        if (asked.dataframe_records is None) == (asked.dataframe_split is None):
            raise InvalidRequest(f"expected {_FORM}, or dataframe_split in place of dataframe_records")
        records = asked.dataframe_records if asked.dataframe_split is None else _records(asked.dataframe_split)
    except InvalidRequest:
        raise
    except RecursionError:
        raise InvalidRequest("expected a JSON object, got one that is nested too deep") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"])) or "the request"
        wrong = {"model_type": "should be an object", "extra_forbidden": "not expected here"}
        message = wrong.get(first["type"], first["msg"].removeprefix("Value error, "))
        raise InvalidRequest(f"{place[:100]}: {message[:200]}. Expected {_FORM}") from None
    except ValueError as error:  # not UTF-8, not JSON, or a number of thousands of digits
        raise InvalidRequest(f"expected a JSON object in UTF-8 ({str(error)[:200]})") from None
    assert records is not None
    answers = recommender.answer(
        [record.history for record in records],
        k=(asked.params or _Params()).k,
        exclude=[record.exclude or [] for record in records],
    )
    return json.dumps({"predictions": [found._asdict() for found in answers]}).encode()


def _records(split: _Split) -> list[_Record]:
    columns = split.columns
    if len(set(columns)) < len(columns) or any(len(row) != len(columns) for row in split.data):
        raise InvalidRequest("dataframe_split: expected different columns, and as many values in every row of data")
    return [_Record.model_validate(dict(zip(columns, row, strict=True))) for row in split.data]


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise InvalidRequest(f"a key is given twice among {str(list(found))[:100]}")
    return found


def _no_constant(name: str) -> None:
    raise InvalidRequest(f"expected JSON, which has no {name}")


def make_app(recommender: Recommender) -> Starlette:
    """`POST /invocations`, and `GET /ping` or `/health`, as an ASGI application."""
    # One request at a time: scoring uses all cores by itself, and memory does not grow with the clients that wait.
    turn, worker = asyncio.Lock(), ThreadPoolExecutor(1, "recommender")

    async def invocations(request: Request) -> Response:
        kind, _, parameters = request.headers.get("content-type", "").lower().partition(";")
        if kind.strip() != "application/json" or parameters.strip() not in ("", "charset=utf-8"):
            raise HTTPException(415, "expected the content type application/json, in UTF-8")
        try:
            body = await _read(request)
            async with turn:
                if await request.is_disconnected():
                    raise ClientDisconnect
                found = await asyncio.get_running_loop().run_in_executor(worker, answer, recommender, body)
        except InvalidRequest as error:
            raise HTTPException(400, str(error)) from None
        except ClientDisconnect:
            return Response(status_code=400)  # to nobody
        return Response(found, media_type="application/json")

    async def ping(request: Request) -> Response:
        return Response("\n", media_type="application/json")

    async def refuse(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        content = json.dumps({"error_code": "BAD_REQUEST", "message": error.detail})  # in the words of MLflow
        return Response(content, error.status_code, error.headers, media_type="application/json")

    routes = [Route("/ping", ping), Route("/health", ping), Route("/invocations", invocations, methods=["POST"])]
    app = Starlette(routes=routes, exception_handlers={HTTPException: refuse})
    app.router.redirect_slashes = False
    return app


async def _read(request: Request) -> bytes:
    """The body, read only as far as it may be long."""
    body = bytearray()
    declared = request.headers.get("content-length", "0")
    if int(declared) <= MAX_BODY:
        async for part in request.stream():
            body += part
            if len(body) > MAX_BODY:
                break
        else:
            return bytes(body)
    raise HTTPException(413, f"expected a body of at most {MAX_BODY} bytes (`rl4rec recommend` takes whole files)")


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        UserError: the address cannot be had.
    """
    try:
        listening = socket.create_server((host, port), backlog=MAX_CONNECTIONS)
    except OSError as error:
        raise UserError(f"cannot listen on {host}:{port} ({error}). Choose another --port or --host.") from None
    # Connections inherit it. Without it an answer's body waits 40 ms for the client to acknowledge the headers.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def run(recommender: Recommender, listening: socket.socket, *, timeout: float) -> None:
    """Serve until the process is told to stop (SIGINT, SIGTERM); open requests are answered first.

    Args:
        recommender: what ranks.
        listening: from `listen`.
        timeout: seconds from the opening of a connection, or its last answer, to the next complete answer.
    """
    config = uvicorn.Config(
        make_app(recommender),
        http=_with_deadline(timeout),
        ws="none",
        lifespan="off",
        access_log=False,
        log_level="warning",
        proxy_headers=False,
        server_header=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=int(timeout) + 1,
    )
    uvicorn.Server(config).run(sockets=[listening])


def _with_deadline(seconds: float) -> type[asyncio.Protocol]:
    """The protocol of uvicorn, but not waiting for ever for the rest of a request or for its answer to be read."""

    class Deadline(H11Protocol):
        watch: asyncio.TimerHandle

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self.watch = self.loop.call_later(seconds, transport.abort)

        def on_response_complete(self) -> None:
            self.watch.cancel()
            self.watch = self.loop.call_later(seconds, self.transport.abort)
            super().on_response_complete()

        def send_400_response(self, msg: str) -> None:
            super().send_400_response(msg)
            if self.cycle is not None:  # of a request that went wrong in its body: it has its answer
                self.cycle.disconnected = True

        def connection_lost(self, exc: Exception | None) -> None:
            self.watch.cancel()
            super().connection_lost(exc)

    return Deadline
