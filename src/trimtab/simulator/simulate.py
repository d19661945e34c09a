"""A server in virtual time: the engine's own Scheduler and KV cache, steps that take their
predicted seconds.

    arrivals --door (429)--> inbox --> Scheduler.schedule -> StepTimes.seconds -> commit --> records
        ^                                                                            |
        '---------------- later turns, next sessions of a closed loop <--------------'

As in the engine, what arrives while a step runs is queued when the step is over, and what the step
ends is only then out of the count of live requests.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np

from trimtab.config import SchedulerConfig
from trimtab.engine.kv_cache import KVCacheManager
from trimtab.engine.request import Request
from trimtab.engine.sampling_params import SamplingParams
from trimtab.engine.scheduler import Chunk, Scheduler, StepPlan
from trimtab.simulator import bulk
from trimtab.simulator.occupancy import Occupancy
from trimtab.simulator.overheads import Overheads
from trimtab.simulator.speculation import SimulatedSpeculator, SpeculationModel
from trimtab.simulator.step_shape import StepShape
from trimtab.simulator.step_times import StepTimes
from trimtab.simulator.timetable import Timetable
from trimtab.simulator.tokens import answer_ids, prompt_ids
from trimtab.workloads.records import RequestRecord
from trimtab.workloads.requests import PlannedRequest, Workload

QUEUE_FULL = "HTTP 429: too many requests are running or waiting"
NOT_SENT = "not sent: the turn before it failed"
SMALL_ROWS = 64  # steps of at most so many are decodes, nearly all of them
TOO_LONG = "HTTP 400: prompt and completion are longer than the model's context or the KV cache"


@dataclass(frozen=True)
class SimulatedServer:
    step_times: StepTimes
    scheduler: SchedulerConfig
    num_blocks: int
    block_size: int
    max_context: int  # prompt + completion
    overheads: Overheads = field(default_factory=Overheads)
    speculation: SpeculationModel | None = None  # None: each step gives a request one token
    small_pace: float = 1.0  # factor on the seconds of steps of at most SMALL_ROWS rows
    large_pace: float = 1.0  # and of more

    def pace(self, rows: int) -> float:
        return self.small_pace if rows <= SMALL_ROWS else self.large_pace


@dataclass
class Simulation:
    records: list[RequestRecord]  # of every request that was sent, in the order of their index
    occupancy: Occupancy
    wall_seconds: float  # that the simulation took

    @property
    def speed_up(self) -> float:
        """Over real time."""
        return self.occupancy.seconds / self.wall_seconds if self.wall_seconds else math.inf


def simulate(
    server: SimulatedServer,
    workload: Workload,
    in_bulk: bool = True,
    until: float = math.inf,
    check: bool = False,
    on_step: Callable[[float, list[Chunk]], None] | None = None,
    draw: int = 0,
) -> Simulation:
    """Run the workload to its end, or to `until` (seconds; what still runs then is marked `cut`).

    Without `in_bulk` every step is planned by itself, to the same records. `check` verifies the
    invariants of scheduler and cache after every step; `on_step` is told of each that is planned,
    with its start, before it is committed. Another `draw`: guesses are right at other places.
    """
    started = perf_counter()
    run = _Run(server, workload, in_bulk and on_step is None, check, on_step, draw)
    run.to_the_end(until)
    run.records.sort(key=lambda record: record.index)
    return Simulation(run.records, run.occupancy, perf_counter() - started)


@dataclass(slots=True)
class _Live:
    planned: PlannedRequest
    record: RequestRecord
    answer: list[int]  # ids that it will be given


class _Run:
    def __init__(
        self,
        server: SimulatedServer,
        workload: Workload,
        in_bulk: bool,
        check: bool,
        on_step: Callable[[float, list[Chunk]], None] | None,
        draw: int,
    ) -> None:
        self.server = server
        self.seed = workload.seed
        self.in_bulk = in_bulk
        self.check = check
        self.on_step = on_step
        self.timetable = Timetable(workload)
        config = server.scheduler
        self.max_live = config.max_num_requests + config.max_queued_requests
        self.kv_cache = KVCacheManager(server.num_blocks, server.block_size, config.prefix_cache)
        self.scheduler = Scheduler(config, self.kv_cache)
        self.speculator: SimulatedSpeculator | None = None
        if server.speculation is not None:
            self.speculator = SimulatedSpeculator(
                server.speculation, self.kv_cache, config.max_batch_tokens, (workload.seed, draw)
            )
        self.reach = server.step_times.reach
        self.now = 0.0
        self.records: list[RequestRecord] = []
        self.occupancy = Occupancy(server.num_blocks)
        self.lives: dict[Request, _Live] = {}
        self.inbox: list[Request] = []
        self.decoding: list[Request] = []  # what the latest step left, if all of it decodes
        self.texts: dict[int, list[int]] = {}  # prompt and answer, for the turns that follow
        self.followed = {one.follows for one in workload.requests if one.follows is not None}
        self.turns = _turns(workload)
        self.arrivals = 0
        self.is_behind_prompt = False  # the next step

    def to_the_end(self, until: float) -> None:
        while True:
            self._arrive(self.now)
            for request in self.inbox:
                self.scheduler.add(request)
            self.inbox.clear()
            if self.lives:
                if self.now >= until:
                    break
                if not (self.in_bulk and self._steps()):
                    self._step()
                if self.check:
                    self.scheduler.check()
            elif self.timetable.next_time < until:
                self.now = max(self.now, self._next_arrival)
            else:
                break
        for live in self.lives.values():
            live.record.cut = True
            self.records.append(live.record)
        self._close_books()

    @property
    def _next_arrival(self) -> float:
        """When the next request that is known of reaches the engine."""
        return self.timetable.next_time + self.server.overheads.request

    def _arrive(self, until: float, includes: bool = True) -> None:
        """Let in what reaches the engine before `until`, or at that moment."""
        while self._next_arrival < until or (includes and self._next_arrival == until):
            if self.timetable.next_time == math.inf:
                return
            scheduled, planned = self.timetable.pop()
            self._admit(scheduled, planned)

    def _admit(self, scheduled: float, planned: PlannedRequest) -> None:
        record = self._record(scheduled, planned)
        record.sent = scheduled
        before = self.texts.pop(planned.follows, []) if planned.follows is not None else []
        prompt = prompt_ids(planned, before)
        record.num_prompt_tokens = len(prompt)
        total = len(prompt) + planned.num_output_tokens
        capacity = self.server.num_blocks * self.server.block_size
        if total > min(self.server.max_context, capacity + 1):
            self._refuse(planned, record, TOO_LONG)
            return
        if len(self.lives) >= self.max_live:
            self._refuse(planned, record, QUEUE_FULL)
            return
        request = Request(
            request_id=str(planned.index),
            params=_PARAMS,
            token_ids=prompt,
            num_prompt_tokens=len(prompt),
            max_total_tokens=total,
            stop_ids=frozenset(),
            seed=0,
            order=(0, self.arrivals),
            cache_root=b"",
        )
        self.arrivals += 1
        answer = answer_ids(self.seed, planned.index, planned.num_output_tokens)
        self.lives[request] = _Live(planned, record, answer)
        self.inbox.append(request)

    def _record(self, scheduled: float, planned: PlannedRequest) -> RequestRecord:
        turn = self.turns[planned.index]
        return RequestRecord(planned.index, scheduled, session=planned.session, turn=turn)

    def _refuse(self, planned: PlannedRequest, record: RequestRecord, error: str) -> None:
        overheads = self.server.overheads
        record.error = error
        record.ended = record.sent + overheads.request + overheads.delivery
        self.records.append(record)
        self.occupancy.num_refused += 1
        for scheduled, dropped in self.timetable.failed(planned, record.ended):
            lost = self._record(scheduled, dropped)
            lost.error = NOT_SENT
            self.records.append(lost)

    def _step(self) -> None:
        """Plan, let time pass, commit."""
        plan = self.scheduler.schedule()
        if not plan.chunks:
            raise RuntimeError("the scheduler planned nothing although requests are live")
        guessing = 0.0
        if self.speculator is not None:
            guessing = self.speculator.extend(plan, self._seconds_with)
        shape = self.reach.of_step(plan.chunks)
        execute, around = self._execute(shape), self._around(shape)
        has_prompt = any(chunk.count > 1 for chunk in plan.chunks)
        if not has_prompt:
            cold, cold_around = self._behind_prompt
            execute, around = execute + cold, around + cold_around
        self.is_behind_prompt = has_prompt
        seconds = execute + around + guessing
        self._add(shape.rows, execute, around)
        if self.on_step is not None:
            self.on_step(self.now, plan.chunks)
        self._count(self.now, seconds, shape)
        end = self.now + seconds
        self._arrive(end, includes=False)
        self.now = end
        delivered = end + self.server.overheads.delivery
        self.decoding = []
        for chunk in plan.chunks:
            self._commit(chunk, delivered)
        self.decoding.sort(key=_order)

    def _commit(self, chunk: Chunk, delivered: float) -> None:
        request = chunk.request
        self.scheduler.commit(chunk)
        if not chunk.emits:
            return
        live = self.lives[request]
        record = live.record
        reason = request.accept(live.answer[request.num_generated])
        count = 1
        if chunk.draft is not None and self.speculator is not None:
            right = self.speculator.num_right(chunk.draft)
            while reason is None and count <= right:
                self.scheduler.commit_draft(request)
                reason = request.accept(live.answer[request.num_generated])
                count += 1
            self.speculator.num_accepted += count - 1
        record.token_times.append(delivered)
        record.token_counts.append(count)
        if reason is None:
            self.decoding.append(request)
            return
        self.scheduler.finish(request, reason)
        del self.lives[request]
        if self.speculator is not None:
            self.speculator.forget(request)
        record.ended = delivered
        record.num_output_tokens = request.num_generated
        record.num_cached_tokens = request.num_cached_tokens or 0
        self.records.append(record)
        if record.index in self.followed:
            self.texts[record.index] = request.token_ids.tolist()
        self.timetable.ended(live.planned, delivered)

    def _steps(self) -> bool:
        """As many steps as are certain to be alike; False if that is none."""
        running = self.decoding
        steps = bulk.num_steps(self.scheduler, running)
        if steps and self.speculator is not None:
            steps = min(steps, self.speculator.quiet_steps(running))
        if steps < bulk.MIN_STEPS:
            return False
        attended, context = bulk.shapes(running, steps, self.reach)
        count = len(running)
        times, overheads = self.server.step_times, self.server.overheads
        base = StepShape(count, count, 0.0, 0.0, count)
        around, (cold, cold_around) = self._around(base), self._behind_prompt
        execute = times.seconds(base) + times.attended_seconds * attended
        execute = (execute + times.context_seconds * context) * self.server.pace(count)
        execute[0] += cold
        seconds = execute + around
        seconds[0] = execute[0] + (around + cold_around)
        ends = np.cumsum(np.concatenate([[self.now], seconds]))
        # Only steps that begin before somebody arrives are certain.
        steps = min(steps, int(np.searchsorted(ends[:-1], self._next_arrival, side="left")))
        if steps < bulk.MIN_STEPS:
            return False
        starts, ends = ends[:steps], ends[1 : steps + 1]
        answers = [self.lives[request].answer for request in running]
        used = bulk.apply(self.kv_cache, running, answers, steps)
        if self.speculator is not None:
            self.speculator.skip(running, steps)
        delivered = (ends + overheads.delivery).tolist()
        ones = [1] * steps
        for request in running:
            record = self.lives[request].record
            record.token_times.extend(delivered)
            record.token_counts.extend(ones)
        waiting = self.scheduler.num_waiting
        occupancy = self.occupancy
        occupancy.add_steps(starts, seconds[:steps], count, waiting, used)
        self._add(count, float(execute[:steps].sum()), steps * around + cold_around)
        self.is_behind_prompt = False
        occupancy.num_steps += steps
        occupancy.num_bulk_steps += steps
        occupancy.num_step_tokens += steps * count
        self.now = float(ends[-1])
        return True

    def _seconds(self, shape: StepShape) -> float:
        return self._execute(shape) + self._around(shape)

    def _execute(self, shape: StepShape) -> float:
        times = self.server.step_times
        base = times.seconds(shape._replace(attended=0.0, context=0.0))
        seconds = base + times.attended_seconds * shape.attended
        seconds = seconds + times.context_seconds * shape.context
        return seconds * self.server.pace(shape.rows)

    @property
    def _behind_prompt(self) -> tuple[float, float]:
        """What a step of decodes takes longer now: in the executor, and around it."""
        if not self.is_behind_prompt:
            return 0.0, 0.0
        overheads = self.server.overheads
        return overheads.cold_executor * self.server.small_pace, overheads.behind_prompt

    def _around(self, shape: StepShape) -> float:
        overheads = self.server.overheads
        around = overheads.step + overheads.sequence * shape.sequences
        return around + overheads.row * shape.rows

    def _seconds_with(self, plan: StepPlan) -> Callable[[int], float]:
        """Of the plan, with so many more rows that need logits, and without what prompts take."""
        shape = self.reach.of_step(plan.chunks)
        part, each = self.server.step_times.row_part, self.server.overheads.row
        rows, logit_rows, pace = shape.rows, shape.logit_rows, self.server.pace(shape.rows)
        alone = shape._replace(rows=logit_rows)  # its prompts' rows left out
        rest = self._seconds(alone) - pace * part(rows, logit_rows)

        def seconds(extra: int) -> float:
            return rest + pace * part(rows + extra, logit_rows + extra) + each * extra

        return seconds

    def _count(self, start: float, seconds: float, shape: StepShape) -> None:
        occupancy, scheduler = self.occupancy, self.scheduler
        used = self.kv_cache.pool.num_blocks - self.kv_cache.num_free_blocks
        occupancy.add(start, seconds, scheduler.num_running, scheduler.num_waiting, used)
        occupancy.num_steps += 1
        occupancy.num_step_tokens += shape.rows
        if self.server.step_times.provenance(shape) != "interpolated":
            occupancy.extrapolated_seconds += seconds

    def _add(self, rows: int, execute: float, around: float) -> None:
        if rows <= SMALL_ROWS:
            self.occupancy.small_seconds += execute
        else:
            self.occupancy.large_seconds += execute
        self.occupancy.around_seconds += around

    def _close_books(self) -> None:
        occupancy, scheduler = self.occupancy, self.scheduler
        occupancy.seconds = self.now
        if self.speculator is not None:
            occupancy.num_drafted = self.speculator.num_drafted
            occupancy.num_accepted = self.speculator.num_accepted
        occupancy.num_preemptions = scheduler.num_preemptions
        occupancy.num_prompt_tokens = scheduler.num_prompt_tokens
        occupancy.num_cached_prompt_tokens = scheduler.num_cached_prompt_tokens


_PARAMS = SamplingParams(temperature=0, ignore_eos=True)


def _turns(workload: Workload) -> dict[int, int]:
    """Of each request, by index: how many turns of its session come before it."""
    turns: dict[int, int] = {}
    for planned in workload.requests:
        turns[planned.index] = 0 if planned.follows is None else turns[planned.follows] + 1
    return turns


def _order(request: Request) -> tuple[int, int]:
    return request.order
