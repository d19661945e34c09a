"""Speculation never changes an answer, whatever is guessed, and whatever else happens."""

from __future__ import annotations

from typing import Any

import pytest
from engine_schedules import (
    EOS,
    VOCAB,
    Schedule,
    play,
    run,
    schedules,
    toy,
    toy_reference,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from proposers import QUICK, Guesser, always
from test_schedule_law import check_bans, step_bound

from trimtab.config import SchedulerConfig
from trimtab.engine.client import EngineRequest
from trimtab.engine.engine import Engine
from trimtab.engine.sampling_params import SamplingParams
from trimtab.engine.speculation.draft_model import DraftModel
from trimtab.engine.speculation.proposer import Proposer


@given(
    schedule=schedules(max_budget=24),
    kind=st.sampled_from(["good", "bad", "draft", "same", "both"]),
    max_draft_tokens=st.integers(1, 9),
    seed=st.integers(0, 1 << 32),
)
@settings(max_examples=150, deadline=None)
def test_any_schedule_with_drafts_gives_the_reference_answers(
    schedule: Schedule, kind: str, max_draft_tokens: int, seed: int
) -> None:
    check_schedule_with_drafts(schedule, kind, max_draft_tokens, seed)


def check_schedule_with_drafts(
    schedule: Schedule, kind: str, max_draft_tokens: int, seed: int
) -> None:
    capacity = schedule.block_size * schedule.num_blocks
    executor = toy(schedule.num_blocks, schedule.block_size, max_context=capacity + 1)
    speculator = always(*proposers(executor, kind, seed), max_draft_tokens=max_draft_tokens)
    engine = Engine(executor, schedule.config, debug=True, speculator=speculator)

    finished = {
        request_id: answer
        for _, request_id, answer in play(engine, schedule, max_steps=step_bound(schedule))
    }

    for arrival in schedule.arrivals:
        request = arrival.request
        reference, answer = toy_reference(executor, request), finished[request.request_id]
        if answer.finish_reason == "abort":
            assert answer.token_ids == reference.token_ids[: len(answer.token_ids)]
        else:
            assert answer.token_ids == reference.token_ids
            assert answer.finish_reason == reference.finish_reason
            assert answer.stop_token_id == reference.stop_token_id
            assert answer.prompt_logprobs == reference.prompt_logprobs
            assert answer.embedding == reference.embedding
        check_bans(request.params, answer)
        wanted = 0 if request.params.logprobs is None else len(answer.token_ids)
        assert len(answer.logprobs) == wanted
    stats = engine.stats()
    assert stats.num_free_blocks == stats.num_blocks
    assert stats.speculation is not None
    assert stats.speculation.num_accepted <= stats.speculation.num_drafted


def proposers(executor: Any, kind: str, seed: int) -> list[Proposer]:
    guesser = Guesser(executor, {"good": 0.9, "both": 0.6}.get(kind, 0.0), seed)
    if kind in ("good", "bad"):
        return [guesser]
    shape = executor.capacity
    draft = toy(
        shape.num_blocks,
        shape.block_size,
        max_context=max(2, executor.spec.max_context - seed % 3),
        weights_seed=0 if kind == "same" else 1,
        vocab_size=VOCAB - (seed % 2 if kind == "draft" else 0),
    )
    model = DraftModel(draft, VOCAB, QUICK)
    return [guesser, model] if kind == "both" else [model]


def greedy(name: str, num_tokens: int = 40, **params: object) -> EngineRequest:
    params = {"temperature": 0.0, "max_tokens": num_tokens, "ignore_eos": True} | params
    return EngineRequest(name, [5, 6, 7], SamplingParams(**params))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 0.8, "seed": 7},
        {"temperature": 1.0, "seed": 8, "top_k": 5, "top_p": 0.9, "min_p": 0.05},
        {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.4},
        {"logit_bias": {4: 3.0, 9: -2.0}},
        {"logprobs": 3},
        {"min_tokens": 10, "ignore_eos": False, "stop_token_ids": (4, 11)},
        {"banned_sequences": ((4, 5), (9,), (11, 12, 13))},
        {"allowed_token_ids": tuple(range(8))},
    ],
    ids=lambda params: "-".join(params) or "greedy",
)
def test_every_setting_gives_what_it_gives_without(params: dict[str, object]) -> None:
    requests = [greedy(f"r{index}", **params) for index in range(3)]
    plain = run(Engine(toy(), debug=True), *requests)
    executor = toy()
    engine = Engine(executor, debug=True, speculator=always(Guesser(executor, 0.8)))

    assert run(engine, *requests) == plain

    stats = engine.stats().speculation
    assert stats is not None
    assert 0 < stats.num_accepted < stats.num_drafted
    assert stats.drafted_by_position[0] >= stats.drafted_by_position[-1] > 0


def test_a_draft_that_is_right_saves_steps() -> None:
    executor = toy()
    engine = Engine(
        executor, debug=True, speculator=always(Guesser(executor, 1.0), max_draft_tokens=7)
    )

    answer = run(engine, greedy("r", 40))["r"]

    assert answer.token_ids == toy_reference(executor, greedy("r", 40)).token_ids
    assert executor.num_steps < 14  # a prompt, and 39 tokens in eights, now and then in ones
    assert engine.stats().num_generated_tokens == 40


def test_drafts_keep_to_the_token_budget_and_to_the_context() -> None:
    executor = toy(max_context=24)
    engine = Engine(
        executor,
        SchedulerConfig(max_batch_tokens=6),
        debug=True,
        speculator=always(Guesser(executor, 1.0), max_draft_tokens=16),
    )
    sizes = []
    execute = executor.execute
    executor.execute = lambda batch: sizes.append(batch.num_rows) or execute(batch)  # type: ignore

    answers = run(engine, *[greedy(f"r{i}", 21) for i in range(4)])

    assert max(sizes) == 6
    assert {len(answer.token_ids) for answer in answers.values()} == {21}


def test_preempted_requests_draft_again() -> None:
    """Blocks are short: who is preempted starts anew, and the draft model with it."""
    executor, draft = toy(num_blocks=12, block_size=2), toy(num_blocks=12, block_size=2)
    engine = Engine(executor, debug=True, speculator=always(DraftModel(draft, VOCAB, QUICK)))
    engine.scheduler.estimate.tokens = 0
    requests = [greedy(f"r{index}", 14) for index in range(3)]

    answers = run(engine, *requests)

    assert engine.stats().num_preemptions > 0
    for request in requests:
        assert answers[request.request_id].token_ids == toy_reference(executor, request).token_ids


def test_the_draft_model_finds_what_it_computed_of_a_cached_prefix() -> None:
    executor, draft = toy(), toy()
    engine = Engine(executor, debug=True, speculator=always(DraftModel(draft, VOCAB, QUICK)))
    run(engine, greedy("first", 30))

    again = run(engine, greedy("second", 30))["second"]

    assert again.num_cached_tokens == 0  # of the prompt: it is shorter than a block
    prompt = [5, 6, 7, *again.token_ids]
    longer = EngineRequest("third", prompt, SamplingParams(max_tokens=8, temperature=0))
    middle = draft.num_computed_tokens
    answer = run(engine, longer)["third"]
    assert answer.num_cached_tokens >= 28
    assert draft.num_computed_tokens - middle < len(prompt)  # with what it generates


def test_what_is_drafted_behind_the_end_is_not_emitted() -> None:
    executor = toy(eos_token_ids=(EOS,))
    reference = None
    for first in range(VOCAB):
        request = EngineRequest("r", [first], SamplingParams(max_tokens=50, temperature=0))
        found = toy_reference(executor, request)
        if found.finish_reason == "stop" and len(found.token_ids) > 3:
            reference = request, found
    assert reference is not None
    request, found = reference
    engine = Engine(executor, debug=True, speculator=always(Guesser(executor, 1.0)))

    answer = run(engine, request)["r"]

    assert (answer.token_ids, answer.stop_token_id) == (found.token_ids, EOS)


def test_proposers_are_told_what_happens() -> None:
    executor = toy()
    guesser = Guesser(executor, 0.5)
    engine = Engine(executor, debug=True, speculator=always(guesser))
    run(engine, greedy("a", 5), greedy("b", 5))
    assert sorted(guesser.forgotten) == ["a", "b"]
    assert len(guesser.observed) == executor.num_steps
    engine.close()
    assert guesser.is_closed
