"""The native engine, killed and fed with what is not finite, under `trimtab serve`."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from asking import PATIENCE, TEXT, ask_all, shapes
from live import Live, end, start, wait_until
from tiny_model import write_tiny_model

NAN_TOKEN = ord("N")


def serve(model: Path) -> Iterator[Live]:
    command = [sys.executable, "-m", "trimtab", "serve", str(model), "--port", "0", "--json"]
    live = start([*command, "--weights", "f32", "--threads", "1"])
    yield live
    end(live)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    yield from serve(write_tiny_model(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture
def flawed(tmp_path: Path) -> Iterator[Live]:
    yield from serve(write_tiny_model(tmp_path / "flawed", nan_token=NAN_TOKEN))


def stats(server: Live) -> dict[str, Any]:
    return server.get("/stats").json()  # type: ignore[no-any-return]


async def kill_as_they_go(server: Live, times: int) -> None:
    """Each time when a hundred tokens are out that were not out before, as long as any come."""
    async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE) as client:

        async def num_generated() -> int:
            return (await client.get("/stats")).json()["num_generated_tokens"]  # type: ignore[no-any-return]

        for _ in range(times):
            goal = await num_generated() + 100
            deadline = time.monotonic() + 5
            while await num_generated() < goal and time.monotonic() < deadline:
                await asyncio.sleep(0.002)
            os.kill(server.children()[0], signal.SIGKILL)
            while (await client.get("/ready")).status_code == 200:
                await asyncio.sleep(0.005)
            while (await client.get("/ready")).status_code != 200:
                await asyncio.sleep(0.01)


def test_every_kind_of_request_goes_on_with_the_very_tokens(real: Live) -> None:
    undisturbed = asyncio.run(ask_all(real, 400))
    first = real.children()
    disturbed = asyncio.run(ask_all(real, 400, kill_as_they_go(real, 3)))
    assert real.children() != first
    for (path, body), one, other in zip(shapes(400), undisturbed, disturbed, strict=True):
        assert without_cached(other) == without_cached(one), (path, body)
    assert stats(real)["num_free_blocks"] == stats(real)["num_blocks"]


def without_cached(answer: Any) -> str:
    """How much was cached depends on what ran before."""
    return re.sub(r"cached_tokens\W+\d+", "", json.dumps(answer, sort_keys=True))


def test_what_is_not_finite_ends_that_request_alone(flawed: Live) -> None:
    """Its blocks are found by nobody afterwards, and its neighbours are what they are alone."""
    prefix = "a prefix of several blocks, which both have: " * 3
    good = {"prompt": prefix + "good", "max_tokens": 60, "seed": 1, "ignore_eos": True}
    good["logit_bias"] = {str(NAN_TOKEN): -100}
    bad = good | {"prompt": prefix + "N" + "and the rest of several blocks " * 3}
    alone = flawed.post(TEXT, json=good).json()["choices"]
    before = stats(flawed)["num_non_finite_requests"]

    async def ask_them() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=flawed.url, timeout=PATIENCE) as client:
            return await asyncio.gather(*[client.post(TEXT, json=one) for one in [good, bad] * 3])

    answers = asyncio.run(ask_them())
    for answer in answers[::2]:
        assert answer.json()["choices"] == alone
    for answer in answers[1::2]:
        assert answer.status_code == 500
        assert answer.json()["error"]["code"] == "generation_failed"
    assert stats(flawed)["num_non_finite_requests"] == before + 3
    again = flawed.post(TEXT, json=good | {"stream": True, "prompt": bad["prompt"]})
    assert again.status_code == 500
    assert flawed.post(TEXT, json=good).json()["choices"] == alone
    assert stats(flawed)["num_free_blocks"] == stats(flawed)["num_blocks"]
    assert flawed.get("/ready").status_code == 200


def test_who_leaves_frees_its_blocks_within_a_step(real: Live) -> None:
    """Counted in steps, while a neighbour goes on: blocks are freed with the request."""
    neighbour = {"prompt": "neighbour", "max_tokens": 450, "ignore_eos": True, "stream": True}
    leaver = {"prompt": "leaver " * 30, "max_tokens": 250, "ignore_eos": True, "n": 4}
    body = json.dumps(leaver | {"stream": True}).encode()
    host, port = real.url.removeprefix("http://").split(":")
    before = idle_stats(real)
    with real.http.stream("POST", real.url + TEXT, json=neighbour) as stream:
        lines = stream.iter_lines()
        next(lines)
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b"Content-Length: " + str(len(body)).encode() + b"\r\n\r\n" + body
            )
            received = b""
            while b"data: " not in received:
                received += connection.recv(1 << 12)
        for _ in lines:
            pass
    after = idle_stats(real)
    # Had they gone on, they would have emitted 250 tokens each.
    emitted = after["num_generated_tokens"] - before["num_generated_tokens"] - 450
    assert 0 < emitted < 4 * (250 - 20)


def idle_stats(real: Live) -> Any:
    """What the engine has counted once nothing runs; all blocks are free."""
    wait_until(lambda: stats(real)["num_running"] == 0)
    time.sleep(1.1)  # a heartbeat later
    counted = stats(real)
    assert counted["num_running"] == 0
    assert counted["num_free_blocks"] == counted["num_blocks"]
    return counted


def test_an_interrupted_prompt_is_scored_once(real: Live) -> None:
    """Killed before its first token: the whole of it comes from the process that took over."""
    body = {"prompt": "x" * 400, "max_tokens": 2, "echo": True, "logprobs": 1, "temperature": 0}
    undisturbed = real.post(TEXT, json=body).json()["choices"]

    async def ask_and_kill() -> httpx.Response:
        async with httpx.AsyncClient(base_url=real.url, timeout=PATIENCE) as client:
            os.kill(real.children()[0], signal.SIGSTOP)
            asking = asyncio.create_task(client.post(TEXT, json=body))
            await asyncio.sleep(0.3)
            os.kill(real.children()[0], signal.SIGKILL)
            return await asking

    assert asyncio.run(ask_and_kill()).json()["choices"] == undisturbed
