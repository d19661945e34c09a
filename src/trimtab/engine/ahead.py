"""The step after one that still runs, planned as if each of its tokens were followed by another.

    host     plan n+1 . . commit n . plan n+2 . . commit n+1 .      what ends with step n has a row
    device   | step n           | step n+1          | step n+2      in n+1, which is thrown away

What is assumed of the running step lasts while the next one is planned: between steps, requests are
as they are. Nobody looks at a token that is not known yet: the executor puts it in
(`StepBatch.chosen_before`). So a step is followed in this way only if the device has all that its
tokens and those of the next step depend on: no drafts, and no masks or penalties that follow from
tokens.

Nobody is preempted while a step runs. Blocks of a request that ends are free at once, though the
next step, queued already, writes one more token into the last of them: it was never full, so nobody
can find it, and whoever takes it writes it in a step queued later.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from trimtab.engine.batch import is_settled
from trimtab.engine.request import Request, RequestState
from trimtab.engine.scheduler import Chunk, Scheduler, StepPlan
from trimtab.engine.timing import StepClock, StepPart
from trimtab.executors.base import AsyncExecutor, Int32Array, Pending, StepBatch, StepResult

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Flight:
    """A step that was handed to the executor."""

    plan: StepPlan
    pending: Pending


@dataclass(slots=True)
class FailedPending:
    """Of a step that the executor did not take."""

    error: Exception

    def result(self) -> StepResult:
        raise self.error


class StepsAhead:
    """Runs steps, and launches the next while one runs. Not thread-safe."""

    def __init__(
        self,
        executor: AsyncExecutor,
        scheduler: Scheduler,
        build: Callable[[StepPlan], StepBatch],
        clock: StepClock,
    ) -> None:
        self._executor = executor
        self._scheduler = scheduler
        self._build = build
        self._clock = clock
        self._flight: Flight | None = None

    @property
    def plan(self) -> StepPlan | None:
        """Of the step that was launched and not yet waited for."""
        return None if self._flight is None else self._flight.plan

    def run(self, plan: StepPlan) -> StepResult:
        """Waits for the step that was launched, or else for one of this plan, when the step after
        it is launched. Raises what the executor does; requests of later steps do not pay for it."""
        flight = self._flight or self._launch(plan, None)
        self._flight = None
        if not isinstance(flight.pending, FailedPending):
            self._flight = self._launch_next(plan)
        return flight.pending.result()

    def land(self) -> None:
        """Wait for a step that nobody needs any more."""
        flight, self._flight = self._flight, None
        if flight is not None:
            try:
                flight.pending.result()
            except Exception as error:
                logger.error("a step that nobody needed failed", exc_info=error)

    def _launch(self, plan: StepPlan, before: StepPlan | None) -> Flight:
        """Behind that of `before`, which runs."""
        try:
            if before is None:
                batch = self._build(plan)
            else:
                with assumed(before):
                    batch = self._build(plan)
                batch.chosen_before = chosen_before(before, plan.chunks)
            return Flight(plan, self._executor.execute_async(batch))
        except Exception as error:  # told when its turn comes
            return Flight(plan, FailedPending(error))

    def _launch_next(self, running: StepPlan) -> Flight | None:
        """None if it cannot be known yet what follows, or nothing does."""
        if not is_predictable(running):
            return None
        with assumed(running):
            if self._scheduler.would_preempt():
                return None
            plan = self._scheduler.schedule()
        self._clock.lap(StepPart.SCHEDULE)
        return self._launch(plan, running) if plan.chunks else None


def is_predictable(plan: StepPlan) -> bool:
    """Whether the step after it can be planned before its tokens are known."""
    return all(
        chunk.draft is None and is_settled(chunk.request) and not chunk.request.owed_rows
        for chunk in plan.chunks
    )


@contextmanager
def assumed(plan: StepPlan) -> Iterator[None]:
    """Inside, the requests of a predictable plan are as they will be if none of them ends: their
    rows are computed, and token 0 stands for each that is chosen. Those that must end are held."""
    saved: list[tuple[Request, int, bool]] = []
    for chunk in plan.chunks:
        request = chunk.request
        if request.state is not RequestState.RUNNING:
            continue
        saved.append((request, request.num_computed_tokens, chunk.emits))
        request.num_computed_tokens = chunk.start + chunk.count
        if chunk.emits:
            request.token_ids.append(0)
            last = request.num_tokens >= request.max_total_tokens
            request.is_held = last or not request.chooses
    try:
        yield
    finally:
        for request, num_computed, emitted in saved:
            request.num_computed_tokens = num_computed
            if emitted:
                request.token_ids.pop()
                request.is_held = False


def chosen_before(plan: StepPlan, following: Sequence[Chunk]) -> Int32Array:
    """`StepBatch.chosen_before` of the chunks that follow a predictable plan."""
    places: dict[int, int] = {}
    for chunk in plan.chunks:
        if chunk.emits and chunk.request.chooses:
            places[id(chunk.request)] = len(places)
    rows = np.full(sum(chunk.count for chunk in following), -1, np.int32)
    end = 0
    for chunk in following:
        end += chunk.count
        rows[end - 1] = places.get(id(chunk.request), -1)
    return rows
