"""The schedule never changes the answer, always ends, loses nothing and leaks nothing."""

from __future__ import annotations

from engine_schedules import Answer, Schedule, play, schedules, toy, toy_reference
from hypothesis import given, settings

from trimtab.engine.engine import Engine
from trimtab.engine.sampling_params import SamplingParams


@given(schedule=schedules())
@settings(max_examples=120, deadline=None)
def test_any_schedule_gives_the_reference_answers(schedule: Schedule) -> None:
    check_schedule(schedule)


def check_schedule(schedule: Schedule) -> None:
    capacity = schedule.block_size * schedule.num_blocks
    executor = toy(schedule.num_blocks, schedule.block_size, max_context=capacity + 1)
    engine = Engine(executor, schedule.config, debug=True)
    finished: dict[str, Answer] = {}
    for _, request_id, answer in play(engine, schedule, max_steps=step_bound(schedule)):
        assert request_id not in finished
        finished[request_id] = answer

    assert finished.keys() == {arrival.request.request_id for arrival in schedule.arrivals}
    for arrival in schedule.arrivals:
        reference = toy_reference(executor, arrival.request)
        answer = finished[arrival.request.request_id]
        if answer.finish_reason == "abort":
            assert arrival.abort_step is not None
            assert answer.token_ids == reference.token_ids[: len(answer.token_ids)]
            assert answer.prompt_logprobs in (None, reference.prompt_logprobs)
        else:
            assert answer.token_ids == reference.token_ids
            assert answer.finish_reason == reference.finish_reason
            assert answer.stop_token_id == reference.stop_token_id
            assert answer.prompt_logprobs == reference.prompt_logprobs
            assert answer.embedding == reference.embedding
        check_bans(arrival.request.params, answer)
        assert len(answer.logprobs) == (
            0 if arrival.request.params.logprobs is None else len(answer.token_ids)
        )
    stats = engine.stats()
    assert stats.num_free_blocks == stats.num_blocks == schedule.num_blocks
    assert stats.num_running == stats.num_waiting == 0


def check_bans(params: SamplingParams, answer: Answer) -> None:
    """Read off the answer itself, whatever the reference says."""
    tokens = tuple(answer.token_ids)
    if params.allowed_token_ids:
        assert set(tokens) <= set(params.allowed_token_ids)
        assert answer.stop_token_id in (None, *params.allowed_token_ids)
    if answer.stop_token_id is not None:
        tokens += (answer.stop_token_id,)
    for sequence in params.banned_sequences:
        windows = (tokens[i : i + len(sequence)] for i in range(len(tokens)))
        assert sequence not in windows


def step_bound(schedule: Schedule) -> int:
    """Every step computes at least one token. Recomputation is bounded by what preempts: a request
    loses its tokens at most once for each token that an earlier one gains."""
    tokens = [
        len(a.request.prompt_ids) + (a.request.params.max_tokens or 0) for a in schedule.arrivals
    ]
    return 13 + sum(tokens) * (1 + len(tokens))
