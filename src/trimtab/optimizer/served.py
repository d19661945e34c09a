"""One configuration on the real server, in processes of its own, and what it used meanwhile."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import sys
import tempfile
import time
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

from trimtab.bench.energy import EnergyMeter
from trimtab.engine.timing import STEP_SIZES
from trimtab.errors import TrimtabError
from trimtab.optimizer.points import Work
from trimtab.simulator.simulate import SMALL_ROWS

START_SECONDS = 600.0  # a large model may have to be packed first
STOP_SECONDS = 20.0


class TrialFailedError(TrimtabError):
    """The server did not start, or died: a result, and not the end of the search."""


@dataclass(frozen=True)
class Usage:
    """Of a server over a while."""

    seconds: float
    cpu_seconds: float  # of all its processes
    num_steps: int
    num_rows: int  # tokens computed, prompts and drafts included
    num_prompt_tokens: int
    num_cached_tokens: int
    num_output_tokens: int
    execute_seconds: float
    num_preemptions: int
    joules: float | None


class Server:
    """A running `trimtab serve`. Only processes that it started are ever signalled."""

    def __init__(
        self, process: subprocess.Popen[str], url: str, description: str, on_gpu: bool = False
    ) -> None:
        """`on_gpu`: what the processor has of memory and energy would mislead, and is left out."""
        self.url = url
        self.description = description
        self._process = process
        self._energy = None if on_gpu else EnergyMeter()
        self._on_gpu = on_gpu
        self._last = self._counts()

    def lap(self) -> Usage:
        """What was used since the last lap, or since the start."""
        before, self._last = self._last, self._counts()
        differences = {name: self._last[name] - before[name] for name in before}
        joules = None if self._energy is None else self._energy.lap()
        return Usage(joules=joules, **differences)

    def work(self) -> Work:
        """Of its engine since the start."""
        stats = self._stats()
        around = ("schedule_seconds", "build_seconds", "commit_seconds", "between_seconds")
        guessing = stats["speculation"]
        small = bisect_left(STEP_SIZES, SMALL_ROWS) + 1
        return Work(
            small_seconds=sum(stats["step_size_seconds"][:small]),
            large_seconds=sum(stats["step_size_seconds"][small:]),
            around_seconds=sum(stats[name] for name in around),
            num_accepted=sum(guessing["accepted_by_position"]) if guessing else 0,
        )

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def peak_memory_bytes(self) -> int | None:
        """Of all its processes, each at its own peak; None where the system does not tell, and of
        what is on a GPU."""
        if self._on_gpu:
            return None
        peaks = [_status_kib(pid, "VmHWM") for pid in self._pids()]
        known = [peak for peak in peaks if peak is not None]
        return 1024 * sum(known) if known else None

    def _stats(self) -> dict[str, Any]:
        """TrialFailedError if it does not answer: its engine may just have died."""
        connection = http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=60)
        try:
            connection.request("GET", "/stats")
            answer = connection.getresponse()
            if answer.status != HTTPStatus.OK:
                raise TrialFailedError(f"the server stopped answering (HTTP {answer.status})")
            found: dict[str, Any] = json.loads(answer.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise TrialFailedError(f"the server stopped answering ({error!r})") from None
        finally:
            connection.close()
        return found

    def _counts(self) -> dict[str, Any]:
        stats = self._stats()
        return {
            "seconds": time.monotonic(),
            "cpu_seconds": sum(map(_cpu_seconds, self._pids())),
            "num_steps": stats["num_steps"],
            "num_rows": stats["num_step_tokens"],
            "num_prompt_tokens": stats["num_prompt_tokens"],
            "num_cached_tokens": stats["num_cached_prompt_tokens"],
            "num_output_tokens": stats["num_generated_tokens"],
            "execute_seconds": stats["execute_seconds"],
            "num_preemptions": stats["num_preemptions"],
        }

    def _pids(self) -> list[int]:
        pids, found = [self._process.pid], []
        while pids:
            pid = pids.pop()
            found.append(pid)
            for thread in Path(f"/proc/{pid}/task").glob("*/children"):
                with contextlib.suppress(OSError):
                    pids += map(int, thread.read_text().split())
        return found


@contextlib.contextmanager
def running_server(plan: Path, on_gpu: bool = False) -> Iterator[Server]:
    """Serves a plan file on a free port, just as a user would. TrialFailedError if it does not come
    up, with the last line that it wrote."""
    command = [sys.executable, "-m", "trimtab", "serve", str(plan), "--port", "0", "--json"]
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [*command, "--no-page"],
            stdout=subprocess.PIPE,
            stderr=errors,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        try:
            line = _first_line(process)
            if not line:
                process.wait(timeout=STOP_SECONDS)
                errors.seek(0)
                said = errors.read().strip().splitlines()
                raise TrialFailedError(said[-1] if said else _how_it_ended(process))
            announced = json.loads(line)
            yield Server(process, announced["url"], announced["plan"], on_gpu)
        finally:
            _stop(process)


def _first_line(process: subprocess.Popen[str]) -> str:
    """Of its output, or nothing if it ended; waits START_SECONDS at most."""
    import selectors

    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        if not selector.select(START_SECONDS):
            raise TrialFailedError(f"the server was not ready after {START_SECONDS:.0f} s")
    return process.stdout.readline()


def _how_it_ended(process: subprocess.Popen[str]) -> str:
    code = process.returncode
    return f"the server was ended by signal {-code}" if code < 0 else f"the server exited: {code}"


def _stop(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _cpu_seconds(pid: int) -> float:
    """User and system time of a process; 0 if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _status_kib(pid: int, name: str) -> int | None:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    values = [line.split()[1] for line in lines if line.startswith(name + ":")]
    return int(values[0]) if values else None
