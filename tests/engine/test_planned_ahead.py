"""Steps that are planned while another one runs: the same answers, and nothing lost or leaked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
from engine_schedules import (
    EOS,
    VOCAB,
    Answer,
    Schedule,
    play,
    run,
    schedules,
    toy_class,
    toy_reference,
)
from hypothesis import given, settings
from test_schedule_law import check_bans, step_bound

from trimtab.config import SchedulerConfig
from trimtab.engine.client import EngineRequest
from trimtab.engine.engine import Engine
from trimtab.engine.sampling_params import SamplingParams
from trimtab.executors.base import StepBatch, StepResult
from trimtab.executors.toy import ToyExecutor


@dataclass
class LatePending:
    executor: Late
    tokens: StepResult

    def result(self) -> StepResult:
        self.executor.num_waited += 1
        return self.tokens


class Late:
    """Gives a step's tokens to the next one by itself; those that the engine sent in their stead
    are token 0, which it never chose. Beside a toy."""

    num_waited = 0
    num_launched = 0
    num_ahead = 0
    fail_at = -1
    latest: StepResult | None = None

    def execute_async(self, batch: StepBatch) -> LatePending:
        if self.num_launched == self.fail_at:
            self.fail_at = -1
            raise RuntimeError("a launch failed")
        self.num_ahead += self.num_launched > self.num_waited
        self.num_launched += 1
        assert self.num_launched <= self.num_waited + 2
        before = batch.chosen_before
        if before is not None and isinstance(self, ToyExecutor):  # torch does it, on its device
            assert self.latest is not None
            token_ids = batch.token_ids.copy()
            assert (token_ids[before >= 0] == 0).all()
            token_ids[before >= 0] = self.latest.tokens[before[before >= 0]]
            batch = replace(batch, token_ids=token_ids, chosen_before=None)
        self.latest = self.execute(batch)  # type: ignore[attr-defined]
        return LatePending(self, self.latest)


def late(num_blocks: int = 64, block_size: int = 4, max_context: int = 64) -> Any:
    class LateToy(Late, toy_class()):  # type: ignore[misc]
        pass

    return LateToy(num_blocks, block_size, VOCAB, max_context, (EOS,))


@given(schedule=schedules())
@settings(max_examples=150, deadline=None)
def test_any_schedule_gives_the_reference_answers(schedule: Schedule) -> None:
    check_schedule_ahead(schedule)


def check_schedule_ahead(schedule: Schedule) -> None:
    capacity = schedule.block_size * schedule.num_blocks
    executor = late(schedule.num_blocks, schedule.block_size, capacity + 1)
    engine = Engine(executor, schedule.config, debug=True)
    finished: dict[str, Answer] = {}
    for _, request_id, answer in play(engine, schedule, max_steps=2 * step_bound(schedule)):
        assert request_id not in finished
        finished[request_id] = answer
    assert finished.keys() == {arrival.request.request_id for arrival in schedule.arrivals}
    for arrival in schedule.arrivals:
        reference = toy_reference(executor, arrival.request)
        answer = finished[arrival.request.request_id]
        if answer.finish_reason == "abort":
            assert answer.token_ids == reference.token_ids[: len(answer.token_ids)]
            assert answer.prompt_logprobs in (None, reference.prompt_logprobs)
        else:
            assert answer.token_ids == reference.token_ids
            assert answer.finish_reason == reference.finish_reason
            assert answer.stop_token_id == reference.stop_token_id
            assert answer.prompt_logprobs == reference.prompt_logprobs
            assert answer.embedding == reference.embedding
        check_bans(arrival.request.params, answer)
    stats = engine.stats()
    assert stats.num_free_blocks == stats.num_blocks == schedule.num_blocks
    assert executor.num_waited == executor.num_launched


def decode(name: str, count: int, **params: object) -> EngineRequest:
    values = {"max_tokens": count, "temperature": 0.8, "seed": 3, "ignore_eos": True} | params
    return EngineRequest(name, [1, 2, len(name)], SamplingParams(**values))  # type: ignore[arg-type]


def test_decodes_are_planned_ahead_and_none_beyond_the_last_token() -> None:
    executor = late()
    run(Engine(executor, debug=True), decode("a", 20), decode("bb", 20))
    assert executor.num_launched == executor.num_steps == 20
    assert executor.num_ahead == 19


def test_a_stop_costs_one_row_that_is_thrown_away() -> None:
    executor = late()
    request = decode("a", 20)
    tokens = toy_reference(executor, request).token_ids
    first = next(i for i in range(3, 20) if tokens[i] not in tokens[:i])
    stopped = decode("a", 20, stop_token_ids=(tokens[first],))
    answers = run(Engine(executor, debug=True), stopped)
    assert answers["a"].token_ids == tokens[:first]
    assert answers["a"].finish_reason == "stop"
    assert executor.num_steps == first + 2


@pytest.mark.parametrize(
    "params",
    [{"presence_penalty": 0.5}, {"min_tokens": 3}, {"banned_sequences": ((4,),)}],
)
def test_what_depends_on_the_tokens_is_not_planned_ahead(params: dict[str, object]) -> None:
    executor = late()
    request = decode("a", 12, **params)
    answers = run(Engine(executor, debug=True), request)
    assert answers["a"].token_ids == toy_reference(executor, request).token_ids
    assert executor.num_ahead == 0


def test_nobody_is_preempted_while_a_step_runs() -> None:
    executor = late(num_blocks=5)
    config = SchedulerConfig(prefix_cache=False)
    engine = Engine(executor, config, debug=True)
    engine.scheduler.estimate.tokens = 0
    requests = [decode("a", 12), decode("bb", 12)]
    answers = run(engine, *requests)
    for request in requests:
        reference = toy_reference(executor, request)
        assert answers[request.request_id].token_ids == reference.token_ids
    assert engine.scheduler.num_preemptions > 0
    assert executor.num_ahead > 0


def test_a_launch_that_fails_ends_the_requests_of_its_step_alone() -> None:
    executor = late()
    executor.fail_at = 4
    engine = Engine(executor, debug=True)
    answers = run(engine, decode("a", 20))
    assert answers["a"].finish_reason == "error"
    assert len(answers["a"].token_ids) == 4
    assert run(engine, decode("bb", 5))["bb"].finish_reason == "length"


def test_closing_waits_for_what_runs() -> None:
    executor = late()
    engine = Engine(executor, debug=True)
    engine.add_request(decode("a", 20))
    engine.step()
    assert executor.num_launched == executor.num_waited + 1
    engine.close()
    assert executor.num_launched == executor.num_waited
