"""Ten thousand connections that do nothing, or nothing but dawdle, while others are answered."""

from __future__ import annotations

import asyncio
import json
import resource
import socket
from contextlib import ExitStack

import httpx
import pytest
from live import live_server

WANTED = 10_000
SPARE = 500  # files that the test and the server need for themselves
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
DAWDLERS = (
    b"",  # says nothing
    b"GET /health HTT",  # half of a line
    HEAD,  # no end of the headers
    HEAD + b"Content-Length: 100\r\n\r\n",  # no body
    HEAD + b'Content-Length: 100\r\n\r\n{"prompt": "x"',  # half a body
    HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{",  # half a chunk
)


def num_connections() -> int:
    """As many as the limits of this machine let both sides hold, the children inherit them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < WANTED + SPARE and (hard == resource.RLIM_INFINITY or hard > soft):
        soft = WANTED + SPARE if hard == resource.RLIM_INFINITY else min(hard, WANTED + SPARE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return min(WANTED, soft - SPARE)


def test_ten_thousand_connections_that_stop_nobody() -> None:
    """Fewer where the limit on open files forbids them."""
    count = num_connections()
    assert count > 100
    options = {"header_seconds": 80.0, "body_seconds": 80.0}
    with live_server(**options) as server, ExitStack() as stack:
        host, port = server.url.removeprefix("http://").split(":")
        held = []
        for i in range(count):
            connection = stack.enter_context(socket.create_connection((host, int(port)), 20))
            connection.sendall(DAWDLERS[i % len(DAWDLERS)])
            held.append(connection)

        async def ask() -> list[str]:
            limits = httpx.Limits(max_connections=32)
            async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits) as client:

                async def one(i: int) -> str:
                    body = {"prompt": f"p{i}", "seed": i, "max_tokens": 20, "stream": i % 2 == 1}
                    response = await client.post("/v1/completions", json=body)
                    assert response.status_code == 200, response.text
                    if not body["stream"]:
                        return str(response.json()["choices"][0]["text"])
                    lines = response.text.splitlines()
                    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
                    return "".join(event["choices"][0]["text"] for event in events)

                return list(await asyncio.gather(*(one(i) for i in range(64))))

        texts = asyncio.run(ask())
        assert [len(text) for text in texts] == [20] * 64
        for connection in held[:: count // 50]:
            connection.setblocking(False)
            with pytest.raises(BlockingIOError):  # neither answered nor closed: it waits
                connection.recv(1)
        assert server.get("/health").status_code == 200
