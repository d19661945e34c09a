"""The HTTP border: who may enter, how bodies are read, how answers and streams are written."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from trimtab.server.api_errors import ApiError

MAX_HEADER_BYTES = 64 << 10
BODY_SECONDS = 30.0
OPEN_PATHS = frozenset({"/health", "/ready"})
_HOST = re.compile(rb"[A-Za-z0-9._:\[\]-]*\Z")


class Guard:
    """The outermost layer: every request passes here before anything routes it.

    It decides on the raw ASGI path, never on a URL put together from headers. With a key, every
    path but the open ones is closed, routes that do not exist included.
    """

    def __init__(self, app: ASGIApp, api_key: str | None) -> None:
        self._app = app
        self._key = None if api_key is None else _digest(api_key.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if error := self._refusal(scope):
            await error.response()(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> ApiError | None:
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        if sum(len(name) + len(value) for name, value in headers) > MAX_HEADER_BYTES:
            close = {"Connection": "close"}
            return ApiError(431, "The request headers are too large.", headers=close)
        for name, value in headers:
            if name == b"host" and not _HOST.match(value):
                return ApiError(400, "The Host header is not valid.")
        if self._key is None or scope["path"] in OPEN_PATHS:
            return None
        tokens = [value for name, value in headers if name == b"authorization"]
        scheme, _, token = tokens[0].partition(b" ") if len(tokens) == 1 else (b"", b"", b"")
        given = _digest(token.strip())
        if hmac.compare_digest(given, self._key) and scheme.lower() == b"bearer":
            return None
        return ApiError(
            401,
            "A valid API key is required: Authorization: Bearer KEY.",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


async def read_json_body(request: Request, max_bytes: int) -> bytes:
    """The whole body. Raises ApiError 408, 413 or 415; never holds more than `max_bytes`."""
    content_type = request.headers.get("content-type", "application/json")
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise ApiError(415, "Content-Type must be application/json.")
    if request.headers.get("content-encoding", "identity") != "identity":
        raise ApiError(415, "Content-Encoding is not supported.")
    declared = request.headers.get("content-length", "0")
    if not declared.isdecimal() or int(declared[:20]) > max_bytes:
        raise _too_large(max_bytes)
    deadline = time.monotonic() + BODY_SECONDS
    chunks: list[bytes] = []
    size = 0
    while True:
        try:
            message = await asyncio.wait_for(request.receive(), deadline - time.monotonic())
        except asyncio.TimeoutError:
            close = {"Connection": "close"}
            raise ApiError(408, "The request body took too long.", headers=close) from None
        if message["type"] == "http.disconnect":
            raise ApiError(400, "The request body is incomplete.")
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > max_bytes:
            raise _too_large(max_bytes)
        if not message.get("more_body", False):
            return b"".join(chunks)


def _too_large(max_bytes: int) -> ApiError:
    return ApiError(
        413,
        f"The request body is larger than {max_bytes} bytes.",
        code="request_too_large",
        headers={"Connection": "close"},
    )


class EventStream:
    """Server-sent events: the status goes out with the first one.

    `named` events carry the tag of their document, its `type`, as their name, and no `[DONE]`
    follows them.
    """

    def __init__(self, send: Send, named: bool = False) -> None:
        self._send = send
        self._named = named
        self.started = False

    async def event(self, document: msgspec.Struct) -> None:
        data = b"data: " + msgspec.json.encode(document) + b"\n\n"
        if self._named:
            data = b"event: %s\n%s" % (str(document.__struct_config__.tag).encode(), data)
        await self._write(data)

    async def done(self) -> None:
        """Ends the response."""
        await self._write(b"" if self._named else b"data: [DONE]\n\n", more_body=False)

    async def _write(self, data: bytes, more_body: bool = True) -> None:
        if not self.started:
            self.started = True
            await self._send(
                {
                    "type": "http.response.start",
                    "status": 200,
                    "headers": [
                        (b"content-type", b"text/event-stream; charset=utf-8"),
                        (b"cache-control", b"no-cache"),
                        (b"x-accel-buffering", b"no"),
                    ],
                }
            )
        await self._send({"type": "http.response.body", "body": data, "more_body": more_body})


class Work(Response):
    """An answer that takes long: it is cancelled as soon as its client has gone."""

    def __init__(self, work: Callable[[Scope, Receive, Send], Coroutine[Any, Any, None]]) -> None:
        super().__init__()
        self._work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        working = asyncio.create_task(self._work(scope, receive, send))
        watching = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                working.result()
        finally:
            working.cancel()
            watching.cancel()
            await asyncio.gather(working, watching, return_exceptions=True)


async def _disconnected(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
