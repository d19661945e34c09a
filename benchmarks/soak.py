"""Random requests at overload for minutes, and what must hold meanwhile.

    python benchmarks/soak.py [MODEL] [--minutes 5] [--clients 64] [--kill SECONDS] [--seed 0]

Each client draws one kind of request after another (soak_kinds.py: add a kind there) and checks its
answer: the statuses that the kind may earn or 429 with Retry-After, and of a 200 the whole of its
form. The server has a short queue, so that it refuses; its engine may be killed every so often.

Reported: how many requests of each kind got which status, the slowest /health, the memory of both
processes once a second with its slope after the first third. Exit status 1 if an answer was wrong,
a block was not free at the end, or the server did not end as it should.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np

from serving import Server, memory_bytes, serving
from soak_kinds import KINDS, WrongAnswerError

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
    client: httpx.AsyncClient, draw: random.Random, deadline: float, findings: Findings
) -> None:
    names = list(KINDS)
    weights = [KINDS[name].weight for name in names]
    while time.monotonic() < deadline:
        (name,) = draw.choices(names, weights)
        try:
            status = await KINDS[name].run(client, draw)
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


async def soak(server: Server, arguments: argparse.Namespace) -> tuple[Findings, dict[str, Any]]:
    findings = Findings()
    deadline = time.monotonic() + 60 * arguments.minutes
    draws = [random.Random(f"{arguments.seed} {i}") for i in range(arguments.clients + 1)]
    async with server.client() as client:
        await asyncio.gather(
            watch(server, deadline, findings),
            kill_sometimes(server, arguments.kill, deadline, draws.pop(), findings),
            *[be_client(client, draw, deadline, findings) for draw in draws],
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
    """MiB a minute after the first third, by least squares, and the means of the last two."""
    table = np.array(memory, float)
    late = table[len(table) // 3 :]
    half = len(late) // 2
    result = {}
    for name, column in (("front", 1), ("engine", 2)):
        seconds, mib = late[:, 0], late[:, column] / (1 << 20)
        result[name] = {
            "mib_after_warm_up": round(float(mib[:half].mean()), 2),
            "mib_at_the_end": round(float(mib[half:].mean()), 2),
            "mib_a_minute": round(float(np.polyfit(seconds, mib, 1)[0]) * 60, 3),
        }
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="builtin")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument(
        "--kill", type=float, default=0.0, help="kill the engine so often; 0 = never"
    )
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with serving(arguments.model, *OPTIONS) as server:
        findings, stats = asyncio.run(soak(server, arguments))
    leaked = stats["num_blocks"] - stats["num_free_blocks"]
    health = sorted(findings.health_seconds)
    report = {
        "minutes": arguments.minutes,
        "clients": arguments.clients,
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
        "memory": slopes(findings.memory),
        "blocks_not_free": leaked,
        "live_at_the_end": stats["num_running"] + stats["num_waiting"],
        "generated_tokens": stats["num_generated_tokens"],
        "preemptions": stats["num_preemptions"],
    }
    print(json.dumps(report, indent=2))
    good = not findings.num_complaints and not leaked and not report["live_at_the_end"]
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
