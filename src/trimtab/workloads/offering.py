"""Sessions become requests: as many as asked, fitting the context, each with its start."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trimtab.workloads.arrivals import Arrivals
from trimtab.workloads.lengths import quantiles
from trimtab.workloads.requests import PlannedRequest, Workload
from trimtab.workloads.sessions import Turn, conversation_length, fit, plan

DEFAULT_DURATION = 60.0  # seconds of an open loop
DEFAULT_COUNT = 100  # requests of a closed loop, at least; and ten for each that runs at once


@dataclass(frozen=True)
class Load:
    """How the requests are offered; checked."""

    rate: float | None
    concurrency: int | None
    duration: float | None
    count: int | None
    burstiness: float | None


def number_of_requests(load: Load) -> int:
    """How many requests, turns included."""
    if load.count is not None:
        return load.count
    if load.rate is not None:
        return max(1, round(load.rate * (load.duration or DEFAULT_DURATION)))
    return max(DEFAULT_COUNT, 10 * (load.concurrency or 0))


def random_numbers(seed: int, *purpose: str) -> np.random.Generator:
    """A stream of its own for each purpose."""
    return np.random.default_rng([seed, zlib.crc32("/".join(purpose).encode())])


def fitting(
    drawn: Iterable[Sequence[Turn]], count: int, max_context: int
) -> tuple[list[list[Turn]], int]:
    """Sessions cut to the context, until they have `count` turns (the last one ends there, and so
    do `drawn` that end before), and how many were cut."""
    sessions: list[list[Turn]] = []
    num_cut, left = 0, count
    for session in drawn:
        kept = fit(session, max_context)
        num_cut += conversation_length(kept) != conversation_length(session)
        sessions.append(kept[:left])
        left -= len(sessions[-1])
        if left <= 0:
            break
    return sessions, num_cut


def offered(
    name: str,
    sessions: Sequence[list[Turn]],
    arrivals: Arrivals,
    load: Load,
    seed: int,
    description: dict[str, Any],
) -> Workload:
    """Gives sessions their starts: at a rate, or all at 0 for a closed loop."""
    if load.burstiness is not None:
        arrivals = Arrivals("asked for", load.burstiness)
    if load.rate is None:
        starts = [0.0] * len(sessions)
        description = {**description, "arrivals": "closed loop"}
    else:
        num_requests = sum(len(session) for session in sessions)
        duration = num_requests / load.rate
        starts = arrivals.times(random_numbers(seed, name, "arrivals"), len(sessions), duration)
        description = {
            **description,
            "arrivals": arrivals.text,
            "arrivals_source": arrivals.source,
            "duration": duration,
        }
    requests = plan(zip(starts, sessions, strict=True))
    concurrency = load.concurrency
    if load.rate is None and concurrency is None:
        concurrency = len(sessions)
    return finished(name, requests, load.rate, concurrency, seed, description)


def finished(
    name: str,
    requests: Sequence[PlannedRequest],
    rate: float | None,
    concurrency: int | None,
    seed: int,
    description: dict[str, Any],
) -> Workload:
    description = {
        **description,
        "requests": len(requests),
        "sessions": sum(request.follows is None for request in requests),
        "prompt_tokens": quantiles([request.num_prompt_tokens for request in requests]),
        "output_tokens": quantiles([request.num_output_tokens for request in requests]),
    }
    return Workload(name, tuple(requests), rate, concurrency, seed, description)
