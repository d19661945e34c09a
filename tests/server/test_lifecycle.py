"""Processes, signals, disconnects and deaths: what must end does end, and nothing is left."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
from live import HERE, Live, children_of, environment, live_server, loading_server, wait_until

TEXT = "/v1/completions"
SLOW = {"prompt": "SLOW", "max_tokens": 1000}  # 50 s: more than anything here waits for
QUICK = {"prompt": "quick", "max_tokens": 3}


def running(server: Live) -> int:
    stats = server.get("/stats").json()
    return stats["num_running"] + stats["num_waiting"]  # type: ignore[no-any-return]


def abandon(server: Live, body: dict[str, object]) -> None:
    """Start a request on a bare socket, wait until it runs, and leave without a word."""
    host, port = server.url.removeprefix("http://").split(":")
    data = json.dumps(body).encode()
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: " + str(len(data)).encode() + b"\r\n\r\n" + data
        )
        wait_until(lambda: running(server) > 0)


@pytest.mark.parametrize("fields", [{"stream": True}, {"stream": False}, {"stream": True, "n": 3}])
def test_a_client_that_leaves_frees_the_engine(server: Live, fields: dict[str, object]) -> None:
    abandon(server, SLOW | fields)
    wait_until(lambda: running(server) == 0)
    assert server.post(TEXT, json=QUICK).status_code == 200


def test_a_stop_string_frees_the_engine(server: Live) -> None:
    full = server.post(TEXT, json=SLOW | {"max_tokens": 20, "temperature": 0}).json()
    stop = full["choices"][0]["text"][5]
    body = SLOW | {"temperature": 0, "stop": stop}
    answer = server.post(TEXT, json=body).json()
    assert answer["choices"][0]["finish_reason"] == "stop"
    wait_until(lambda: running(server) == 0)


def test_many_abandoned_requests(server: Live) -> None:
    threads = [
        threading.Thread(target=abandon, args=(server, SLOW | {"stream": bool(i % 2)}))
        for i in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    wait_until(lambda: running(server) == 0)
    assert server.post(TEXT, json=QUICK).status_code == 200


class Streaming(threading.Thread):
    """A streamed completion, read in the background; `begun` is set by its first event."""

    def __init__(self, server: Live, body: dict[str, object]) -> None:
        super().__init__()
        self.begun = threading.Event()
        self.events: list[str] = []
        self._server = server
        self._body = body | {"stream": True}
        self.start()
        assert self.begun.wait(10)

    def run(self) -> None:
        with self._server.http.stream("POST", self._server.url + TEXT, json=self._body) as response:
            for line in response.iter_lines():
                if line:
                    self.events.append(line.removeprefix("data: "))
                    self.begun.set()

    def finished(self) -> list[str]:
        self.join(10)
        assert not self.is_alive()
        return self.events


def test_loading_is_503_and_then_ready() -> None:
    """The port answers while the model loads."""
    with loading_server() as url:
        seen = set()

        def ready() -> bool:
            with contextlib.suppress(httpx.TransportError):
                response = httpx.get(url + "/ready", timeout=5)
                seen.add((response.status_code, response.json()["status"]))
                if response.status_code == 503:
                    refused = httpx.post(url + TEXT, json=QUICK, timeout=5)
                    if refused.status_code == 503:
                        seen.add(refused.json()["error"]["code"])
            return (200, "ok") in seen

        wait_until(ready, seconds=20)
        assert (503, "loading") in seen
        assert "loading" in seen


@pytest.mark.parametrize(
    ("model", "status", "message"),
    [
        ("missing", 2, "missing: no such model"),
        ("no-tokenizer", 2, "no-tokenizer: no such vocabulary"),
        ("segfault", 1, "the engine process was ended by SIGSEGV"),
        ("bug", 1, "TypeError: a bug in the loader"),
    ],
)
def test_an_engine_that_cannot_start(model: str, status: int, message: str) -> None:
    command = [sys.executable, str(HERE / "serve_fake.py"), json.dumps({"model": model})]
    done = subprocess.run(command, capture_output=True, env=environment(), text=True, timeout=30)
    assert done.returncode == status
    assert done.stdout == ""
    assert done.stderr.splitlines() == [f"trimtab: error: {message}"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_leaves_nothing(number: int, tmp_path: Path) -> None:
    with live_server(tmp=str(tmp_path)) as server:
        children = server.children()
        assert list(tmp_path.iterdir()) == []
        streaming = Streaming(server, {"prompt": "SLOW", "max_tokens": 20})
        assert server.stop(number) == 0
        *chunks, done = streaming.finished()
        assert done == "[DONE]"
        assert len(chunks) == 20
        assert json.loads(chunks[-1])["choices"][0]["finish_reason"] == "length"
        assert not any(Path(f"/proc/{child}").exists() for child in children)
        assert list(tmp_path.iterdir()) == []
        with pytest.raises(httpx.ConnectError):
            server.get("/health")


def test_a_drain_that_takes_too_long_is_cut_with_an_error() -> None:
    with live_server(server={"drain_seconds": 0.5}) as server:
        streaming = Streaming(server, SLOW)
        assert server.stop() == 0
        events = streaming.finished()
        assert events[-1] == "[DONE]"
        assert json.loads(events[-2])["error"]["code"] == "draining"


def test_the_second_signal_does_not_wait() -> None:
    with live_server() as server:

        def whole() -> None:
            with contextlib.suppress(httpx.HTTPError):
                server.post(TEXT, json=SLOW)

        thread = threading.Thread(target=whole)
        thread.start()
        wait_until(lambda: running(server) == 1)
        server.process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert server.process.poll() is None
        assert server.stop(signal.SIGINT) == 0
        thread.join(5)
        assert not thread.is_alive()


def test_a_killed_front_leaves_no_process_and_no_file(tmp_path: Path) -> None:
    with live_server(tmp=str(tmp_path)) as server:
        (child,) = server.children()
        server.process.kill()
        server.process.wait(5)
        wait_until(lambda: not Path(f"/proc/{child}").exists())
        assert list(tmp_path.iterdir()) == []


def test_the_engine_survives_signals_meant_for_the_front(server: Live) -> None:
    children = server.children()
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(children[0], number)
    assert server.post(TEXT, json=QUICK).status_code == 200
    assert server.children() == children


def listening_ports(pid: int) -> set[str]:
    """`address:port` of the listening TCP sockets of a process, as /proc writes them."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            target = str(link.readlink())
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                found.add(fields[1])
    return found


def test_only_the_api_port_listens(server: Live) -> None:
    port = int(server.url.rsplit(":", 1)[1])
    assert listening_ports(server.process.pid) == {f"0100007F:{port:04X}"}
    (child,) = children_of(server.process.pid)
    assert listening_ports(child) == set()


def test_nothing_is_written_to_standard_error(server: Live) -> None:
    assert server.post(TEXT, json=QUICK).status_code == 200
    assert server.error_text() == ""
