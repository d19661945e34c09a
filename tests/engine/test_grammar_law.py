"""The schedule never changes the answer of a request with a grammar, logprobs included."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterable
from dataclasses import replace
from random import Random

import jsonschema
import pytest
from engine_schedules import Answer, Arrival, Schedule, play, run
from grammar_cases import (
    COMPACT,
    GRAMMARS,
    compiler,
    json_schema,
    random_request,
    reference,
    text_of,
    tokenizer,
    toy,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.config import SchedulerConfig
from trimtab.engine import grammar_follower
from trimtab.engine.client import EngineRequest, Grammar
from trimtab.engine.engine import Engine
from trimtab.engine.grammar import GrammarState
from trimtab.engine.sampling_params import SamplingParams


def random_schedule(seed: int, block_size: int, num_blocks: int, num_requests: int) -> Schedule:
    random = Random(seed)
    config = SchedulerConfig(
        max_batch_tokens=random.randint(1, 24),
        max_num_requests=random.randint(1, 5),
        prefix_cache=random.random() < 0.7,
    )
    capacity = block_size * num_blocks
    stem = [random.randrange(100, 200) for _ in range(capacity)]
    arrivals = []
    for index in range(num_requests):
        prompt = stem[: random.randint(1, capacity // 2)]
        request = random_request(random, f"r{index}", prompt, capacity + 1 - len(prompt))
        abort_step = random.randint(0, 20) if random.random() < 0.1 else None
        arrivals.append(Arrival(random.randint(0, 8), request, abort_step, random.random() < 0.5))
    return Schedule(block_size, num_blocks, config, random.random() < 0.5, arrivals)


@given(
    seed=st.integers(0, 1 << 32),
    block_size=st.sampled_from((1, 4)),
    num_blocks=st.integers(8, 16),
    num_requests=st.integers(1, 6),
    slow=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_any_schedule_gives_the_reference_answers(
    seed: int, block_size: int, num_blocks: int, num_requests: int, slow: bool
) -> None:
    """`slow`: every mask is made on another thread, and its request is held until it is there."""
    schedule = random_schedule(seed, block_size, num_blocks, num_requests)
    executor = toy(schedule.num_blocks, schedule.block_size)
    engine = Engine(executor, schedule.config, debug=True, grammars=compiler())
    with pytest.MonkeyPatch.context() as patch:
        if slow:
            patch.setattr(grammar_follower, "SLOW_SECONDS", -1.0)
        finished = {name: answer for _, name, answer in play(engine, schedule, max_steps=2_000)}
    engine._follower.close()
    assert finished.keys() == {arrival.request.request_id for arrival in schedule.arrivals}
    for arrival in schedule.arrivals:
        expected = reference(executor, arrival.request)
        answer = finished[arrival.request.request_id]
        if answer.finish_reason == "abort":
            assert answer.token_ids == expected.token_ids[: len(answer.token_ids)]
            continue
        assert answer.token_ids == expected.token_ids
        assert answer.logprobs == expected.logprobs
        assert answer.finish_reason == expected.finish_reason
        assert answer.stop_token_id == expected.stop_token_id
    stats = engine.stats()
    assert stats.num_free_blocks == stats.num_blocks


@given(seed=st.integers(0, 1 << 32), cut=st.integers(0, 200))
@settings(max_examples=40, deadline=None)
def test_resubmitted_requests_go_on_where_they_were(seed: int, cut: int) -> None:
    random = Random(seed)
    prompt = [random.randrange(100, 200) for _ in range(random.randint(1, 9))]
    request = random_request(random, "r", prompt, 60)
    engine = Engine(toy(), debug=True, grammars=compiler())
    whole = run(engine, request)["r"]
    known = whole.token_ids[: cut % (len(whole.token_ids) + 1)]
    if len(known) == request.params.max_tokens:
        return  # nothing is left of it
    rest = run(engine, replace(request, completion_ids=known))["r"]
    assert known + rest.token_ids == whole.token_ids
    assert (rest.finish_reason, rest.stop_token_id) == (whole.finish_reason, whole.stop_token_id)
    assert rest.logprobs == whole.logprobs[len(known) :]
    assert rest.prompt_logprobs in (None, whole.prompt_logprobs)


@pytest.mark.parametrize(
    ("grammar", "text"),
    [
        (json_schema({"const": "nothing is left to choose"}), '"nothing is left to choose"'),
        (Grammar("choice", '["the only one"]'), "the only one"),
        (Grammar("regex", ""), ""),
    ],
)
def test_what_leaves_no_choice_runs_no_step(grammar: Grammar, text: str) -> None:
    engine = Engine(toy(), grammars=compiler())
    answer = run(engine, ask(grammar))["r"]
    assert (text_of(answer), answer.finish_reason) == (text, "stop")
    assert engine.stats().num_steps == 0
    scored = run(engine, ask(grammar, logprobs=1))["r"]
    assert scored.token_ids == answer.token_ids
    assert len(scored.logprobs) == len(answer.token_ids)


def test_forced_text_takes_one_step_for_a_whole_stretch() -> None:
    engine = Engine(toy(), grammars=compiler())
    answer = run(engine, ask(json_schema(COMPACT), seed=3, max_tokens=100))["r"]
    assert answer.finish_reason == "stop"
    jsonschema.validate(json.loads(text_of(answer)), COMPACT)
    assert engine.stats().num_steps < 0.75 * len(answer.token_ids)


def ask(grammar: Grammar, **params: object) -> EngineRequest:
    params = {"temperature": 1.0, "max_tokens": 60} | params
    return EngineRequest(
        request_id="r",
        prompt_ids=tokenizer().encode("Hello"),
        params=SamplingParams(**params),  # type: ignore[arg-type]
        grammar=grammar,
    )


def test_preemption_keeps_the_place_in_the_grammar() -> None:
    executor = toy(num_blocks=24, block_size=2)
    engine = Engine(executor, debug=True, grammars=compiler())
    requests = [
        replace(ask(grammar, seed=index, max_tokens=30, logprobs=1), request_id=f"r{index}")
        for index, grammar in enumerate(GRAMMARS)
    ]
    engine.scheduler.estimate.tokens = 0
    answers = run(engine, *requests)
    assert engine.stats().num_preemptions > 0
    for request in requests:
        expected = reference(executor, request)
        assert answers[request.request_id].token_ids == expected.token_ids
        assert answers[request.request_id].logprobs == expected.logprobs


def test_a_slow_mask_holds_up_its_own_request_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar_follower, "SLOW_SECONDS", -1.0)
    engine = Engine(toy(), debug=True, grammars=compiler())
    gate, prepare = threading.Event(), GrammarState.prepare
    held = replace(ask(Grammar("regex", "[0-9]{5}"), seed=1), request_id="held")
    state = engine.read_grammar(held)

    def slow(self: GrammarState, unwanted: Iterable[int]) -> bool:
        assert gate.wait(30)
        return prepare(self, unwanted)

    monkeypatch.setattr(GrammarState, "prepare", slow)
    plain = replace(ask(GRAMMARS[0], seed=1, max_tokens=12, ignore_eos=True), grammar=None)
    engine.add_request(held, state)
    engine.add_request(replace(plain, request_id="plain"))
    outputs = [output for _ in range(12) for output in engine.step()]
    assert {output.request_id for output in outputs} == {"plain"}
    assert outputs[-1].finish_reason == "length"
    assert engine.step() == []
    engine.add_request(replace(plain, request_id="another"))
    assert engine.abort("another") is not None
    gate.set()
    answer = Answer()
    while engine.num_live_requests:
        for output in engine.step():
            answer.add(output)
    assert re.fullmatch("[0-9]{5}", text_of(answer))
    assert answer.token_ids == reference(toy(), held).token_ids
    engine._follower.close()


def test_a_grammar_begins_behind_the_first_of_its_tokens() -> None:
    executor = toy()
    engine = Engine(executor, grammars=compiler())
    plain = replace(ask(GRAMMARS[0], seed=1, max_tokens=20), grammar=None)
    free = run(engine, plain)["r"].token_ids
    grammar = Grammar("regex", "[0-9]{5}", after=(free[7], free[3]))
    answer = run(engine, replace(plain, grammar=grammar))["r"]
    assert answer.token_ids[:4] == free[:4]
    digits = tokenizer().decode(answer.token_ids[4:])
    assert digits.isdecimal()
    assert len(digits) == 5
    assert answer.finish_reason == "stop"


def test_completions_that_do_not_follow_the_grammar_are_refused() -> None:
    engine = Engine(toy(), grammars=compiler())
    wrong = replace(
        ask(Grammar("choice", '["yes", "no"]')), completion_ids=tokenizer().encode("maybe", False)
    )
    with pytest.raises(Exception, match="does not follow the grammar"):
        engine.add_request(wrong)
    assert engine.num_live_requests == 0


def test_an_engine_without_a_compiler_refuses_grammars() -> None:
    with pytest.raises(Exception, match="takes no grammars"):
        Engine(toy()).add_request(ask(GRAMMARS[0]))
