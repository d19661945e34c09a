"""What this client adds by itself, on this machine, now: measured on a mock server that says when
it sent each event."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec

from trimtab.bench.http_stream import ConnectionPool, Exchange
from trimtab.bench.load import in_fast_loop
from trimtab.bench.load_answer import read_stream, split_events
from trimtab.bench.load_target import Target, parse_url, resolve
from trimtab.bench.mock_schedule import MockConfig
from trimtab.bench.mock_server import running_mock
from trimtab.bench.pacing import Pacer
from trimtab.bench.real_time import real_time_priority

STREAMS = 16
STEP_MS = 10.0
TOKENS = 80
ROUNDS = 2


class _Stamp(msgspec.Struct):
    mock_sent: float | None = None


_stamp = msgspec.json.Decoder(_Stamp).decode


@dataclass(frozen=True)
class SelfCheck:
    num_events: int
    seconds_per_event: float  # of the client's CPU, reading and counting the answer included
    send_p50: float  # from when a request was due until it was sent, seconds
    send_p99: float
    receive_p50: float  # from when the server sent an event until the client had seen it
    receive_p99: float

    @property
    def events_per_second(self) -> float:
        """That this client can follow, on one core."""
        return 1 / self.seconds_per_event

    def as_json(self) -> dict[str, Any]:
        return {
            "events": self.num_events,
            "max_events_per_s": round(self.events_per_second),
            "cpu_us_per_event": round(1e6 * self.seconds_per_event, 3),
            "send_ms": {"p50": 1e3 * self.send_p50, "p99": 1e3 * self.send_p99},
            "receive_ms": {"p50": 1e3 * self.receive_p50, "p99": 1e3 * self.receive_p99},
        }

    def line(self) -> str:
        return (
            f"self-check: this client adds {1e3 * self.send_p99:.2f} ms to a request and "
            f"{1e3 * self.receive_p99:.2f} ms to an event (p99) and follows "
            f"{self.events_per_second:,.0f} events/s"
        )


def check_client() -> SelfCheck:
    """Takes about three seconds."""
    config = MockConfig(step_ms=STEP_MS, max_batch=STREAMS)
    with running_mock(config) as url:
        return in_fast_loop(_check(url))


async def _check(url: str) -> SelfCheck:
    loop = asyncio.get_running_loop()
    endpoint = parse_url(Target(url))
    pool, pacer = ConnectionPool(loop, endpoint.address), Pacer(loop)
    try:
        endpoint = await resolve(pool, endpoint)
        await pool.open(STREAMS)
        exchanges: list[Exchange] = []
        lags: list[float] = []
        with real_time_priority():
            started_cpu = time.process_time()
            for number in range(ROUNDS):
                data = [endpoint.request(f"{number} {n}", TOKENS) for n in range(STREAMS)]
                lags += await _round(pool, pacer, data, exchanges)
            cpu = time.process_time() - started_cpu
    finally:
        pacer.close()
        await pool.close()
    delays = sorted(delay for one in exchanges for delay in _delays(one))
    lags.sort()
    return SelfCheck(
        len(delays), cpu / len(delays), _at(lags, 0.5), _at(lags, 0.99), _at(delays, 0.5),
        _at(delays, 0.99),
    )  # fmt: skip


async def _round(
    pool: ConnectionPool, pacer: Pacer, data: list[bytes], exchanges: list[Exchange]
) -> list[float]:
    """Sends all, a few milliseconds apart; how late each was."""
    loop = asyncio.get_running_loop()
    over: asyncio.Future[None] = loop.create_future()
    left = len(data)

    def done(exchange: Exchange) -> None:
        nonlocal left
        left -= 1
        read_stream(exchange.pieces)
        exchanges.append(exchange)
        if not left:
            over.set_result(None)

    lags: list[float] = []

    def send(one: bytes, due: float) -> None:
        exchange = Exchange(one, done)
        pool.send(exchange)
        lags.append(exchange.sent - due)

    start = time.monotonic() + 0.02
    for number, one in enumerate(data):
        when = start + 0.0037 * number
        pacer.at(when, partial(send, one, when))
    await asyncio.wait_for(over, 30)
    return lags


def _delays(exchange: Exchange) -> list[float]:
    found = []
    for when, data in split_events(exchange.pieces):
        if data.startswith(b"{"):
            sent = _stamp(data).mock_sent
            if sent is not None:
                found.append(when - sent)
    return found


def _at(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
