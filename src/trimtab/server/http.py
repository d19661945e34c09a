"""The HTTP border: how bodies are read, how answers and streams are written."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from trimtab.server.api_errors import ApiError
from trimtab.server.observation import Timings, current_call

if TYPE_CHECKING:
    from trimtab.server.protocol import DirectBody

encode_json = msgspec.json.Encoder().encode

DIRECT_BODY = "trimtab.direct_body"  # in a scope: protocol.DirectBody
MAX_HEADER_BYTES = 64 << 10
BODY_SECONDS = 30.0
PENDING_AT_ONCE = 64  # puts that are made into one piece of a body


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

    Events are put, not awaited: they leave at once while the client keeps up, and wait here, not
    made yet, while it does not. `named` events carry the tag of their document, its `type`, as
    their name, and no `[DONE]` follows them. `text_template`: see formats.AnswerFormat.
    """

    def __init__(
        self,
        scope: Scope,
        send: Send,
        named: bool = False,
        text_template: Callable[[int], tuple[bytes, bytes] | None] = lambda index: None,
    ) -> None:
        self._direct: DirectBody | None = scope.get(DIRECT_BODY)
        self._send = send
        self._named = named
        self._text_template = text_template
        self._templates: dict[int, tuple[bytes, bytes]] = {}  # by choice, once there is one
        self._pending: list[Callable[[], bytes]] = []
        self._sending: asyncio.Task[None] | None = None  # while anything is pending
        self._failure: Exception | None = None  # of what was pending; raised once
        self._begun = False  # the status is out
        self.started = False  # there has been an event

    def put(
        self, make: Callable[[], Sequence[msgspec.Struct]], timings: Timings | None = None
    ) -> None:
        """The documents of events, in their order, as `make` gives them when they are wanted; the
        timings go with the last one. Raises what `make` raises, for this or an earlier event."""
        self._raise_failure()
        self.started = True
        if self._sending is None and self._begun and self._direct and self._direct.writable:
            if data := self._events(make, timings):
                self._direct.write(data)
            return
        self._pending.append(partial(self._events, make, timings))
        if self._sending is None:
            self._sending = asyncio.ensure_future(self._send_pending())

    def put_text(self, index: int, text: str) -> bool:
        """An event that is more text of a choice and nothing else. False where it cannot leave at
        once as a template says: then nothing was done, and it must be `put`."""
        if self._sending is not None or not self._begun or self._direct is None:
            return False
        template = self._templates.get(index)
        if template is None:
            template = self._text_template(index)
            if template is None:
                return False
            self._templates[index] = template
        before, after = template
        return self._direct.try_write(before + encode_json(text) + after)

    async def end(self) -> None:
        """Ends the response, when all events are out. Raises what `put` raises: then it has not
        ended."""
        if self._sending is not None:
            await self._sending
        self._raise_failure()
        try:
            await self._begin()
            last = b"" if self._named else b"data: [DONE]\n\n"
            await self._send({"type": "http.response.body", "body": last, "more_body": False})
        finally:
            self.close()

    def close(self) -> None:
        """Forget what is not out yet."""
        self._pending.clear()
        if self._sending is not None:
            self._sending.cancel()

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _events(
        self, make: Callable[[], Sequence[msgspec.Struct]], timings: Timings | None
    ) -> bytes:
        parts = [self._event(document) for document in make()]
        if timings is not None and parts:
            parts[-1] = parts[-1][:-3] + b',"timings":' + msgspec.json.encode(timings) + b"}\n\n"
        return b"".join(parts)

    def _event(self, document: msgspec.Struct) -> bytes:
        data = b"data: %b\n\n" % msgspec.json.encode(document)
        if self._named:
            return b"event: %s\n%s" % (str(document.__struct_config__.tag).encode(), data)
        return data

    async def _begin(self) -> None:
        if self._begun:
            return
        self._begun = True
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
        ]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def _send_pending(self) -> None:
        await self._begin()
        while self._pending:
            made, self._pending = self._pending[:PENDING_AT_ONCE], self._pending[PENDING_AT_ONCE:]
            data = b"".join(self._made(made))
            await self._send({"type": "http.response.body", "body": data, "more_body": True})
        self._sending = None

    def _made(self, pending: Sequence[Callable[[], bytes]]) -> Iterator[bytes]:
        """Up to the first that fails: whoever puts or ends next is told of it."""
        for make in pending:
            try:
                yield make()
            except Exception as error:
                self._failure = error
                self._pending.clear()
                return


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
