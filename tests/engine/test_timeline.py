"""A request's timeline, and the parts of the steps: they add up, whatever happened."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import pytest
from engine_schedules import toy

from trimtab.config import SchedulerConfig
from trimtab.engine.client import EngineRequest, RequestTimeline, TokenOutput
from trimtab.engine.engine import Engine
from trimtab.engine.sampling_params import SamplingParams
from trimtab.engine.timing import MAX_CHUNKS
from trimtab.executors.base import StepBatch, StepResult

GREEDY = SamplingParams(max_tokens=3, temperature=0, ignore_eos=True)


class Slow:
    """A toy whose steps take so many seconds."""

    def __init__(self, toy: Any, seconds: float) -> None:
        self._toy, self._seconds = toy, seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(self._toy, name)

    def execute(self, batch: StepBatch) -> StepResult:
        time.sleep(self._seconds)
        result: StepResult = self._toy.execute(batch)
        return result


def run(engine: Engine) -> dict[str, TokenOutput]:
    """Last outputs, by request."""
    last = {}
    while engine.num_live_requests:
        for output in engine.step():
            if output.request_id not in last or output.finish_reason is not None:
                assert output.timeline is not None
            else:
                assert output.timeline is None or output.timeline.num_preemptions > 0
            last[output.request_id] = output
    return last


def timeline_of(output: TokenOutput) -> RequestTimeline:
    timeline = output.timeline
    assert timeline is not None
    assert timeline.queued <= timeline.total
    starts = [chunk.start for chunk in timeline.prefill]
    assert starts == sorted(starts)
    for chunk, after in pairwise(timeline.prefill):
        assert chunk.start + chunk.seconds <= after.start
    return timeline


def test_every_chunk_of_a_prefill_is_there() -> None:
    engine = Engine(Slow(toy(), 0.005), SchedulerConfig(max_batch_tokens=4), debug=True)
    engine.add_request(EngineRequest("r", list(range(1, 11)), GREEDY))
    timeline = timeline_of(run(engine)["r"])
    assert [chunk.num_tokens for chunk in timeline.prefill] == [4, 4, 2]
    assert all(chunk.seconds >= 0.005 for chunk in timeline.prefill)
    assert timeline.queued == timeline.prefill[0].start
    assert timeline.first_token is not None
    last = timeline.prefill[-1]
    assert timeline.first_token == pytest.approx(last.start + last.seconds)
    assert timeline.total >= timeline.first_token + 2 * 0.005


def test_a_cached_prefix_is_no_chunk() -> None:
    engine = Engine(toy(block_size=4), debug=True)
    for name in ("first", "second"):
        engine.add_request(EngineRequest(name, list(range(1, 11)), GREEDY))
        output = run(engine)[name]
    assert output.num_cached_tokens == 8
    assert [chunk.num_tokens for chunk in timeline_of(output).prefill] == [2]


def test_who_waits_is_queued() -> None:
    engine = Engine(Slow(toy(), 0.002), SchedulerConfig(max_num_requests=1), debug=True)
    for name in "ab":
        engine.add_request(EngineRequest(name, [1, 2, ord(name) % 9], GREEDY))
    last = run(engine)
    assert timeline_of(last["b"]).queued >= 0.006


def test_preemption_is_counted_and_computes_again() -> None:
    engine = Engine(toy(num_blocks=4, block_size=4), debug=True)
    engine.scheduler.estimate.tokens = 0.0  # completions are expected to end at once
    params = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
    for name, first in (("a", 1), ("b", 5)):
        engine.add_request(EngineRequest(name, [first, 2, 3, 4], params))
    last = run(engine)
    timelines = [timeline_of(last[name]) for name in "ab"]
    preempted = max(timelines, key=lambda one: one.num_preemptions)
    assert preempted.num_preemptions >= 1
    assert sum(chunk.num_tokens for chunk in preempted.prefill) > 4
    assert preempted.first_token is not None
    assert len(preempted.prefill) >= 2


def test_what_never_ran_was_queued_all_the_time() -> None:
    engine = Engine(toy(), debug=True)
    engine.add_request(EngineRequest("r", [1, 2], GREEDY))
    output = engine.abort("r")
    assert output is not None
    timeline = timeline_of(output)
    assert timeline.queued == timeline.total
    assert timeline.first_token is None
    assert timeline.prefill == []


def test_a_prefill_of_very_many_chunks_stays_bounded() -> None:
    length = MAX_CHUNKS + 40
    engine = Engine(
        toy(num_blocks=128, max_context=512), SchedulerConfig(max_batch_tokens=1), debug=True
    )
    engine.add_request(EngineRequest("r", [i % 9 + 1 for i in range(length)], GREEDY))
    timeline = timeline_of(run(engine)["r"])
    assert len(timeline.prefill) == MAX_CHUNKS
    assert sum(chunk.num_tokens for chunk in timeline.prefill) == length


def test_the_parts_of_the_steps_add_up() -> None:
    engine = Engine(Slow(toy(), 0.002), SchedulerConfig(max_batch_tokens=4), debug=True)
    engine.add_request(EngineRequest("r", list(range(1, 11)), GREEDY))
    started = time.perf_counter()
    run(engine)
    elapsed = time.perf_counter() - started
    stats = engine.stats()
    assert (stats.num_steps, stats.num_step_tokens) == (5, 10 + 2)
    assert stats.step_size_counts[:2] == [2, 3]  # of one token, of two to eight
    assert stats.execute_seconds >= 5 * 0.002
    parts = (stats.schedule_seconds, stats.build_seconds, stats.commit_seconds)
    parts += (stats.between_seconds,)
    assert all(part > 0 for part in parts)
    assert stats.execute_seconds + sum(parts) <= elapsed
    time.sleep(0.05)  # nobody waits for a step
    engine.add_request(EngineRequest("s", [1], GREEDY))
    engine.step()
    assert engine.stats().between_seconds == stats.between_seconds
