"""Measure steps of an executor and fit `StepTimes` to them.

What a step costs does not depend on the values in the KV cache, only on how many there are: so one
block is computed and copied to all the others, and steps are measured at any context without the
prefill of it. Machines that others use are noisy: rounds are the outer loop, each in another order,
and what counts is the median, of those steps for which the cores lay near one another if there are
such (trimtab.executors.placement).
"""

from __future__ import annotations

import math
import random
import statistics
from array import array
from collections.abc import Callable, Mapping
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
from trimtab.executors.placement import Placement, placement_of
from trimtab.simulator.grid import Point, design
from trimtab.simulator.repeated import compiles, is_asynchronous, repeated_seconds
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
    shortest_handoff: float = math.inf  # seconds between cores, as far as is known from before


def calibrate(
    executor: Executor,
    scheduler: SchedulerConfig | None = None,
    plan: CalibrationPlan | None = None,
    subject: Mapping[str, Any] | None = None,
    progress: Callable[[str], None] = lambda text: None,
    clock: Callable[[], float] = perf_counter,
    placement: Placement | None = None,
) -> StepTimes:
    """Overwrites the executor's blocks: no request may live. `scheduler` says which steps there can
    be; `subject` goes with the result. UserError if the KV cache is too small for a grid."""
    measurement = StepMeasurement(executor, scheduler, plan, clock, placement)
    while measurement.goes_on:
        measurement.round()
        progress(measurement.state)
    return measurement.fit(subject)


class StepMeasurement:
    """Rounds over the points of a grid; between them the executor may be used for other things."""

    def __init__(
        self,
        executor: Executor,
        scheduler: SchedulerConfig | None = None,
        plan: CalibrationPlan | None = None,
        clock: Callable[[], float] = perf_counter,
        placement: Placement | None = None,
    ) -> None:
        self._executor = executor
        self._placement = placement or placement_of(1, 0.0)
        self._plan = plan = plan or CalibrationPlan()
        self._clock = clock
        capacity = executor.capacity
        longest = min(plan.longest or LONGEST, executor.spec.max_context, capacity.num_tokens)
        self._longest = longest
        self._points = design(scheduler or SchedulerConfig(), capacity, longest, plan.seed)
        self._stage = _Stage(executor, plan)
        self._stage.fill(max(point.num_blocks(capacity.block_size) for point in self._points))
        # One value a round; those that count, and those of cores that lay apart.
        self._seconds: list[list[float]] = [[] for _ in self._points]
        self._apart: list[list[float]] = [[] for _ in self._points]
        self._draw = random.Random(plan.seed)
        self._num_rounds = 0
        self._elapsed = 0.0

    @property
    def goes_on(self) -> bool:
        """Whether the plan wants another round: two at least."""
        is_over = self._elapsed > self._plan.seconds
        return self._num_rounds < 2 or (self._num_rounds < MAX_ROUNDS and not is_over)

    @property
    def state(self) -> str:
        """For people."""
        steps = f"{len(self._points)} steps measured"
        return f"round {self._num_rounds}: {steps}, {self._elapsed:.0f} s so far"

    def round(self) -> None:
        """Every point once more, in another order. From the third round on, none that takes more
        than its share of the plan's seconds, and nothing once they are over."""
        order = list(range(len(self._points)))
        self._draw.shuffle(order)
        limit, share = self._plan.seconds, self._plan.seconds / len(self._points)
        for place in order:
            known = self._seconds[place] or self._apart[place]
            if len(known) < 2 or (self._elapsed < limit and min(known) < share):
                was_near = self._placement.wait()
                started = self._clock()
                seconds = self._stage.run(self._points[place], self._clock)
                self._elapsed += self._clock() - started
                near = self._placement.is_near() and was_near
                (self._seconds if near else self._apart)[place].append(seconds)
        self._num_rounds += 1

    def fit(self, subject: Mapping[str, Any] | None = None) -> StepTimes:
        """UserError before anything was measured."""
        reach = Reach.of(self._executor.spec)
        samples = [
            StepSample(
                reach.of_step(self._stage.chunks(point)),
                statistics.median(times),
                point.is_held_out,
            )
            for point, near, apart in zip(self._points, self._seconds, self._apart, strict=True)
            if (times := near or apart)
        ]
        about = {
            "executor": str(getattr(self._executor, "description", type(self._executor).__name__)),
            "identity": self._executor.identity,
            "longest": self._longest,
            "rounds": self._num_rounds,
            "apart": sum(not near for near in self._seconds) / len(self._points),
            **(subject or {}),
        }
        return fit_step_times(samples, reach.windows, about)


class _Stage:
    """Builds the batches that the engine would build, on block tables of its own."""

    def __init__(self, executor: Executor, plan: CalibrationPlan) -> None:
        self._executor = executor
        self._plan = plan
        self._draw = np.random.default_rng(plan.seed)
        self._builder = BatchBuilder()
        self._compiled: set[Point] = set()

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
        if is_asynchronous(self._executor):
            return self._run_ahead(point, clock)
        times: list[float] = []
        total = 0.0
        while not times or (total < BURST_SECONDS and len(times) < MAX_BURST):
            batch = self._builder.build(self.chunks(point))
            start = clock()
            self._executor.execute(batch)
            times.append(clock() - start)
            total += times[-1]
        return statistics.median(times[1:] or times)

    def _run_ahead(self, point: Point, clock: Callable[[], float]) -> float:
        """As an engine does that plans ahead; the first of its size not counted where sizes are
        compiled for."""
        batch = self._builder.build(self.chunks(point))
        if point not in self._compiled and compiles(self._executor):
            self._executor.execute(batch)
            self._compiled.add(point)
        return repeated_seconds(self._executor, batch, clock)

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
