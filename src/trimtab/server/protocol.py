"""uvicorn's HTTP protocol, with the limits that it lacks: on connections, headers, slow readers."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import resource
import socket
import time
from email.utils import formatdate
from typing import Any

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from trimtab.server.api_errors import bad_request
from trimtab.server.http import DIRECT_BODY, MAX_HEADER_BYTES

HEADER_SECONDS = 10.0
READ_SECONDS = 60.0  # a client that takes nothing of what waits for it is cut off
LEFTOVER_SECONDS = 30.0  # for the rest of a body that was answered before it was all there
SEND_BUFFER_BYTES = 256 << 10  # of the kernel; a token is some hundred bytes
RESERVED_FILES = 256  # descriptors that connections must leave
# A peer that vanished is noticed after this many seconds, whether data is under way or not.
KEEPALIVE = ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3))
VANISHED_MILLISECONDS = 60_000
# What may arrive in one read together with the end of the headers; those that came complete are
# measured exactly by `http.Guard`.
_SLACK_BYTES = 256 << 10

_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
_TOO_MANY = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\n"
_TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\n"
_NOT_HTTP_BODY = msgspec.json.encode(bad_request("This is not a valid HTTP request.").document)
_NOT_HTTP = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\nconnection: close\r\n\r\n%s" % (len(_NOT_HTTP_BODY), _NOT_HTTP_BODY)
)
_TAIL = b"content-length: 0\r\nconnection: close\r\n\r\n"


def max_connections(wanted: int) -> int:
    """How many the system lets us have: as many files as it allows are asked for first."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    if soft == resource.RLIM_INFINITY:
        return wanted
    return max(1, min(wanted, soft - RESERVED_FILES))


class DirectBody:
    """Writes parts of a chunked answer's body without a coroutine for each.

    A route finds it in its scope, under `DIRECT_BODY`. The answer begins and ends through ASGI's
    own `send`.
    """

    __slots__ = ("_cycle",)

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle

    @property
    def writable(self) -> bool:
        """False where only `send` can write: while the client does not keep up, before the answer
        has begun, or where it is not chunked."""
        cycle = self._cycle
        paused: bool = cycle.flow.write_paused
        return not (paused or not cycle.chunked_encoding or cycle.response_complete)

    def try_write(self, data: bytes) -> bool:
        """`write`, if `writable`."""
        cycle = self._cycle
        if cycle.flow.write_paused or not cycle.chunked_encoding or cycle.response_complete:
            return False
        if not cycle.disconnected:
            cycle.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        return True

    def write(self, data: bytes) -> None:
        """A part that is not empty, while `writable`; nothing if the client has gone."""
        if not self._cycle.disconnected:
            self._cycle.transport.write(b"%x\r\n%b\r\n" % (len(data), data))


class LimitedProtocol(HttpToolsProtocol):
    """Closes a connection that is one too many, whose headers are too large or late, or whose
    client does not take its answer."""

    most = 1 << 30  # connections at once

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_headers = True
        self._header_bytes = 0
        self._header_timer: asyncio.TimerHandle | None = None
        self._writing_timer: asyncio.TimerHandle | None = None
        self._leftover_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.most:
            self._refuse(_TOO_MANY)
            return
        _set_options(transport.get_extra_info("socket"))
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        for timer in (self._writing_timer, self._leftover_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._writing_timer = self.loop.call_later(READ_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        if self._writing_timer is not None:
            self._writing_timer.cancel()
            self._writing_timer = None
        super().resume_writing()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._in_headers and self._leftover_timer is None:
            close = self.transport.close
            self._leftover_timer = self.loop.call_later(LEFTOVER_SECONDS, close)

    def data_received(self, data: bytes) -> None:
        if self._in_headers:
            if self._header_timer is None:
                self._expect_headers()
            self._header_bytes += len(data)
        super().data_received(data)
        if self._in_headers and self._header_bytes > MAX_HEADER_BYTES + _SLACK_BYTES:
            self._refuse(_TOO_LARGE)

    def on_headers_complete(self) -> None:
        self._stop_timer()
        self._in_headers = False
        self._header_bytes = 0
        date = (b"date", _date(int(time.time())))
        self.server_state.default_headers = [date, *self.config.encoded_headers]
        super().on_headers_complete()
        self.scope[DIRECT_BODY] = DirectBody(self.cycle)  # type: ignore[literal-required]

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_headers = True
        if self._leftover_timer is not None:
            self._leftover_timer.cancel()
            self._leftover_timer = None

    def send_400_response(self, msg: str) -> None:
        """What is not HTTP gets an answer in the API's shape all the same."""
        if not self.transport.is_closing():
            self.transport.write(_NOT_HTTP)
            self.transport.close()

    def _expect_headers(self) -> None:
        self._header_timer = self.loop.call_later(HEADER_SECONDS, self._refuse, _TOO_SLOW)

    def _stop_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _refuse(self, status: bytes) -> None:
        self._stop_timer()
        if not self.transport.is_closing():
            if self.cycle is None or self.cycle.response_complete:
                self.transport.write(status + _TAIL)
            self.transport.close()


@functools.lru_cache(maxsize=1)
def _date(second: int) -> bytes:
    return formatdate(second, usegmt=True).encode()


def _set_options(connection: Any) -> None:
    """Small kernel buffers, so that a client that does not read is noticed; and an end of those
    whose peer is gone without a word."""
    with contextlib.suppress(OSError):  # it may be gone already
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, seconds in KEEPALIVE:
            connection.setsockopt(socket.IPPROTO_TCP, option, seconds)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, VANISHED_MILLISECONDS)
