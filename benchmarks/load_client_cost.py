"""CPU a streamed event: our HTTP client beside httpx, on the same mock server, in turns.

    python benchmarks/load_client_cost.py [--rounds 5]

Both read whole answers of 16 streams that get a token every 10 ms, and decode the events with the
same code; CPU of the client's process only. Prints JSON: medians and all rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable

import httpx
import uvloop

from trimtab.bench.http_stream import ConnectionPool
from trimtab.bench.load_answer import read_stream
from trimtab.bench.load_target import Endpoint, Target, ask, parse_url
from trimtab.bench.mock_schedule import MockConfig
from trimtab.bench.mock_server import running_mock

STREAMS, TOKENS = 16, 100


async def ours(endpoint: Endpoint) -> int:
    pool = ConnectionPool(asyncio.get_running_loop(), endpoint.address)
    await pool.open(STREAMS)
    requests = [endpoint.request(f"ours {n}", TOKENS) for n in range(STREAMS)]
    exchanges = await asyncio.gather(*(ask(pool, one) for one in requests))
    await pool.close()
    return sum(len(read_stream(one.pieces).token_times) for one in exchanges)


async def with_httpx(url: str, endpoint: Endpoint) -> int:
    async with httpx.AsyncClient(verify=False, timeout=60) as client:

        async def one(number: int) -> int:
            body = endpoint.request(f"httpx {number}", TOKENS).partition(b"\r\n\r\n")[2]
            headers = {"Content-Type": "application/json"}
            path = url + "/v1/completions"
            pieces = []
            async with client.stream("POST", path, content=body, headers=headers) as answer:
                async for piece in answer.aiter_raw():
                    pieces.append((time.monotonic(), piece))
            return len(read_stream(pieces).token_times)

        return sum(await asyncio.gather(*(one(n) for n in range(STREAMS))))


def microseconds(work: Callable[[], Awaitable[int]]) -> float:
    async def measured() -> float:
        started = time.process_time()
        num_events = await work()
        assert num_events == STREAMS * TOKENS, num_events
        return 1e6 * (time.process_time() - started) / num_events

    return uvloop.run(measured())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    found: dict[str, list[float]] = {"ours": [], "httpx": []}
    with running_mock(MockConfig(step_ms=10, max_batch=STREAMS)) as url:
        endpoint = parse_url(Target(url, model="mock"))
        for _ in range(rounds):
            found["ours"].append(microseconds(lambda: ours(endpoint)))
            found["httpx"].append(microseconds(lambda: with_httpx(url, endpoint)))
    medians = {name: round(statistics.median(values), 1) for name, values in found.items()}
    print(json.dumps({"us_of_cpu_per_event": medians, "rounds": found}))


if __name__ == "__main__":
    main()
