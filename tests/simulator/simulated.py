"""Servers and workloads of the simulator's tests."""

from __future__ import annotations

import random

from trimtab.config import SchedulerConfig
from trimtab.simulator.simulate import SimulatedServer
from trimtab.simulator.step_shape import StepShape
from trimtab.simulator.step_times import FitErrors, StepTimes
from trimtab.workloads.requests import Piece, PlannedRequest, Workload

# 10 ms and 1 ms a row beyond 8, 2 ms for a head and 0.1 ms a logit row, 3 us a position.
LINEAR = StepTimes(
    row_knots=(1, 8, 512),
    row_seconds=(0.010, 0.010, 0.514),
    head_knots=(1, 64),
    head_seconds=(0.002, 0.0083),
    sequence_seconds=0.0001,
    attended_seconds=1e-6,
    context_seconds=2e-6,
    largest=StepShape(512, 64, 1e6, 1e5, 64),
    errors=FitErrors(0.0, 0.0, 0.0, 0.0),
)


def server(step_times: StepTimes, **changes: object) -> SimulatedServer:
    """A pool of 1,024 blocks of 4 tokens, unless `changes` say otherwise."""
    fields: dict[str, object] = {"num_blocks": 1024, "block_size": 4, "max_context": 512}
    config = {"max_batch_tokens": 64, "max_num_requests": 8, "speculative": "off"}
    for name, value in changes.items():
        (fields if name in SimulatedServer.__dataclass_fields__ else config)[name] = value
    return SimulatedServer(step_times, SchedulerConfig(**config), **fields)  # type: ignore[arg-type]


def open_loop(
    rate: float, count: int, seed: int = 0, turns: int = 1, longest: int = 60
) -> Workload:
    """Poisson arrivals of sessions that share a system prompt; lengths drawn uniformly."""
    draw = random.Random(seed)
    requests: list[PlannedRequest] = []
    now = 0.0
    for session in range(count):
        now += draw.expovariate(rate)
        follows = None
        for turn in range(turns):
            index = len(requests)
            pieces = (Piece(f"own {session} {turn}", draw.randint(1, longest)),)
            if turn == 0 and session % 2:
                pieces = (Piece("system", 13), *pieces)
            at = now if turn == 0 else draw.choice((0.0, 0.3))
            output = draw.randint(1, longest)
            requests.append(PlannedRequest(index, at, pieces, output, session, follows))
            follows = index
    return Workload("test", tuple(requests), rate, None, seed)


def closed_loop(concurrency: int, count: int, seed: int = 0) -> Workload:
    firsts = open_loop(1.0, count, seed).requests
    requests = tuple(PlannedRequest(r.index, 0.0, r.pieces, r.num_output_tokens) for r in firsts)
    return Workload("test", requests, None, concurrency, seed)
