"""Measure steps of an executor and fit `StepTimes` to them.

What a step costs does not depend on the values in the KV cache, only on how many there are: so one
block is computed and copied to all the others, and steps are measured at any context without the
prefill of it. Machines that others use are noisy: rounds are the outer loop, each in another order,
and what counts is the lower quartile, since whatever disturbs a step makes it longer.
"""

from __future__ import annotations

import random
import statistics
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np

from trimtab.config import SchedulerConfig
from trimtab.engine.batch import BatchBuilder
from trimtab.engine.request import Request
from trimtab.engine.sampling_params import SamplingParams
from trimtab.engine.scheduler import Chunk
from trimtab.executors.base import Executor
from trimtab.simulator.grid import Point, design
from trimtab.simulator.step_shape import Reach
from trimtab.simulator.step_times import StepSample, StepTimes, fit_step_times

LONGEST = 4096  # positions of context, if nothing else is said
SECONDS = 60.0
MAX_ROUNDS = 7
BURST_SECONDS = 0.02  # of a point in one round: short steps are repeated
MAX_BURST = 8


@dataclass(frozen=True)
class CalibrationPlan:
    longest: int = 0  # positions of context up to which steps are measured; 0 = LONGEST
    seconds: float = SECONDS  # about; two rounds at least
    seed: int = 0
    params: SamplingParams = SamplingParams(temperature=0, ignore_eos=True)


def calibrate(
    executor: Executor,
    scheduler: SchedulerConfig | None = None,
    plan: CalibrationPlan | None = None,
    subject: Mapping[str, Any] | None = None,
    progress: Callable[[str], None] = lambda text: None,
    clock: Callable[[], float] = perf_counter,
) -> StepTimes:
    """Overwrites the executor's blocks: no request may live. `scheduler` says which steps there can
    be; `subject` goes with the result. UserError if the KV cache is too small for a grid."""
    plan = plan or CalibrationPlan()
    scheduler = scheduler or SchedulerConfig()
    capacity = executor.capacity
    longest = min(plan.longest or LONGEST, executor.spec.max_context, capacity.num_tokens)
    points = design(scheduler, capacity, longest, plan.seed)
    stage = _Stage(executor, plan)
    stage.fill(max(point.num_blocks(capacity.block_size) for point in points))
    seconds = _measure(stage, points, plan, progress, clock)
    reach = Reach.of(executor.spec)
    samples = [
        StepSample(reach.of_step(stage.chunks(point)), _typical(times), point.is_held_out)
        for point, times in zip(points, seconds, strict=True)
    ]
    about = {
        "executor": str(getattr(executor, "description", type(executor).__name__)),
        "identity": executor.identity,
        "longest": longest,
        "rounds": min(map(len, seconds)),
        **(subject or {}),
    }
    return fit_step_times(samples, reach.windows, about)


def _measure(
    stage: _Stage,
    points: Sequence[Point],
    plan: CalibrationPlan,
    progress: Callable[[str], None],
    clock: Callable[[], float],
) -> list[list[float]]:
    """The seconds of each point: one value a round."""
    draw = random.Random(plan.seed)
    seconds: list[list[float]] = [[] for _ in points]
    order = list(range(len(points)))
    started = clock()
    for number in range(MAX_ROUNDS):
        draw.shuffle(order)
        for place in order:
            is_slow = number > 1 and min(seconds[place]) > plan.seconds / len(points)
            is_over = number > 1 and clock() - started > plan.seconds
            if not (is_slow or is_over):
                seconds[place].append(stage.run(points[place], clock))
        progress(
            f"round {number + 1}: {len(points)} steps measured, {clock() - started:.0f} s so far"
        )
        if number and clock() - started > plan.seconds:
            break
    return seconds


def _typical(times: Sequence[float]) -> float:
    return float(np.quantile(times, 0.25))


class _Stage:
    """Builds the batches that the engine would build, on block tables of its own."""

    def __init__(self, executor: Executor, plan: CalibrationPlan) -> None:
        self._executor = executor
        self._plan = plan
        self._draw = np.random.default_rng(plan.seed)
        self._builder = BatchBuilder()

    def fill(self, num_blocks: int) -> None:
        """Contents of the first so many blocks: those of one, computed here."""
        size = self._executor.capacity.block_size
        self._executor.execute(self._builder.build(self.chunks(Point(count=size, emits=False))))
        copies = np.arange(1, num_blocks, dtype=np.int32)
        for part in np.array_split(copies, -(-len(copies) // 256) or 1):
            self._executor.copy_blocks(np.zeros_like(part), part)

    def run(self, point: Point, clock: Callable[[], float]) -> float:
        """Seconds of one such step: the median of several if they are short. The first one, whose
        code and data nothing has touched for long, does not count then."""
        times: list[float] = []
        total = 0.0
        while not times or (total < BURST_SECONDS and len(times) < MAX_BURST):
            batch = self._builder.build(self.chunks(point))
            start = clock()
            self._executor.execute(batch)
            times.append(clock() - start)
            total += times[-1]
        return statistics.median(times[1:] or times)

    def chunks(self, point: Point) -> list[Chunk]:
        """Decodes first, as the scheduler has them."""
        lengths = [(context - 1, 1, True) for context in point.decodes]
        if point.count:
            lengths.append((point.start, point.count, point.emits))
        chunks, first = [], 0
        for start, count, emits in lengths:
            num_blocks = -(-(start + count) // self._executor.capacity.block_size)
            chunks.append(self._chunk(start, count, emits, range(first, first + num_blocks)))
            first += num_blocks
        return chunks

    def _chunk(self, start: int, count: int, emits: bool, blocks: range) -> Chunk:
        total = start + count + (not emits)
        tokens = self._draw.integers(0, self._executor.spec.vocab_size, total, np.int32)
        request = Request(
            request_id="calibration",
            params=self._plan.params,
            token_ids=array("i", tokens.tobytes()),
            num_prompt_tokens=total,
            max_total_tokens=total + 1,
            stop_ids=frozenset(),
            seed=0,
            order=(0, blocks.start),
            cache_root=b"",
            num_computed_tokens=start,
            block_ids=array("i", blocks),
        )
        return Chunk(request, start, count, emits)
