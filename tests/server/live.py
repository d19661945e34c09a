"""Live servers for tests: started on a free port, waited for with deadlines, always ended."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import httpx
import openai

HERE = Path(__file__).parent
SOURCE = HERE.parents[1] / "src"
START_SECONDS = 30.0


@dataclass
class Live:
    url: str
    process: subprocess.Popen[str]
    errors: IO[str]

    def error_text(self) -> str:
        """What the server has written to standard error so far."""
        # Not `seek`: the offset is the server's, too, which would write over its first lines.
        return os.pread(self.errors.fileno(), 1 << 26, 0).decode()

    def __post_init__(self) -> None:
        # One client: making one costs more than many requests. No server here speaks TLS.
        self.http = httpx.Client(verify=False, timeout=20)

    def openai(self, key: str = "unused") -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"{self.url}/v1", api_key=key, max_retries=0, http_client=self.http
        )

    def async_openai(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            base_url=f"{self.url}/v1", api_key="unused", max_retries=0, timeout=30
        )

    def get(self, path: str, **kwargs: Any) -> httpx.Response:
        return self.http.get(self.url + path, **kwargs)

    def post(self, path: str, **kwargs: Any) -> httpx.Response:
        return self.http.post(self.url + path, **kwargs)

    def children(self) -> list[int]:
        return children_of(self.process.pid)

    def stop(self, number: int = signal.SIGTERM, seconds: float = 15) -> int:
        """Signal it and wait for its exit status."""
        self.process.send_signal(number)
        return self.process.wait(seconds)


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(SOURCE), str(HERE)])
    return {**os.environ, "PYTHONPATH": path}


def start(command: list[str]) -> Live:
    """Start a server that announces itself in one line of JSON on standard output."""
    # A file, not a pipe: nobody reads it while the server runs.
    errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed by `end`)
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        env=environment(),
    )
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], START_SECONDS)
    line = process.stdout.readline() if ready else ""
    if not line:
        process.kill()
        process.communicate()
        errors.seek(0)
        raise RuntimeError(f"the server did not start: {errors.read()}")
    return Live(json.loads(line)["url"], process, errors)


def serve_command(model: Path | str, *options: str) -> list[str]:
    return [sys.executable, "-m", "trimtab", "serve", str(model), "--port", "0", *options]


@contextmanager
def live_server(**options: Any) -> Iterator[Live]:
    """A server with the fake engine; see serve_fake.py for the options."""
    command = [sys.executable, str(HERE / "serve_fake.py"), json.dumps(options)]
    server = start(command)
    try:
        yield server
    finally:
        end(server)


@contextmanager
def loading_server() -> Iterator[str]:
    """The address of a server with the fake engine whose model is still loading."""
    command = [sys.executable, str(HERE / "serve_fake.py"), '{"model": "slow-load", "port": true}']
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment(), text=True)
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["bound"]
    finally:
        process.kill()
        process.communicate(timeout=10)


def end(server: Live) -> None:
    if server.process.poll() is None:
        server.process.kill()
    server.process.communicate(timeout=10)
    server.errors.close()
    server.http.close()


def read_all(connection: socket.socket) -> bytes:
    """What comes until the other side ends or resets the connection."""
    answer = b""
    try:
        while piece := connection.recv(65536):
            answer += piece
    except ConnectionResetError:
        pass
    return answer


def children_of(pid: int) -> list[int]:
    """Process ids of the direct children, zombies included."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        found += [int(child) for child in task.read_text().split()]
    return found


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Fails the test if the condition does not come true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)
