"""What comes out under a grammar is what the grammar says: by oracles that know nothing of ours."""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jsonschema
import numpy as np
import pytest
from engine_schedules import Answer, run
from grammar_cases import compiler, json_schema, text_of, tokenizer, toy
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab import LLM, SamplingParams
from trimtab.engine import llguidance_grammars
from trimtab.engine.client import EngineRequest, Grammar
from trimtab.engine.engine import Engine
from trimtab.engine.grammar import GrammarError
from trimtab.engine.grammar_source import forces_little
from trimtab.engine.llguidance_grammars import LlguidanceGrammars, LlguidanceMatcher
from trimtab.errors import RequestError

NAMES = st.sampled_from(["a", "b", "name", 'q"uote', "ключ", "x y", ""])
SCALARS = st.sampled_from([None, True, 0, -7, 2.5, "", "text", "é\n\"\\", "🙂"])  # fmt: skip


def bounded(low: int, high: int) -> st.SearchStrategy[dict[str, int]]:
    pairs = st.tuples(st.integers(low, high), st.integers(low, high)).map(sorted)
    return pairs.map(lambda pair: {"minimum": pair[0], "maximum": pair[1]})


def objects(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    properties = st.dictionaries(NAMES, inner, max_size=3)
    return properties.flatmap(
        lambda by_name: st.fixed_dictionaries(
            {
                "type": st.just("object"),
                "properties": st.just(by_name),
                "required": st.lists(st.sampled_from(sorted(by_name) or [""]), unique=True).map(
                    lambda names: [name for name in names if name in by_name]
                ),
                "additionalProperties": st.just(False),
            }
        )
    )


LEAVES = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    bounded(-50, 1000).map(lambda bounds: {"type": "integer"} | bounds),
    bounded(-5, 5).map(lambda bounds: {"type": "number"} | bounds),
    st.integers(0, 5).map(lambda size: {"type": "string", "maxLength": size}),
    st.just({"type": "string", "pattern": "^[a-c]{1,4}-[0-9]{2}$"}),
    st.sampled_from(["date", "ipv4", "uuid"]).map(lambda f: {"type": "string", "format": f}),
    st.lists(SCALARS, min_size=1, max_size=3).map(lambda values: {"enum": values}),
    SCALARS.map(lambda value: {"const": value}),
)
SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        objects(inner),
        st.lists(inner, min_size=1, max_size=3).map(lambda options: {"anyOf": options}),
        st.tuples(inner, st.integers(0, 2), st.integers(0, 2)).map(
            lambda t: {"type": "array", "items": t[0], "minItems": t[1], "maxItems": t[1] + t[2]}
        ),
    ),
    max_leaves=5,
)


def ask(grammar: Grammar, seed: int = 0, **params: Any) -> EngineRequest:
    params = {"temperature": 1.0, "max_tokens": 200, "seed": seed} | params
    return EngineRequest(
        "r", tokenizer().encode("Hello"), SamplingParams(**params), grammar=grammar
    )


def answer_to(grammar: Grammar, seed: int = 0, **params: Any) -> Answer:
    return run(Engine(toy(), grammars=compiler()), ask(grammar, seed, **params))["r"]


@given(schema=SCHEMAS, seed=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_whatever_stops_is_valid_under_its_schema(schema: Any, seed: int) -> None:
    answer = answer_to(json_schema(schema), seed)
    assert answer.error is None
    if answer.finish_reason == "stop":
        value = json.loads(text_of(answer))
        checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
        jsonschema.Draft202012Validator(schema, format_checker=checker).validate(value)


@pytest.mark.parametrize(
    "pattern",
    [
        r"[0-9]{3}-[0-9]{4}",
        r"(ab|cd){2,5}e?",
        r"^[A-Z][a-z]{0,9}$",
        r"(a|b)*a(a|b){4}",
        r"#[0-9a-fA-F]{6}",
        r"[^\n]{1,12}",
        r"(foo/bar|\{\"x\": \[\]\})",
        r"[αβγ]{2}🙂?",
    ],
)
@pytest.mark.parametrize("seed", range(4))
def test_whatever_stops_matches_its_pattern(pattern: str, seed: int) -> None:
    answer = answer_to(Grammar("regex", pattern), seed)
    assert answer.error is None
    if answer.finish_reason == "stop":
        assert re.fullmatch(pattern, text_of(answer))


def test_choices_are_the_texts_themselves() -> None:
    choices = ["yes", "yesterday", 'a "quoted" \\ one', "a\nb\t\x7f\x01", "éα🙂\u2028", "/x/", "#"]
    source = json.dumps(choices)
    found = {text_of(answer_to(Grammar("choice", source), seed)) for seed in range(60)}
    assert found <= set(choices)
    assert len(found) > 3
    for choice in choices:
        alone = answer_to(Grammar("choice", json.dumps([choice])))
        assert (text_of(alone), alone.finish_reason) == (choice, "stop")


def test_many_choices() -> None:
    choices = [f"choice number {i}" for i in range(5000)]
    assert text_of(answer_to(Grammar("choice", json.dumps(choices)))) in choices


def test_blanks_between_the_parts_of_json_are_bounded() -> None:
    """A bias that makes blanks the most likely tokens of all."""
    ids = range(tokenizer().vocab_size)
    blank = [
        i for i in ids if tokenizer().token_bytes(i) and not tokenizer().token_bytes(i).strip()
    ]
    bias = dict.fromkeys(blank, 100.0)
    for grammar in (
        json_schema({"type": "array", "items": {"enum": [1]}, "maxItems": 2}),
        Grammar(
            "lark", 'start: "x" %json {"type": "array", "items": {"enum": [1]}, "maxItems": 2}'
        ),
    ):
        answer = answer_to(grammar, logit_bias=bias, temperature=0)
        assert answer.finish_reason == "stop"
        assert len(text_of(answer)) < 150


def test_stop_tokens_end_only_what_is_complete() -> None:
    eos = tokenizer().eos_token_ids[0]
    for seed in range(20):
        answer = answer_to(
            Grammar("regex", "(ab){1,3}"), seed, logit_bias={eos: 8.0}, min_tokens=2 * (seed % 2)
        )
        assert answer.finish_reason == "stop"
        assert re.fullmatch("(ab){1,3}", text_of(answer))
        assert answer.stop_token_id in (eos, None)


def test_max_tokens_cuts_forced_text() -> None:
    text = "a text that leaves no choice at all, from its beginning to its end"
    whole = answer_to(Grammar("choice", json.dumps([text])))
    assert text_of(whole) == text
    for most in range(1, len(whole.token_ids)):
        cut = answer_to(Grammar("choice", json.dumps([text])), max_tokens=most)
        assert cut.token_ids == whole.token_ids[:most]
        assert cut.finish_reason == "length"


def test_forced_tokens_are_those_that_the_mask_would_leave() -> None:
    """Token by token, with nothing forced, the only tokens allowed are the forced ones."""
    grammar = json_schema(
        {"type": "object", "properties": {"a name": {"const": "some value or other"}},
         "required": ["a name"], "additionalProperties": False,
         "x-guidance": {"whitespace_flexible": False}}
    )  # fmt: skip
    whole = answer_to(grammar)
    matcher = compiler().compile(grammar)
    mask = np.zeros(-(-tokenizer().vocab_size // 32), np.uint32)
    num_forced = 0
    for token_id in whole.token_ids:
        matcher.fill(mask)
        bits = int.from_bytes(mask.tobytes(), "little")
        assert bits >> token_id & 1
        num_forced += bits.bit_count() == 1
        matcher.consume([token_id])
    assert matcher.is_over
    assert num_forced > 0.5 * len(whole.token_ids)


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


def chain(num_rules: int) -> str:
    rules = [f'r{i}: "a" r{i + 1} | "b" r{i + 1}' for i in range(num_rules)]
    return "\n".join(["start: r0", *rules, f'r{num_rules}: "z"'])


def references(count: int) -> dict[str, Any]:
    step = {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}, {}]} for i in range(count)}
    return {"$ref": "#/$defs/d0", "$defs": step | {f"d{count}": {"type": "null"}}}


def schema_bomb(schema: Any) -> tuple[Any, str]:
    return "json_schema", json.dumps(schema)


BOMBS: list[tuple[Any, str]] = [
    schema_bomb(nested(64)),
    ("json_schema", '{"items":' * 5000 + "{}" + "}" * 5000),
    ("json_schema", "[" * 100_000),
    ("json_schema", "{"),
    ("json_schema", "3"),
    ("json_schema", '"\ud800"'),
    schema_bomb({"enum": ["x" * (256 << 10)]}),
    schema_bomb({"$ref": "#"}),
    schema_bomb({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
                 "$ref": "#/$defs/a"}),
    schema_bomb({"$ref": "http://127.0.0.1:1/schema.json"}),
    schema_bomb({"$ref": "file:///etc/passwd"}),
    schema_bomb({"type": "frobnicate"}),
    schema_bomb({"type": "string", "pattern": "("}),
    schema_bomb({"type": "string", "pattern": "a{1000000000}"}),
    schema_bomb({"patternProperties": {"a{99999}": {}}}),
    schema_bomb({"type": "string", "allOf": [{"pattern": f".*[a-z]{{{i},}}x"} for i in range(15)]}),
    schema_bomb({"properties": {f"p{i}": {"type": "string"} for i in range(5000)}}),
    schema_bomb({"type": "integer", "multipleOf": 999999937}),
    schema_bomb({"uniqueItems": True, "type": "array"}),
    schema_bomb(references(5000)),
    schema_bomb(False),
    ("regex", "("),
    ("regex", "[z-a]"),
    ("regex", "(?=a)a"),
    ("regex", r"(a)\1"),
    ("regex", r"\bword\b"),
    ("regex", "(" * 5000 + "a" + ")" * 5000),
    ("regex", "a{1000000}"),
    ("regex", "a{0,99999999999999999999}"),
    ("regex", "((a{1000}){1000}){1000}"),
    ("lark", 'start: /[xy]/ T\nT: U{1000}\nU: V{1000}\nV: "ab"'),
    ("regex", "x" * (300 << 10)),
    ("choice", "[]"),
    ("choice", "[1, 2]"),
    ("choice", '{"a": 1}'),
    ("choice", "yes"),
    ("choice", json.dumps([str(i) for i in range(30_000)])),
    ("lark", ""),
    ("lark", "start: ("),
    ("lark", "start: start"),
    ("lark", "start: unknown_rule"),
    ("lark", "start: " + "(" * 5000 + '"a"' + ")" * 5000),
    ("lark", 'start: a{1,1000000000}\na: "x"'),
    ("lark", chain(5000)),
    ("lark", "start: T\n" + chain(5000).replace("r", "T").replace("staTt: T0\n", "")),
    ("lark", 'start: T\nT: "a" T "b" | "c"'),
    ("lark", "start: <|no_such_special_token|>"),
    ("lark", 'start: %json {"type": "frobnicate"}'),
    ("lark", "root ::= " + "(" * 90 + '"a"' + ")" * 90 + "\nroot ::= missing"),
    ("lark", "root ::= [a-"),
    ("lark", "start: " + " | ".join(json.dumps(f"c{i}") for i in range(20_000))),
]  # fmt: skip


@pytest.fixture(scope="module")
def grammars() -> Iterator[LlguidanceGrammars]:
    own = LlguidanceGrammars(tokenizer, tokenizer().vocab_size)
    own.compile(Grammar("json_object"))  # so that the checker runs
    yield own
    own.close()


@pytest.mark.parametrize(("kind", "source"), BOMBS, ids=range(len(BOMBS)))
def test_bombs_are_refused_in_processor_seconds(
    grammars: LlguidanceGrammars, kind: Any, source: str
) -> None:
    for _ in range(2):  # the second time out of memory
        started = time.process_time()
        with pytest.raises(RequestError, match=r"the grammar cannot be used: .{5}") as caught:
            grammars.compile(Grammar(kind, source))
        assert caught.value.param == "grammar"
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 300
        assert time.process_time() - started < 2  # of this process: the checker has its own limit
    grammars.compile(Grammar("regex", "[0-9]+"))


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("regex", r"(\p{L}{1,100}){1,100}"),
        ("regex", r"(.*a.{300}|.*b.{200}c)"),
        (
            "lark",
            "start: r0\n" + "".join(f"r{i}: r{i + 1} r{i + 1}\n" for i in range(40)) + 'r40: "x"',
        ),
        schema_bomb({"type": "array", "items": {"const": "x"}, "minItems": 1_000_000_000}),
        schema_bomb({"type": "string", "minLength": 1_000_000_000}),
        ("lark", 'start: start start | "a" | ""'),
    ],
)
def test_what_is_legal_and_endless_is_cut_or_refused(kind: Any, source: str) -> None:
    engine = Engine(toy(), grammars=compiler())
    try:
        answer = run(engine, ask(Grammar(kind, source), max_tokens=12))["r"]
    except RequestError:
        return
    assert answer.finish_reason in ("length", "stop", "error")
    assert len(answer.token_ids) <= 12


def test_a_checker_that_was_killed_is_started_again(grammars: LlguidanceGrammars) -> None:
    checker = grammars._checker
    assert checker is not None
    assert checker._process is not None
    checker._process.kill()
    with pytest.raises(RequestError):  # by then it is gone
        grammars.compile(Grammar("regex", "[0-9]{7}"))
    grammars.compile(Grammar("regex", "[0-9]{8}"))


def test_a_limit_that_others_used_up_fails_nobody() -> None:
    """Copies share a lexer; one that it fails goes on with its own, from where it was."""
    used_up = compiler().compile(Grammar("regex", "[0-9]{3}"))
    assert isinstance(used_up, LlguidanceMatcher)

    class Failing:
        def consume_tokens(self, tokens: list[int]) -> bool:
            return False

        def is_error(self) -> bool:
            return True

        def is_stopped(self) -> bool:
            return False

        def get_error(self) -> str:
            return "lexer error: too many expressions constructed"

        def compute_ff_tokens(self) -> list[int]:
            return []

        def unsafe_compute_mask_ptr(self, address: int, size: int) -> None: ...

    one = tokenizer().encode("1", False)
    used_up.consume(one)
    used_up._inner = Failing()
    used_up.consume(one)
    assert not used_up.is_complete
    used_up.consume(one)
    assert used_up.is_over
    used_up._inner = Failing()  # its own, too
    with pytest.raises(GrammarError, match="too many expressions"):
        used_up.forced()


def test_compiled_grammars_are_kept_within_bounds() -> None:
    grammars = LlguidanceGrammars(tokenizer, tokenizer().vocab_size, 4 * (257 << 10))
    for number in range(20):
        grammars.compile(Grammar("regex", f"[0-9]{{{number + 1}}}"))
        grammars.compile(Grammar("regex", "[0-9]{1}"))
    assert len(grammars._compiled) <= 4
    assert grammars.num_bytes <= 4 * (257 << 10)
    assert any(one.num_uses >= 20 for one in grammars._compiled.values())  # the latest used stays
    grammars.close()


def test_a_lexer_that_has_grown_is_left_to_those_that_have_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It grows where masks are slow; here all of them are, and then none."""
    grammars = LlguidanceGrammars(tokenizer, tokenizer().vocab_size, 8 << 20)
    mask = np.empty(-(-tokenizer().vocab_size // 32), np.uint32)

    def use() -> Any:
        matcher = grammars.compile(Grammar("regex", r"(\p{L}{1,20} ?){1,20}"))
        assert isinstance(matcher, LlguidanceMatcher)
        matcher.consume(tokenizer().encode("word", False))
        matcher.fill(mask)
        return matcher._origin

    monkeypatch.setattr(llguidance_grammars, "QUICK_SECONDS", -1.0)
    monkeypatch.setattr(llguidance_grammars, "BYTES_PER_SLOW_SECOND", 1 << 50)
    origins = [use() for _ in range(3)]
    assert len({id(origin) for origin in origins}) == 3
    assert all(origin.num_bytes > 8 << 20 for origin in origins)
    monkeypatch.setattr(llguidance_grammars, "QUICK_SECONDS", 1e9)
    last = use()
    assert all(use() is last for _ in range(3))
    assert grammars.num_bytes < 1 << 20
    grammars.close()


@pytest.mark.parametrize(
    ("kind", "source", "little"),
    [
        ("regex", "[a-z]{2,5}-(yes|no)", True),
        ("regex", "x((a{100}){100})y", False),
        ("choice", '["yes", "no"]', True),
        ("choice", json.dumps(["x" * 5000, "y"]), False),
        (
            *schema_bomb(
                {"type": "object", "properties": {"a": {"type": "string", "maxLength": 9000}}}
            ),
            True,
        ),
        (*schema_bomb({"type": "array", "items": {"const": "xyz"}, "minItems": 1000}), False),
        ("json_schema", '{"const": "x", "\\u006dinLength": 5}', False),
        (*schema_bomb(references(12)), True),
        (
            "lark",
            "start: r0\n" + "".join(f"r{i}: r{i + 1} r{i + 1}\n" for i in range(12)) + 'r12: "x"',
            False,
        ),
        ("lark", 'start: "a" B ("," B)*\nB: /[0-9]+/', True),
        ("lark", 'start: B~1000\nB: "abc"', False),
    ],
)
def test_what_forces_little_is_seen_in_the_source(kind: Any, source: str, little: bool) -> None:
    assert forces_little(Grammar(kind, source)) is little


def test_unwanted_tokens_yield_to_a_grammar_that_needs_them() -> None:
    dash = tokenizer().encode("-", False)
    request = ask(Grammar("regex", "[0-9]-[0-9]"))
    params = replace(request.params, banned_sequences=(tuple(dash),), min_tokens=20)
    engine = Engine(toy(), grammars=compiler())
    answer = run(engine, replace(request, params=params))["r"]
    assert re.fullmatch("[0-9]-[0-9]", text_of(answer))


def test_llm_takes_a_grammar() -> None:
    person = {"type": "object", "properties": {"age": {"type": "integer", "maximum": 99}},
              "required": ["age"], "additionalProperties": False}  # fmt: skip
    with LLM("builtin", threads=1) as llm:
        params = SamplingParams(max_tokens=80, seed=5, n=2, temperature=0.8)
        results = llm.generate(["def f():", "x ="], params, grammar=json_schema(person))
        for result in results:
            for output in result.outputs:
                assert output.finish_reason == "stop"
                jsonschema.validate(json.loads(output.text), person)
        choice = Grammar("choice", '["left", "right"]')
        chat = llm.chat([{"role": "user", "content": "Where?"}], params, grammar=choice)
        assert {output.text for output in chat[0].outputs} <= {"left", "right"}
        stream = llm.stream("x", SamplingParams(max_tokens=9), grammar=Grammar("regex", "[0-9]{5}"))
        text = "".join(delta.text for delta in stream)
        assert re.fullmatch("[0-9]{5}", text)
        with pytest.raises(RequestError, match="invalid regex"):
            llm.generate("x", params, grammar=Grammar("regex", "("))


@given(source=st.text(max_size=60), kind=st.sampled_from(["regex", "lark", "json_schema"]))
@settings(max_examples=60, deadline=None)
def test_any_text_compiles_or_is_refused(source: str, kind: Any) -> None:
    try:
        answer = answer_to(Grammar(kind, source), random.randrange(99), max_tokens=8)
    except RequestError:
        return
    assert answer.finish_reason in ("stop", "length", "error")
