"""A `trimtab serve` process for scripts that load or disturb it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

SOURCE = Path(__file__).resolve().parent.parent / "src"


@dataclass
class Server:
    url: str
    model: str
    process: subprocess.Popen[str]

    @property
    def engine_pid(self) -> int | None:
        """Of the engine process; None between two of them."""
        for task in Path(f"/proc/{self.process.pid}/task").glob("*/children"):
            for pid in task.read_text().split():
                return int(pid)
        return None

    def client(self) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        return httpx.AsyncClient(base_url=self.url, timeout=600, limits=limits, verify=False)


@contextmanager
def serving(model: str, *options: str) -> Iterator[Server]:
    """Ends with SIGTERM. RuntimeError unless the exit status is 0 and no child is left."""
    command = [sys.executable, "-m", "trimtab", "serve", model, "--port", "0", "--json", *options]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        announcement = json.loads(process.stdout.readline())
        server = Server(announcement["url"], announcement["model"], process)
        yield server
        engine = server.engine_pid
        process.terminate()
        status = process.wait(60)
        if status != 0 or (engine is not None and Path(f"/proc/{engine}").exists()):
            raise RuntimeError(f"the server ended with status {status}, or left its engine")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def memory_bytes(pid: int | None) -> int:
    """Anonymous memory of a process: what it allocated, without mapped files. 0: there is none."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:"))
