"""The HTTP border: how bodies are read, how answers and streams are written."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from trimtab.server.api_errors import ApiError
from trimtab.server.observation import Timings, current_call

MAX_HEADER_BYTES = 64 << 10
BODY_SECONDS = 30.0


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
    body = bytearray()
    while True:
        try:
            message = await asyncio.wait_for(request.receive(), deadline - time.monotonic())
        except asyncio.TimeoutError:
            close = {"Connection": "close"}
            raise ApiError(408, "The request body took too long.", headers=close) from None
        if message["type"] == "http.disconnect":
            raise ApiError(400, "The request body is incomplete.")
        body += message.get("body", b"")
        if len(body) > max_bytes:
            raise _too_large(max_bytes)
        if not message.get("more_body", False):
            if call := current_call.get():
                call.read = time.perf_counter()
            return bytes(body)


def _too_large(max_bytes: int) -> ApiError:
    return ApiError(
        413,
        f"The request body is larger than {max_bytes} bytes.",
        code="request_too_large",
        headers={"Connection": "close"},
    )


def with_timings(document: Any, timings: Timings | None) -> bytes:
    """A document as JSON, with one more field where timings are wanted."""
    data = msgspec.json.encode(document)
    if timings is None:
        return data
    return data[:-1] + b',"timings":' + msgspec.json.encode(timings) + b"}"


class EventStream:
    """Server-sent events: the status goes out with the first one.

    `named` events carry the tag of their document, its `type`, as their name, and no `[DONE]`
    follows them.
    """

    def __init__(self, send: Send, named: bool = False) -> None:
        self._send = send
        self._named = named
        self.started = False

    async def event(self, document: msgspec.Struct, timings: Timings | None = None) -> None:
        data = b"data: " + with_timings(document, timings) + b"\n\n"
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
