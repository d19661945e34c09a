"""Clients that are slow, silent, many or gone: they cost themselves something, and nobody else."""

from __future__ import annotations

import json
import socket
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from live import Live, live_server, read_all, wait_until

TEXT = "/v1/completions"
QUICK = {"prompt": "quick", "max_tokens": 3}
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


def connect(server: Live, receive_bytes: int | None = None) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.socket()
    if receive_bytes is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    connection.settimeout(20)
    connection.connect((host, int(port)))
    return connection


def post(body: dict[str, object]) -> bytes:
    data = json.dumps(body).encode()
    return HEAD + b"Content-Length: %d\r\n\r\n" % len(data) + data


def running(server: Live) -> int:
    return int(server.get("/stats").json()["num_running"])


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def test_a_client_that_does_not_read_is_cut_off_and_stops_nobody() -> None:
    """Its engine runs free, its memory comes back."""
    large = {"prompt": "hi", "n": 16, "max_tokens": 1000, "logprobs": 20, "stream": True}
    with live_server(read_seconds=1.0) as server:
        with connect(server, receive_bytes=4096) as silent:
            silent.sendall(post(large))
            wait_until(lambda: running(server) == 16)
            for _ in range(10):
                assert server.post(TEXT, json=QUICK).status_code == 200
            wait_until(lambda: running(server) == 0)
            silent.settimeout(20)
            text = read_all(silent)
            assert b"[DONE]" not in text
        assert server.post(TEXT, json=QUICK).status_code == 200
        assert resident_bytes(server.process.pid) < 300 << 20


def test_a_slow_reader_gets_everything() -> None:
    body = {"prompt": "hi", "n": 8, "max_tokens": 100, "logprobs": 20, "stream": True}
    with live_server(read_seconds=2.0) as server, connect(server, receive_bytes=4096) as slow:
        slow.sendall(post(body))
        text = b""
        while not text.endswith(b"0\r\n\r\n"):
            piece = slow.recv(1 << 17)
            assert piece
            text += piece
            time.sleep(0.001)
        assert text.count(b'"finish_reason":"length"') == 8
        assert text.count(b"data: [DONE]") == 1


def test_idle_connections_stop_nobody(server: Live) -> None:
    with ExitStack() as stack:
        for _ in range(1500):
            stack.enter_context(connect(server))
        assert server.post(TEXT, json=QUICK).status_code == 200
        assert server.get("/health").status_code == 200


def test_one_connection_too_many() -> None:
    with live_server(server={"max_connections": 4}) as server, ExitStack() as stack:
        assert server.get("/health").status_code == 200  # this client's own, kept alive
        for _ in range(3):
            stack.enter_context(connect(server))
        refused = stack.enter_context(connect(server))
        answer = read_all(refused)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1" in answer
        assert server.get("/health").status_code == 200
        stack.close()
        wait_until(lambda: b"200" in _health(server))


def _health(server: Live) -> bytes:
    with connect(server) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        return read_all(connection)


def test_a_body_in_tiny_chunks(server: Live) -> None:
    """One byte a chunk: the same request, in no more memory than its bytes need."""
    body = json.dumps({"prompt": "a" * 1500, "max_tokens": 2}).encode()
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    with connect(server) as connection:
        connection.sendall(HEAD + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n")
        connection.sendall(chunks)
        assert read_all(connection).startswith(b"HTTP/1.1 200 ")


def test_endless_tiny_chunks_end_at_the_limit() -> None:
    with live_server(server={"max_body_bytes": 200_000}) as server:
        before = resident_bytes(server.process.pid)
        with connect(server) as connection:
            connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
            piece = b"1\r\n \r\n" * 10_000
            sent = 0
            try:
                while sent < 3_000_000:
                    connection.sendall(piece)
                    sent += 10_000
            except OSError:
                pass
            assert sent < 3_000_000
        assert resident_bytes(server.process.pid) - before < 50 << 20
        assert server.post(TEXT, json=QUICK).status_code == 200


def test_a_body_that_goes_on_behind_its_answer_is_cut() -> None:
    options = {"server": {"api_key": "k"}, "leftover_seconds": 0.5}
    with live_server(**options) as server, connect(server) as connection:
        connection.sendall(HEAD + b"Content-Length: 1000000\r\n\r\n{")
        ended = threading.Event()

        def go_on() -> None:
            try:
                while not ended.wait(0.05):
                    connection.sendall(b" ")
            except OSError:
                pass

        sending = threading.Thread(target=go_on)
        sending.start()
        assert read_all(connection).startswith(b"HTTP/1.1 401 ")
        ended.set()
        sending.join()


def test_a_peer_that_vanishes_is_noticed(server: Live) -> None:
    """The kernel watches each connection that nothing is sent on."""
    with connect(server) as connection:
        connection.sendall(post({"prompt": "SLOW", "max_tokens": 100}))
        wait_until(lambda: running(server) == 1)
        mine, theirs = connection.getsockname()[1], connection.getpeername()[1]
        lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        (timer,) = [
            line[5]
            for line in lines
            if line[1].endswith(f":{theirs:04X}") and line[2].endswith(f":{mine:04X}")
        ]
        assert timer.startswith("02:")  # keep-alive
    wait_until(lambda: running(server) == 0)


@pytest.mark.parametrize("rest", [b"", b'{"prompt": "x"'])
def test_half_closed_clients(server: Live, rest: bytes) -> None:
    """One that promises a body and then says that it is done."""
    with connect(server) as connection:
        connection.sendall(HEAD + b"Content-Length: 100\r\n\r\n" + rest)
        connection.shutdown(socket.SHUT_WR)
        answer = read_all(connection)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 400 ")
    assert server.post(TEXT, json=QUICK).status_code == 200
