"""How long work on a device takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

Work = Callable[[], Any]
GRAPH_LAUNCHES = 32  # at least so many in a graph, if they are short: its own launch costs, too


def synchronize(device: torch.device | str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def host_seconds(work: Work, device: torch.device | str) -> float:
    """Until the device is done, from a device that has nothing to do."""
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def device_seconds(
    works: Sequence[Work], device: torch.device | str, samples: int = 7, least: float = 0.005
) -> list[float]:
    """Of one of `works`, each of which is queued in turn, often enough that a sample takes `least`
    seconds: one value a sample. On CUDA they are captured in a graph, so that what a launch costs
    the host is no part of it; where that is not possible, they are queued one by one.

    Give several that read different memory if what they read would otherwise stay in a cache.
    """
    for work in works:  # compiles, and chooses algorithms
        work()
    once = host_seconds(lambda: [work() for work in works], device) / len(works)
    rounds = max(1, min(1000, round(least / max(once, 1e-7)))) if least else 1
    if torch.device(device).type != "cuda":
        return [
            host_seconds(lambda: [work() for work in works], device) / len(works)
            for _ in range(samples)
        ]
    passes = max(1, min(rounds, GRAPH_LAUNCHES) // len(works))
    replay, per_replay = _captured(list(works) * passes)
    repeats = max(1, rounds // per_replay)
    values = []
    for _ in range(samples + 1):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(repeats):
            replay()
        end.record()
        end.synchronize()
        values.append(begin.elapsed_time(end) / 1000 / (repeats * per_replay))
    return values[1:]


def _captured(works: Sequence[Work]) -> tuple[Work, int]:
    """Something that queues all of them, and how many those are."""

    def one_by_one() -> None:
        for work in works:
            work()

    try:
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            one_by_one()
        return graph.replay, len(works)
    except RuntimeError:
        torch.cuda.synchronize()
        return one_by_one, len(works)


def median(values: Sequence[float]) -> float:
    return statistics.median(values)
