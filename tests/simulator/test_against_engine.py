"""The simulator plans what the engine plans: the same workload through a real Engine, whose
executor moves a clock by the predicted seconds of each step that it is given."""

from __future__ import annotations

import math

import numpy as np
import pytest
from simulated import LINEAR, closed_loop, open_loop, server

from trimtab.engine.admission import validate_request
from trimtab.engine.client import EngineRequest
from trimtab.engine.engine import Engine
from trimtab.engine.sampling_params import SamplingParams
from trimtab.engine.scheduler import Chunk, StepPlan
from trimtab.errors import QueueFullError, RequestError
from trimtab.executors.base import StepBatch, StepResult
from trimtab.executors.toy import ToyExecutor
from trimtab.simulator.simulate import SimulatedServer, simulate
from trimtab.simulator.step_shape import StepShape
from trimtab.simulator.tokens import prompt_ids
from trimtab.workloads.requests import PlannedRequest, Workload

TOY_VOCAB_SIZE = 256  # four of these are equal by chance once in 2**32
Step = tuple[float, tuple[tuple[str, int, int], ...]]


class TimedToy(ToyExecutor):
    """Reads a step's shape off the arrays that an executor gets."""

    now = 0.0

    def execute(self, batch: StepBatch) -> StepResult:
        lasts = batch.seq_starts[1:] - 1
        shape = StepShape(
            batch.num_rows,
            batch.num_seqs,
            float((batch.positions.astype(np.int64) + 1).sum()),
            float((batch.positions[lasts].astype(np.int64) + 1).sum()),
            len(batch.logit_rows),
        )
        self.now += LINEAR.seconds(shape)
        return super().execute(batch)


class Driver:
    """An open or closed loop of clients around one engine, on its executor's clock."""

    def __init__(self, subject: SimulatedServer, workload: Workload) -> None:
        self.toy = TimedToy(
            subject.num_blocks, subject.block_size, TOY_VOCAB_SIZE, subject.max_context
        )
        self.engine = Engine(self.toy, subject.scheduler, debug=True)
        self.workload = workload
        self.steps: list[Step] = []
        self.tokens: dict[str, list[float]] = {}
        self.cached: dict[str, int] = {}
        self.refused: set[str] = set()
        self.prompts: dict[int, list[int]] = {}
        self.answers: dict[int, list[int]] = {}
        self.num_live = 0
        self.todo = [one for one in workload.requests if one.follows is None]
        self.pending: list[tuple[float, int, PlannedRequest]] = []
        first = len(self.todo) if workload.concurrency is None else workload.concurrency
        for one in self.todo[:first]:
            self.pending.append((one.at, one.index, one))
        self.todo = self.todo[first:]
        self._watch()

    def _watch(self) -> None:
        schedule = self.engine.scheduler.schedule

        def watched() -> StepPlan:
            plan = schedule()
            if plan.chunks:
                self.steps.append((self.toy.now, named(plan.chunks)))
            return plan

        self.engine.scheduler.schedule = watched  # type: ignore[method-assign]

    def run(self) -> None:
        inbox: list[EngineRequest] = []
        while inbox or self.pending or self.engine.num_live_requests:
            inbox += self._arrive(self.toy.now)
            for request in inbox:
                self.engine.add_request(request)
            inbox.clear()
            if not self.engine.num_live_requests:
                if not self.pending:
                    return
                self.toy.now = max(self.toy.now, min(self.pending)[0])
                continue
            outputs = self.engine.step()
            inbox += self._arrive(math.nextafter(self.toy.now, 0))
            for output in outputs:
                index = int(output.request_id)
                self.tokens.setdefault(output.request_id, []).append(self.toy.now)
                self.answers.setdefault(index, []).extend(output.token_ids)
                if output.finish_reason is not None:
                    self.cached[output.request_id] = output.num_cached_tokens
                    self.num_live -= 1
                    self._ended(index, self.toy.now, succeeded=True)

    def _arrive(self, until: float) -> list[EngineRequest]:
        requests = []
        while self.pending and min(self.pending)[0] <= until:
            self.pending.sort()
            at, index, planned = self.pending.pop(0)
            before: list[int] = []
            if planned.follows is not None:
                before = self.prompts[planned.follows] + self.answers[planned.follows]
            self.prompts[index] = [one % TOY_VOCAB_SIZE for one in prompt_ids(planned, before)]
            params = SamplingParams(max_tokens=planned.num_output_tokens, temperature=0)
            request = EngineRequest(str(index), self.prompts[index], params)
            try:
                validate_request(request, self.engine.info)
                fits = self.num_live < self.engine.max_live_requests
            except RequestError:
                fits = False
            if fits:
                self.num_live += 1
                requests.append(request)
            else:
                self.refused.add(str(index))
                self._ended(index, at, succeeded=False)
        return requests

    def _ended(self, index: int, now: float, succeeded: bool) -> None:
        after = [one for one in self.workload.requests if one.follows == index and succeeded]
        self.pending += [(now + one.at, one.index, one) for one in after]
        if not after and self.todo:
            one = self.todo.pop(0)
            self.pending.append((now, one.index, one))


def named(chunks: list[Chunk]) -> tuple[tuple[str, int, int], ...]:
    return tuple((chunk.request.request_id, chunk.start, chunk.count) for chunk in chunks)


CASES = {
    "idle": (open_loop(0.3, 20), {}),
    "busy": (open_loop(6.0, 80, seed=1), {}),
    "turns": (open_loop(2.0, 30, seed=2, turns=3), {}),
    "overload": (open_loop(60.0, 80, seed=3), {"max_queued_requests": 10}),
    "chunks": (open_loop(6.0, 60, seed=4, longest=120), {"max_batch_tokens": 7}),
    "tiny pool": (open_loop(20.0, 60, seed=5, turns=2), {"num_blocks": 45}),
    "no prefix cache": (open_loop(6.0, 40, seed=6, turns=2), {"prefix_cache": False}),
    "closed": (closed_loop(5, 60, seed=7), {}),
    "closed, refused": (closed_loop(9, 60, seed=8), {"max_num_requests": 3,
                                                     "max_queued_requests": 2}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_engine_plans_the_same_steps(name: str) -> None:
    workload, changes = CASES[name]
    subject = server(LINEAR, **changes)
    driver = Driver(subject, workload)
    driver.run()
    steps: list[Step] = []
    done = simulate(
        subject, workload, on_step=lambda now, chunks: steps.append((now, named(chunks)))
    )
    assert [chunks for _, chunks in steps] == [chunks for _, chunks in driver.steps]
    assert [now for now, _ in steps] == pytest.approx([now for now, _ in driver.steps])
    complete = [record for record in done.records if record.error is None]
    refused = {str(r.index) for r in done.records if r.error and "HTTP" in r.error}
    assert refused == driver.refused
    assert len(done.records) == len(workload.requests)
    assert {str(record.index) for record in complete} == driver.tokens.keys()
    for record in complete:
        assert record.token_times == pytest.approx(driver.tokens[str(record.index)])
        assert record.num_cached_tokens == driver.cached[str(record.index)]
    assert done.occupancy.num_preemptions == driver.engine.stats().num_preemptions
    assert simulate(subject, workload).records == done.records


def test_the_cases_reach_what_they_are_for() -> None:
    """Preemptions, refusals, cache hits: else the comparison says nothing of them."""

    def occupancy(name: str) -> object:
        workload, changes = CASES[name]
        return simulate(server(LINEAR, **changes), workload).occupancy

    assert occupancy("tiny pool").num_preemptions > 0  # type: ignore[attr-defined]
    assert occupancy("overload").num_refused > 0  # type: ignore[attr-defined]
    assert occupancy("closed, refused").num_refused > 0  # type: ignore[attr-defined]
    assert occupancy("turns").num_cached_prompt_tokens > 1000  # type: ignore[attr-defined]
    assert occupancy("no prefix cache").num_cached_prompt_tokens == 0  # type: ignore[attr-defined]


def test_the_driver_would_notice() -> None:
    """A queue that is full raises in the engine itself: the driver's own count is the same."""
    workload, changes = CASES["overload"]
    driver = Driver(server(LINEAR, **changes), workload)
    try:
        driver.run()
    except QueueFullError:
        pytest.fail("the driver let in more than the engine takes")
    assert driver.num_live == 0
