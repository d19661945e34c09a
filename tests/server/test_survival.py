"""Engine processes that die, hang or do not come back, under a server with the fake engine: what
their requests notice of it."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from asking import PATIENCE, TEXT, ask_all
from live import Live, live_server, wait_until

QUICK = {"prompt": "quick", "max_tokens": 3}


async def kill_now_and_then(server: Live, times: int, number: int, draw: random.Random) -> None:
    for _ in range(times):
        await asyncio.sleep(0.05 + draw.random() * 0.2)
        while not server.children():
            await asyncio.sleep(0.01)
        os.kill(server.children()[0], number)
        await asyncio.sleep(0.5)


def num_generated(server: Live) -> float:
    """Tokens of answers, as the front process has counted them."""
    lines = server.get("/metrics").text.splitlines()
    (line,) = (line for line in lines if line.startswith("trimtab:generation_tokens_total"))
    return float(line.split()[-1])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_nobody_notices_that_the_engine_is_killed(number: int) -> None:
    with live_server() as server:
        undisturbed = asyncio.run(ask_all(server, 150))
        num_tokens = num_generated(server)
        killing = kill_now_and_then(server, 3, number, random.Random(number))
        assert asyncio.run(ask_all(server, 150, killing)) == undisturbed
        assert num_generated(server) == 2 * num_tokens > 0
        assert server.stop() == 0


QUICK_POLICY = {"silent_seconds": 1.5, "stalled_seconds": 1.5, "fresh_seconds": 1.0}


@pytest.mark.parametrize(
    "how", ["SEGV", "KILL", "EXIT", "DEAD", "GARBAGE", "LOOP", "FREEZE", "STALL"]
)
def test_however_the_engine_ends_or_hangs_its_requests_go_on(how: str) -> None:
    with live_server(policy=QUICK_POLICY) as server:
        (first,) = server.children()
        body = {"prompt": f"FALTER {how}", "max_tokens": 12, "temperature": 0}
        plain = server.post(TEXT, json=body | {"prompt": f"PLAINS {how}"}).json()
        answer = server.post(TEXT, json=body).json()
        assert answer["usage"] == plain["usage"]
        assert answer["choices"][0]["finish_reason"] == "length"
        (second,) = server.children()
        assert second != first
        assert not Path(f"/proc/{first}").exists()
        wait_until(lambda: server.get("/ready").status_code == 200)
        assert server.stop() == 0


def test_a_request_that_ends_the_engine_is_given_up_and_nobody_else() -> None:
    with live_server(policy={"first_backoff_seconds": 0.02}) as server:
        good = {"prompt": "good SLOW", "max_tokens": 24, "temperature": 0}
        undisturbed = server.post(TEXT, json=good).json()["choices"]

        async def ask_them() -> list[httpx.Response]:
            async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE) as client:
                bodies = [good] * 6 + [{"prompt": "POISON", "max_tokens": 10}, {"prompt": "CRASH"}]
                return await asyncio.gather(*[client.post(TEXT, json=body) for body in bodies])

        *answers, poison, crash = asyncio.run(ask_them())
        assert [answer.json()["choices"] for answer in answers] == [undisturbed] * 6
        for refused in (poison, crash):
            assert refused.status_code == 500
            assert refused.json()["error"]["code"] == "request_ends_engine"
            assert refused.headers["x-should-retry"] == "false"
        assert server.post(TEXT, json=QUICK).status_code == 200
        assert server.stop() == 0


def test_an_engine_that_is_stopped_is_found_out() -> None:
    """What comes in meanwhile waits; /ready says so, /health does not mind."""
    with live_server(policy=QUICK_POLICY | {"silent_seconds": 3.0}) as server:
        (first,) = server.children()
        os.kill(first, signal.SIGSTOP)
        wait_until(lambda: server.get("/ready").json() == {"status": "unresponsive"})
        assert server.get("/ready").status_code == 503
        assert server.get("/health").status_code == 200
        assert server.post(TEXT, json=QUICK).status_code == 200
        assert server.children() != [first]
        assert server.get("/ready").status_code == 200


@pytest.fixture
def switch(tmp_path: Path) -> Path:
    """A model that loads unless this file says otherwise."""
    return tmp_path / "model"


def test_a_restart_that_fails_is_tried_again_and_requests_wait(switch: Path) -> None:
    with live_server(model=str(switch), policy={"first_backoff_seconds": 0.2}) as server:
        switch.write_text("exit")
        os.kill(server.children()[0], signal.SIGKILL)
        wait_until(lambda: server.get("/ready").json() == {"status": "restarting"})
        assert server.get("/ready").status_code == 503
        assert server.get("/health").json() == {"status": "restarting"}
        assert server.get("/health").status_code == 200
        assert server.get("/v1/models").status_code == 200
        assert server.get("/stats").json()["num_running"] == 0

        async def ask_one() -> httpx.Response:
            async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE) as client:
                asking = asyncio.create_task(client.post(TEXT, json=QUICK))
                while not (await client.get("/stats")).json()["num_waiting"]:
                    await asyncio.sleep(0.02)
                switch.unlink()
                return await asking

        assert asyncio.run(ask_one()).status_code == 200
        assert server.get("/ready").status_code == 200


def test_a_load_that_hangs_is_ended(switch: Path) -> None:
    with live_server(model=str(switch), policy={"min_reload_seconds": 3.0}) as server:
        switch.write_text("hang")
        os.kill(server.children()[0], signal.SIGKILL)
        wait_until(switch.with_suffix(".hanging").exists)
        switch.unlink()
        assert server.post(TEXT, json=QUICK).status_code == 200
        assert "has not been ready after" in server.error_text()


def test_an_engine_that_does_not_come_back_ends_with_one_clear_error(switch: Path) -> None:
    policy = {"first_backoff_seconds": 0.1, "max_fruitless": 3}
    with live_server(model=str(switch), policy=policy) as server:
        body = {"prompt": "SLOW", "max_tokens": 100}

        async def ask_both() -> tuple[httpx.Response, list[str]]:
            async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE) as client:
                whole = asyncio.create_task(client.post(TEXT, json=body))
                lines = []
                async with client.stream("POST", TEXT, json=body | {"stream": True}) as response:
                    async for line in response.aiter_lines():
                        if line and not lines:
                            switch.write_text("exit")
                            os.kill(server.children()[0], signal.SIGKILL)
                        lines += [line] if line else []
                return await whole, lines

        whole, lines = asyncio.run(ask_both())
        assert whole.status_code == 500
        assert whole.json()["error"]["code"] == "engine_stopped"
        assert lines[-1] == "data: [DONE]"
        assert json.loads(lines[-2][6:])["error"]["code"] == "engine_stopped"
        refused = server.post(TEXT, json=QUICK)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "engine_down"
        assert "retry-after" in refused.headers
        for path in ("/health", "/ready"):
            assert server.get(path).status_code == 503
            assert server.get(path).json() == {"status": "down"}
        switch.unlink()  # it is still being tried
        wait_until(lambda: server.get("/ready").status_code == 200)
        assert server.post(TEXT, json=QUICK).status_code == 200
        assert server.stop() == 0


def test_a_drain_while_the_engine_is_gone_waits_for_its_requests(switch: Path) -> None:
    with live_server(model=str(switch), policy={"first_backoff_seconds": 0.3}) as server:

        async def ask_one() -> httpx.Response:
            async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE) as client:
                body = {"prompt": "SLOW", "max_tokens": 20}
                asking = asyncio.create_task(client.post(TEXT, json=body))
                while not (await client.get("/stats")).json()["num_running"]:
                    await asyncio.sleep(0.02)
                switch.write_text("exit")
                os.kill(server.children()[0], signal.SIGKILL)
                await asyncio.sleep(0.3)
                server.process.send_signal(signal.SIGTERM)
                await asyncio.sleep(0.3)
                switch.unlink()
                return await asking

        answer = asyncio.run(ask_one())
        assert answer.status_code == 200
        assert answer.json()["usage"]["completion_tokens"] == 20
        assert server.process.wait(10) == 0


def test_a_drain_without_an_engine_ends_at_once_and_leaves_nothing(
    switch: Path, tmp_path: Path
) -> None:
    (tmp_path / "tmp").mkdir()
    policy = {"min_reload_seconds": 30.0}
    with live_server(model=str(switch), policy=policy, tmp=str(tmp_path / "tmp")) as server:
        switch.write_text("hang")
        (first,) = server.children()
        os.kill(first, signal.SIGKILL)
        wait_until(switch.with_suffix(".hanging").exists)
        (second,) = server.children()
        assert server.stop() == 0  # sooner than the load would be given up
        assert not Path(f"/proc/{second}").exists()
        assert list((tmp_path / "tmp").iterdir()) == []


def test_who_leaves_while_the_engine_is_gone_is_not_resumed(switch: Path) -> None:
    with live_server(model=str(switch), policy={"first_backoff_seconds": 0.3}) as server:

        async def leave() -> None:
            async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE) as client:
                body = {"prompt": "SLOW", "max_tokens": 500}
                before = asyncio.create_task(client.post(TEXT, json=body))
                while not (await client.get("/stats")).json()["num_running"]:
                    await asyncio.sleep(0.02)
                switch.write_text("exit")
                os.kill(server.children()[0], signal.SIGKILL)
                during = asyncio.create_task(client.post(TEXT, json=body))
                while (await client.get("/stats")).json()["num_waiting"] != 2:
                    await asyncio.sleep(0.02)
                before.cancel()
                during.cancel()
                await asyncio.gather(before, during, return_exceptions=True)

        asyncio.run(leave())
        wait_until(lambda: server.get("/stats").json()["num_waiting"] == 0)
        switch.unlink()
        wait_until(lambda: server.get("/ready").status_code == 200)
        time.sleep(0.6)
        stats = server.get("/stats").json()
        assert (stats["num_running"], stats["num_waiting"]) == (0, 0)


def test_the_queue_is_bounded_while_the_engine_is_gone(switch: Path) -> None:
    limits = {"max_num_requests": 1, "max_queued_requests": 3}
    policy = {"first_backoff_seconds": 0.3}
    with live_server(model=str(switch), scheduler=limits, policy=policy) as server:
        switch.write_text("exit")
        os.kill(server.children()[0], signal.SIGKILL)
        wait_until(lambda: server.get("/ready").json() == {"status": "restarting"})

        async def ask_many() -> list[httpx.Response]:
            async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE) as client:
                asking = [asyncio.create_task(client.post(TEXT, json=QUICK)) for _ in range(6)]
                while sum(one.done() for one in asking) < 2:
                    await asyncio.sleep(0.02)
                switch.unlink()
                return await asyncio.gather(*asking)

        answers = asyncio.run(ask_many())
        assert sorted(answer.status_code for answer in answers) == [200] * 4 + [429] * 2
        for answer in answers:
            if answer.status_code == 429:
                assert 1 <= int(answer.headers["retry-after"]) <= 60


def test_another_model_does_not_go_on_with_what_this_one_began(switch: Path) -> None:
    with live_server(model=str(switch)) as server:
        body = {"prompt": "SLOW", "max_tokens": 40, "stream": True}
        with server.http.stream("POST", server.url + TEXT, json=body) as stream:
            lines = stream.iter_lines()
            next(lines)
            switch.write_text("other weights")
            os.kill(server.children()[0], signal.SIGKILL)
            rest = [line for line in lines if line]
        assert json.loads(rest[-2][6:])["error"]["code"] == "engine_stopped"
        assert server.post(TEXT, json=QUICK).status_code == 200


def test_a_timeout_ends_a_request_and_frees_the_engine() -> None:
    with live_server(server={"timeout_seconds": 5.0}) as server:
        slow = {"prompt": "SLOW", "max_tokens": 1000, "timeout": 0.5}
        for fields in ({}, {"n": 3}):
            refused = server.post(TEXT, json=slow | fields)
            assert refused.status_code == 408
            assert refused.json()["error"]["code"] == "timeout"
            assert refused.headers["x-should-retry"] == "false"
        with server.http.stream("POST", server.url + TEXT, json=slow | {"stream": True}) as stream:
            lines = [line for line in stream.iter_lines() if line]
        assert len(lines) > 3
        assert json.loads(lines[-2][6:])["error"]["code"] == "timeout"
        assert lines[-1] == "data: [DONE]"
        wait_until(lambda: server.get("/stats").json()["num_running"] == 0)
        assert server.post(TEXT, json=QUICK | {"timeout": 5}).status_code == 200
        for wrong in (0, -1, "soon", 1e300):
            refused = server.post(TEXT, json=QUICK | {"timeout": wrong})
            assert refused.status_code == 400
            assert refused.json()["error"]["param"] == "timeout"


def test_the_servers_own_timeout_holds_for_all() -> None:
    messages = [{"role": "user", "content": "SLOW"}]
    bodies: dict[str, dict[str, Any]] = {
        TEXT: {"prompt": "SLOW", "max_tokens": 1000},
        "/v1/chat/completions": {"messages": messages, "max_tokens": 1000},
        "/v1/messages": {"messages": messages, "max_tokens": 1000},
        "/v1/responses": {"input": "SLOW", "max_output_tokens": 1000},
        "/v1/embeddings": {"input": ["SLOW", "SLOW too"]},
    }
    with live_server(server={"timeout_seconds": 0.5}) as server:
        for path, body in bodies.items():
            for fields in ({}, {"timeout": 100}):
                refused = server.post(path, json=body | fields)
                assert refused.status_code == 408, path
                assert refused.json()["error"]["type"] == "timeout_error"
        wait_until(lambda: server.get("/stats").json()["num_running"] == 0, seconds=3)
