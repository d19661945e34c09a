"""Seconds of a step in the stride of an engine that queues each step behind the one that runs.

    host      launch 1 . launch 2 . wait 1 . launch 3 . wait 2 ...
    device    | step 1          | step 2          | step 3

What counts is from step to step: the longer of what the host does to launch one and what the device
does to run it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

from trimtab.executors.base import AsyncExecutor, Executor, StepBatch

BURST_SECONDS = 0.02  # of short steps
MAX_BURST = 32


def is_asynchronous(executor: Executor) -> bool:
    return hasattr(executor, "execute_async")


def compiles(executor: Executor) -> bool:
    """Whether the first step of a size takes longer than others: graphs are captured, kernels
    compiled."""
    return str(getattr(executor, "device", "cpu")).startswith("cuda")


def repeated_seconds(
    executor: Executor, batch: StepBatch, clock: Callable[[], float], burst: float = BURST_SECONDS
) -> float:
    """Of an `AsyncExecutor`. A step longer than a burst is run once, and waited for: what launching
    it takes is nothing beside it then."""
    queue = cast(AsyncExecutor, executor).execute_async
    start = clock()
    executor.execute(batch)
    alone = clock() - start
    if alone >= burst:
        return alone
    count = min(MAX_BURST, max(4, math.ceil(burst / max(alone, 1e-6))))
    running = queue(batch)
    start = clock()
    for _ in range(count):
        behind = queue(batch)
        running.result()
        running = behind
    running.result()
    return (clock() - start) / (count + 1)
