"""The schedule never changes the answer of a request with a grammar, logprobs included."""

from __future__ import annotations

import json
import re
import threading
from dataclasses import replace
from random import Random
from typing import Any

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
from proposers import Guesser, always

from trimtab.config import SchedulerConfig
from trimtab.engine import grammar_follower, llguidance_grammars
from trimtab.engine.client import EngineRequest, Grammar
from trimtab.engine.engine import Engine
from trimtab.engine.grammar import GrammarMatcher
from trimtab.engine.llguidance_grammars import LlguidanceGrammars, LlguidanceMatcher
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
    guesses=st.sampled_from((None, 0.0, 0.9, 0.9)),
)
@settings(max_examples=80, deadline=None)
def test_any_schedule_gives_the_reference_answers(
    seed: int,
    block_size: int,
    num_blocks: int,
    num_requests: int,
    slow: bool,
    guesses: float | None,
) -> None:
    check_grammars(seed, block_size, num_blocks, num_requests, slow, guesses)


def check_grammars(
    seed: int,
    block_size: int,
    num_blocks: int,
    num_requests: int,
    slow: bool,
    guesses: float | None,
) -> None:
    """`slow`: no step waits for a grammar, so that requests are held for one or more.
    `guesses`: with drafts, of which so many tokens are right."""
    schedule = random_schedule(seed, block_size, num_blocks, num_requests)
    executor = toy(schedule.num_blocks, schedule.block_size)
    speculator = None if guesses is None else always(Guesser(executor, guesses, seed))
    engine = Engine(
        executor, schedule.config, debug=True, grammars=compiler(), speculator=speculator
    )
    with pytest.MonkeyPatch.context() as patch:
        if slow:
            patch.setattr(grammar_follower, "GRACE_SECONDS", 0.0)
            patch.setattr(grammar_follower, "SHARE_SECONDS", 0.0)
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
    check_resubmission(seed, cut)


def check_resubmission(seed: int, cut: int) -> None:
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


@pytest.mark.parametrize("quality", [1.0, 0.6])
def test_drafts_follow_the_grammar(quality: float) -> None:
    """Drafts are verified inside a grammar as well, and end where it leaves no choice."""
    schema = {"type": "array", "items": {"type": "integer"}, "minItems": 10, "maxItems": 30}
    grammar = json_schema(schema)
    params = SamplingParams(max_tokens=60, temperature=0, logprobs=1)
    request = EngineRequest("r", [101, 102, 103], params, grammar=grammar)
    executor = toy()
    speculator = always(Guesser(executor, quality))
    engine = Engine(executor, debug=True, grammars=compiler(), speculator=speculator)

    answer = run(engine, request)["r"]

    assert answer == run(Engine(toy(), debug=True, grammars=compiler()), request)["r"]
    stats = engine.stats().speculation
    assert stats is not None
    assert stats.num_accepted > 2


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


class Gated:
    """A matcher whose calls of one name wait for a gate."""

    def __init__(self, matcher: GrammarMatcher, name: str, gate: threading.Event) -> None:
        self._matcher, self._name, self._gate = matcher, name, gate

    def __getattr__(self, name: str) -> Any:
        if name == self._name:
            assert self._gate.wait(30)
        return getattr(self._matcher, name)


@pytest.mark.parametrize("name", ["consume", "forced", "fill"])
def test_a_slow_grammar_holds_up_its_own_request_only(name: str) -> None:
    """Whatever it is slow at: the chosen token, the stretch that it forces, the mask."""
    engine = Engine(toy(), debug=True, grammars=compiler())
    held = replace(ask(Grammar("regex", "[0-9]{5} and that is all"), seed=1), request_id="held")
    state = engine.read_grammar(held)
    assert state is not None
    gate = threading.Event()
    state._matcher = Gated(state._matcher, name, gate)
    plain = replace(ask(GRAMMARS[0], seed=1, max_tokens=12, ignore_eos=True), grammar=None)
    quick = replace(ask(GRAMMARS[5], seed=2), request_id="quick")
    engine.add_request(held, state)
    engine.add_request(replace(plain, request_id="plain"))
    engine.add_request(quick)
    answers = {one: Answer() for one in ("held", "plain", "quick")}
    while engine.num_live_requests > 1:
        for output in engine.step():
            answers[output.request_id].add(output)
    assert answers["plain"].finish_reason == "length"
    assert answers["quick"].token_ids == reference(toy(), quick).token_ids
    assert len(answers["held"].token_ids) <= 1
    assert answers["held"].finish_reason is None
    assert engine.step() == []
    engine.add_request(replace(plain, request_id="another"))
    assert engine.abort("another") is not None
    gate.set()
    while engine.num_live_requests:
        for output in engine.step():
            answers["held"].add(output)
    assert re.fullmatch("[0-9]{5} and that is all", text_of(answers["held"]))
    assert answers["held"].token_ids == reference(toy(), held).token_ids
    engine._follower.close()


def test_what_is_aborted_while_its_grammar_is_slow_leaves_nothing() -> None:
    engine = Engine(toy(), debug=True, grammars=compiler())
    request = ask(Grammar("regex", "[0-9]{5}"), seed=1)
    state = engine.read_grammar(request)
    assert state is not None
    gate = threading.Event()
    state._matcher = Gated(state._matcher, "fill", gate)
    engine.add_request(request, state)
    assert engine.step() == []
    assert engine.abort("r") is not None
    gate.set()
    while engine._follower.has_work:
        assert engine.step() == []
    assert run(engine, request)["r"].token_ids == reference(toy(), request).token_ids
    stats = engine.stats()
    assert stats.num_free_blocks == stats.num_blocks
    engine._follower.close()


def test_a_grammar_that_breaks_ends_its_own_request_only(caplog: Any) -> None:
    engine = Engine(toy(), debug=True, grammars=compiler())
    request = ask(Grammar("regex", "[0-9]{5}"), seed=1)
    state = engine.read_grammar(request)
    assert state is not None
    state._matcher = None  # type: ignore[assignment]
    engine.add_request(request, state)
    other = replace(request, request_id="other")
    engine.add_request(other)
    answers = {"r": Answer(), "other": Answer()}
    while engine.num_live_requests:
        for output in engine.step():
            answers[output.request_id].add(output)
    assert answers["r"].finish_reason == "error"
    assert answers["other"].token_ids == reference(toy(), other).token_ids
    assert "a grammar failed" in caplog.text
    engine._follower.close()


def test_a_long_stretch_comes_in_pieces_that_are_short() -> None:
    """Whole in the end, as one token after another, whoever asks."""
    text = "def f(x): return x\n" * 300
    grammar = Grammar("choice", json.dumps([text + "yes", text + "no"]))
    matcher = compiler().compile(grammar)
    pieces = []
    while piece := matcher.forced():
        assert len(tokenizer().decode(piece)) <= llguidance_grammars.FORCED_CHARACTERS
        pieces.append(piece)
        matcher.consume(piece)
    tokens = [token for piece in pieces for token in piece]
    assert len(pieces) > 5
    assert tokenizer().decode(tokens) == text[: len(tokenizer().decode(tokens))]
    assert len(text) - len(tokenizer().decode(tokens)) < 20
    engine = Engine(toy(num_blocks=2000, max_context=4000), grammars=compiler())
    answer = run(engine, ask(grammar, seed=3, max_tokens=3900))["r"]
    assert answer.token_ids[: len(tokens)] == tokens
    assert text_of(answer) in (text + "yes", text + "no")
    for known in (1, 400, len(tokens) - 1):
        again = ask(grammar, seed=3, max_tokens=known + 60)
        rest = run(engine, replace(again, completion_ids=tokens[:known]))["r"]
        assert rest.token_ids == answer.token_ids[known : known + len(rest.token_ids)]
    engine._follower.close()


def test_a_copy_does_not_wait_for_one_that_is_slow() -> None:
    grammars = LlguidanceGrammars(tokenizer, tokenizer().vocab_size)
    slow = grammars.compile(Grammar("regex", "[0-9]{9}"))
    assert isinstance(slow, LlguidanceMatcher)
    with slow._origin.lock:
        other = grammars.compile(Grammar("regex", "[0-9]{9}"))
        other.consume(tokenizer().encode("1", False))
    assert not other.is_complete
    grammars.close()


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
