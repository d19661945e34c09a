"""A small HTTP/1.1 client for load: pooled connections, every piece of an answer with its time.

It does little on purpose. What a client does for each token is added to the latencies it reports
and taken from what it can offer: benchmarks/load_client_cost.py measures it beside httpx.
"""

from __future__ import annotations

import asyncio
import errno
import ssl
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, cast

import httptools

CONNECT_SECONDS = 30.0
SPARE_CONNECTIONS = 2  # opened ahead, so that few requests wait for a connection


@dataclass(frozen=True, slots=True)
class Address:
    host: str
    port: int
    tls: bool = False


@dataclass(slots=True, eq=False)
class Exchange:
    """A request and what came back. Times are time.monotonic()."""

    request: bytes  # head and body
    done: Callable[[Exchange], None]  # called once, also after `cancel`
    sent: float = 0.0  # when the client turned to it; opening a connection comes after
    ended: float = 0.0
    status: int = 0  # 0: there was no answer
    headers: dict[str, str] = field(default_factory=dict)  # lower-case names
    pieces: list[tuple[float, bytes]] = field(default_factory=list)  # of the body
    error: str | None = None  # of the connection, or why it was cancelled
    connection: _Connection | None = None
    finished: bool = False
    tries: int = 0

    @property
    def body(self) -> bytes:
        return b"".join(piece for _, piece in self.pieces)


class ConnectionPool:
    """Connections to one address, as many as there are exchanges at once: nothing waits here."""

    def __init__(self, loop: asyncio.AbstractEventLoop, address: Address) -> None:
        self._loop = loop
        self._address = address
        self._ssl = ssl.create_default_context() if address.tls else None
        self._idle: list[_Connection] = []
        self._opening: set[asyncio.Task[None]] = set()
        self._num_spares_opening = 0
        self._open: set[_Connection] = set()
        self.num_resent = 0  # a kept connection that the server had closed in the meantime

    async def open(self, count: int) -> None:
        """So many connections ahead. Raises OSError if not one can be opened."""
        first = await self._connect()
        self._put_back(first)
        others = (self._connect() for _ in range(count - 1))
        for connection in await asyncio.gather(*others, return_exceptions=True):
            if isinstance(connection, _Connection):
                self._put_back(connection)

    def send(self, exchange: Exchange) -> None:
        """Starts it now: on an open connection, else on a new one."""
        exchange.sent = exchange.sent or time.monotonic()
        exchange.tries += 1
        if self._idle and exchange.tries == 1:
            self._idle.pop().start(exchange)
        else:
            self._spawn(self._start_on_new(exchange))
        if len(self._idle) + self._num_spares_opening < SPARE_CONNECTIONS:
            self._num_spares_opening += 1
            self._spawn(self._open_spare())

    def cancel(self, exchange: Exchange, why: str) -> None:
        """Ends it with an error, and its connection with it."""
        if exchange.finished:
            return
        connection = exchange.connection
        self._finish(exchange, why)
        if connection is not None:
            connection.drop()

    async def close(self) -> None:
        for task in self._opening:
            task.cancel()
        for connection in list(self._open):
            connection.drop()
        await asyncio.gather(*self._opening, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _connect(self) -> _Connection:
        connecting = self._loop.create_connection(
            lambda: _Connection(self), self._address.host, self._address.port, ssl=self._ssl
        )
        _, connection = await asyncio.wait_for(connecting, CONNECT_SECONDS)
        return connection

    async def _start_on_new(self, exchange: Exchange) -> None:
        try:
            connection = await self._connect()
        except (OSError, asyncio.TimeoutError) as error:
            self._finish(exchange, _reason(error))
            return
        if exchange.finished:  # cancelled in the meantime
            self._put_back(connection)
        else:
            connection.start(exchange)

    async def _open_spare(self) -> None:
        try:
            self._put_back(await self._connect())
        except (OSError, asyncio.TimeoutError):
            pass  # a request that needs one will say what is wrong
        finally:
            self._num_spares_opening -= 1

    def _put_back(self, connection: _Connection) -> None:
        if connection.is_open:
            self._idle.append(connection)

    def _finish(self, exchange: Exchange, error: str | None) -> None:
        if exchange.finished:
            return
        exchange.finished = True
        exchange.connection = None
        exchange.ended = time.monotonic()
        exchange.error = error
        exchange.done(exchange)

    def _ended(self, connection: _Connection, exchange: Exchange, error: str | None) -> None:
        """Called by a connection: the answer is whole, or there is an error."""
        stale = error is not None and not exchange.status and connection.num_answers > 0
        if stale and exchange.tries == 1 and not exchange.finished:
            self.num_resent += 1
            self.send(exchange)
        else:
            self._finish(exchange, error)

    def _lost(self, connection: _Connection) -> None:
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)


class _Connection(asyncio.Protocol):
    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._now = 0.0
        self._to_end = False  # the answer ends where the connection does
        self.num_answers = 0

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def start(self, exchange: Exchange) -> None:
        assert self._transport is not None
        exchange.connection = self
        self._exchange = exchange
        self._transport.write(exchange.request)

    def drop(self) -> None:
        self._exchange = None
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class
        self._pool._open.add(self)

    def data_received(self, data: bytes) -> None:
        self._now = time.monotonic()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._end(f"not HTTP: {error}")
            self.drop()

    def connection_lost(self, error: Exception | None) -> None:
        self._pool._lost(self)
        reason = None if self._to_end else "the server closed the connection"
        if error is not None:
            reason = _reason(error)
        self._end(reason)

    def _end(self, error: str | None) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            self._pool._ended(self, exchange, error)

    # What the parser calls.

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._exchange is not None:
            self._exchange.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if self._exchange is not None:
            self._exchange.status = self._parser.get_status_code()
            headers = self._exchange.headers
            self._to_end = not headers.keys() & {"content-length", "transfer-encoding"}

    def on_body(self, data: bytes) -> None:
        if self._exchange is not None:
            self._exchange.pieces.append((self._now, data))

    def on_message_complete(self) -> None:
        self.num_answers += 1
        keep = self._parser.should_keep_alive() and not self._to_end
        if keep:
            self._pool._put_back(self)
        self._end(None)
        if not keep:
            self.drop()


def _reason(error: BaseException) -> str:
    if isinstance(error, asyncio.TimeoutError):
        return "no connection in time"
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return "this client has too many files open (ulimit -n)"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
