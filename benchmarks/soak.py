"""Random requests at overload for minutes, and what must hold meanwhile.

    python benchmarks/soak.py [MODEL] [--minutes 5] [--clients 64] [--kill SECONDS] [--seed 0]
        [--kinds NAME,NAME] [--max-growth MIB_A_MINUTE] [-- OPTIONS OF trimtab serve]

Each client draws one kind of request after another (soak_kinds.py, soak_tool_kinds.py: add a kind
there) and checks its answer: the statuses that the kind may earn or 429 with Retry-After, and of a
200 the whole of its form. The server has a short queue, so that it refuses; its engine may be
killed every so often. Without MODEL it is the built-in one with a chat template that takes tools
(tool_model.py); with one, kinds that need tools are left out.

Reported: how many requests of each kind got which status, the slowest /health, the memory of both
processes once a second with its slope over the last half. Exit status 1 if an answer was wrong, a
block was not free at the end, the server did not end as it should, or the memory of a process grew
by more than --max-growth (not of an engine that is killed).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

import soak_tool_kinds  # noqa: F401 (registers its kinds)
from serving import Server, memory_bytes, serving
from soak_kinds import KINDS, Kind, WrongAnswerError
from tool_model import write_tool_model

OPTIONS = ["--max-num-requests", "16", "--max-queued-requests", "24", "--num-blocks", "150"]
MAX_COMPLAINTS = 20


@dataclass
class Findings:
    statuses: dict[str, Counter[str]] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)
    num_complaints: int = 0
    health_seconds: list[float] = field(default_factory=list)
    memory: list[tuple[float, int, int]] = field(default_factory=list)  # time, front, engine
    num_kills: int = 0

    def note(self, kind: str, status: str) -> None:
        self.statuses.setdefault(kind, Counter())[status] += 1

    def complain(self, kind: str, what: str) -> None:
        self.num_complaints += 1
        if len(self.complaints) < MAX_COMPLAINTS:
            self.complaints.append(f"{kind}: {what}")


async def be_client(
    client: httpx.AsyncClient,
    kinds: dict[str, Kind],
    draw: random.Random,
    deadline: float,
    findings: Findings,
) -> None:
    names = list(kinds)
    weights = [kinds[name].weight for name in names]
    while time.monotonic() < deadline:
        (name,) = draw.choices(names, weights)
        try:
            status = await kinds[name].run(client, draw)
            findings.note(name, status)
            if status == "429":
                await asyncio.sleep(draw.random() * 0.3)
        except WrongAnswerError as error:
            findings.note(name, "WRONG")
            findings.complain(name, str(error))
        except httpx.HTTPError as error:
            findings.note(name, "WRONG")
            findings.complain(name, f"{type(error).__name__}: {error}")


async def watch(server: Server, deadline: float, findings: Findings) -> None:
    """Memory, and how soon /health answers, once a second."""
    began = time.monotonic()
    with httpx.Client(base_url=server.url, verify=False, timeout=60) as client:
        while time.monotonic() < deadline:
            asked = time.monotonic()
            # In a thread of its own: this one is busy with its clients.
            status, seconds = await asyncio.to_thread(ask_health, client)
            findings.health_seconds.append(seconds)
            if status != 200:
                findings.complain("health", str(status))
            front = memory_bytes(server.process.pid)
            findings.memory.append((asked - began, front, memory_bytes(server.engine_pid)))
            await asyncio.sleep(max(0.0, asked + 1 - time.monotonic()))


def ask_health(client: httpx.Client) -> tuple[int, float]:
    asked = time.monotonic()
    status = client.get("/health").status_code
    return status, time.monotonic() - asked


async def kill_sometimes(
    server: Server, every: float, deadline: float, draw: random.Random, findings: Findings
) -> None:
    while every and time.monotonic() + every < deadline:
        await asyncio.sleep(every * (0.5 + draw.random()))
        with suppress(ProcessLookupError):
            if pid := server.engine_pid:
                os.kill(pid, signal.SIGKILL)
                findings.num_kills += 1


async def soak(
    server: Server, kinds: dict[str, Kind], arguments: argparse.Namespace
) -> tuple[Findings, dict[str, Any]]:
    findings = Findings()
    deadline = time.monotonic() + 60 * arguments.minutes
    draws = [random.Random(f"{arguments.seed} {i}") for i in range(arguments.clients + 1)]
    async with server.client() as client:
        await asyncio.gather(
            watch(server, deadline, findings),
            kill_sometimes(server, arguments.kill, deadline, draws.pop(), findings),
            *[be_client(client, kinds, draw, deadline, findings) for draw in draws],
        )
        until = time.monotonic() + 30
        while True:
            stats: dict[str, Any] = (await client.get("/stats")).json()
            idle = not stats["num_running"] and not stats["num_waiting"]
            if idle or time.monotonic() > until:
                break
            await asyncio.sleep(0.2)
        await asyncio.sleep(1.0)
        return findings, (await client.get("/stats")).json()


def slopes(memory: list[tuple[float, int, int]]) -> dict[str, dict[str, float]]:
    """Of each process, over the last half of the time: MiB at its start, at its end (means of a
    tenth of it), and the slope by least squares."""
    table = np.array(memory, float)
    late = table[len(table) // 2 :]
    tenth = max(1, len(late) // 10)
    result = {}
    for name, column in (("front", 1), ("engine", 2)):
        seconds, mib = late[:, 0], late[:, column] / (1 << 20)
        result[name] = {
            "mib_at_half_time": round(float(mib[:tenth].mean()), 2),
            "mib_at_the_end": round(float(mib[-tenth:].mean()), 2),
            "mib_a_minute": round(float(np.polyfit(seconds, mib, 1)[0]) * 60, 3),
        }
    return result


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument(
        "--kill", type=float, default=0.0, help="kill the engine so often; 0 = never"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", help="only these, by their names; separated by commas")
    parser.add_argument("--max-growth", type=float, help="MiB a minute over the last half")
    options = sys.argv[1:]
    at = options.index("--") if "--" in options else len(options)
    arguments = parser.parse_args(options[:at])
    arguments.options = options[at + 1 :]
    return arguments


def kinds_for(arguments: argparse.Namespace) -> dict[str, Kind]:
    if arguments.kinds:
        return {name: KINDS[name] for name in arguments.kinds.split(",")}
    return {
        name: one for name, one in KINDS.items() if arguments.model is None or not one.needs_tools
    }


def report_on(
    findings: Findings, stats: dict[str, Any], arguments: argparse.Namespace
) -> dict[str, Any]:
    memory = slopes(findings.memory)
    watched = ["front"] if findings.num_kills else ["front", "engine"]
    limit = arguments.max_growth
    health = sorted(findings.health_seconds)
    return {
        "minutes": arguments.minutes,
        "clients": arguments.clients,
        "options": arguments.options,
        "requests": sum(sum(counter.values()) for counter in findings.statuses.values()),
        "kills": findings.num_kills,
        "statuses": {name: dict(findings.statuses[name]) for name in sorted(findings.statuses)},
        "wrong": findings.num_complaints,
        "complaints": findings.complaints,
        "health_ms": {
            "median": round(1e3 * health[len(health) // 2], 1),
            "p99": round(1e3 * health[len(health) * 99 // 100], 1),
            "max": round(1e3 * health[-1], 1),
        },
        "memory": memory,
        "max_mib_a_minute": limit,
        "grows": [
            name for name in watched if limit is not None and memory[name]["mib_a_minute"] > limit
        ],
        "blocks_not_free": stats["num_blocks"] - stats["num_free_blocks"],
        "live_at_the_end": stats["num_running"] + stats["num_waiting"],
        "generated_tokens": stats["num_generated_tokens"],
        "preemptions": stats["num_preemptions"],
    }


def main() -> int:
    arguments = read_arguments()
    with tempfile.TemporaryDirectory() as directory:
        model = arguments.model or str(write_tool_model(Path(directory) / "tools"))
        with serving(model, *OPTIONS, *arguments.options) as server:
            kinds = kinds_for(arguments)
            findings, stats = asyncio.run(soak(server, kinds, arguments))
    report = report_on(findings, stats, arguments)
    print(json.dumps(report, indent=2))
    failures = ("wrong", "blocks_not_free", "live_at_the_end", "grows")
    return 1 if any(report[name] for name in failures) else 0


if __name__ == "__main__":
    sys.exit(main())
