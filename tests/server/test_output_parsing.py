"""What models write, told apart: every syntax, every malformation, every cut."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parsed import CUTS, NAMES, SYNTAXES, Parsed, make_parser, parse, parse_cut
from scripted import MARKERS, tokenizer_with
from tool_templates import QWEN

from trimtab.engine.client import TokenLogprobs, TokenOutput
from trimtab.engine.sampling_params import SamplingParams
from trimtab.server.choice import Choice
from trimtab.server.formats import Collected
from trimtab.server.parsing.choose import ModelParsers

TOKENIZER = tokenizer_with(QWEN, MARKERS)

WEATHER = '{"name": "get_weather", "arguments": {"city": "Paris"}}'
PARIS = ("get_weather", '{"city": "Paris"}')


def whole(name: str | None, text: str, **options: object) -> Parsed:
    """The parse, after checking that cutting the text into characters and pairs changes nothing."""
    result = parse(make_parser(name, **options), [text])
    for size in (1, 2, 3, 5):
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        assert parse(make_parser(name, **options), pieces) == result, size
    return result


CALLS = [
    ("hermes", f"<tool_call>\n{WEATHER}\n</tool_call>", "", [PARIS]),
    ("hermes", f"Let me see.\n\n<tool_call>{WEATHER}</tool_call>\n", "Let me see.", [PARIS]),
    (
        "hermes",
        f"<tool_call>{WEATHER}</tool_call>\n<tool_call>{WEATHER}</tool_call>",
        "",
        [PARIS, PARIS],
    ),
    ("hermes", f"<tool_call>{WEATHER}</tool_call> Done. ", "Done. ", [PARIS]),
    ("hermes", f"<tool_call>{WEATHER}}}</tool_call>", "", [PARIS]),
    ("hermes", f"<tool_call>{WEATHER[:-1]}</tool_call>", "", [PARIS]),
    ("hermes", f"<tool_call>{WEATHER}", "", [PARIS]),
    ("hermes", f"<tool_call>{WEATHER}\n</tool_c", "", [PARIS]),
    ("hermes", f"<tool_call>{WEATHER}\n<tool_call>{WEATHER}", "", [PARIS, PARIS]),
    ("hermes", '<tool_call>{"name": "now"}</tool_call>', "", [("now", "{}")]),
    ("hermes", '<tool_call>{"name": "now", "arguments": null}</tool_call>', "", [("now", "{}")]),
    (
        "hermes",
        '<tool_call>{"arguments": {"a": [1, {"b": "}"}]}, "id": {"x": ["y"]}, "name": "f"}'
        "</tool_call>",
        "",
        [("f", '{"a": [1, {"b": "}"}]}')],
    ),
    (
        "hermes",
        '<tool_call>{"name": "f", "arguments": "{\\"a\\": \\"\\\\u00e9\\ud83d\\ude42\\"}"}'
        "</tool_call>",
        "",
        [("f", '{"a": "\\u00e9🙂"}')],
    ),
    (
        "hermes",
        '<tool_call>{"name": "f", "arguments": {"s": "a \\"</tool_call>\\" {[ \\\\"}}</tool_call>',
        "",
        [("f", '{"s": "a \\"</tool_call>\\" {[ \\\\"}')],
    ),
    ("hermes", '<tool_call>{"name": "\\u0066", "arguments": {}}</tool_call>', "", [("f", "{}")]),
    ("llama3", '{"name": "get_weather", "parameters": {"city": "Paris"}}', "", [PARIS]),
    ("llama3", f"<|python_tag|>{WEATHER}; {WEATHER}", "", [PARIS, PARIS]),
    ("llama3", f"So: <|python_tag|>{WEATHER}", "So:", [PARIS]),
    ("llama3", f"\n{WEATHER}\nGood.", "Good.", [PARIS]),
    ("mistral", f"[TOOL_CALLS][{WEATHER}, {WEATHER}]", "", [PARIS, PARIS]),
    ("mistral", f"Well.[TOOL_CALLS] [{WEATHER}]", "Well.", [PARIS]),
    ("mistral", f"[TOOL_CALLS]{WEATHER}", "", [PARIS]),
    ("mistral", '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}', "", [PARIS]),
    ("mistral", '[TOOL_CALLS]get_weather{"city": "Paris"}', "", [PARIS]),
    (
        "mistral",
        '[TOOL_CALLS]get_weather[CALL_ID]123456789[ARGS]{"city": "Paris"}'
        '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}',
        "",
        [PARIS, PARIS],
    ),
    ("json", WEATHER, "", [PARIS]),
    ("json", f" [{WEATHER} , {WEATHER}] ", "", [PARIS, PARIS]),
    ("json", f"{WEATHER}\n{WEATHER}", "", [PARIS, PARIS]),
]


@pytest.mark.parametrize(("name", "text", "content", "calls"), CALLS)
def test_calls(name: str, text: str, content: str, calls: list[tuple[str, str]]) -> None:
    result = whole(name, text)
    assert (result.content, result.calls, result.reasoning) == (content, calls, "")
    assert all(json.loads(arguments) is not None for _, arguments in result.calls)


CONTENT = [
    ("hermes", "Just text, with < and <tool and </tool_call>.  "),
    ("hermes", "<tool_call>"),
    ("hermes", "a <tool_call>not json</tool_call> b"),
    ("hermes", '<tool_call>["name"]</tool_call>'),
    ("hermes", '<tool_call>{"name": 5, "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "", "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"arguments": {"a": 1}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "f", oops'),
    ("hermes", '<tool_call>{"name": "f"'),
    ("hermes", '<tool_call>{"name": "f", "arguments": '),
    ("llama3", '{"name": "somebody else", "parameters": {"a": 1}}'),
    ("llama3", '{"answer": 42}'),
    ("llama3", "<|python_tag|>brave_search.call(query='x')"),
    ("mistral", "[TOOL_CALLS]"),
    ("mistral", "[TOOL_CALLS][]"),
    ("mistral", "[TOOL_CALLS] see above (nothing)"),
    ("mistral", "[TOOL_CALLS]" + "a" * 400 + "{}"),
    ("mistral", "[TOOL"),
    ("json", '{"city": "Paris"}'),
    ("json", '[{"city": "Paris"}, 1]'),
    ("json", '"get_weather"'),
    ("json", " \n"),
    ("json", f"Here: {WEATHER}"),
    (None, f"<tool_call>{WEATHER}</tool_call>"),
]


@pytest.mark.parametrize(("name", "text"), CONTENT)
def test_what_is_no_call_is_content_to_the_last_character(name: str | None, text: str) -> None:
    result = whole(name, text)
    assert (result.content, result.calls) == (text, [])


BROKEN = [
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1', '{"a": 1', ""),
    ("hermes", '<tool_call>{"name": "f", "arguments": {a: 1}}</tool_call>x', "{a: 1}}", "x"),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": "x\\', '{"a": "x\\', ""),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1}, 5}</tool_call>', '{"a": 1}', None),
    ("mistral", '[TOOL_CALLS]f[ARGS]{"a": ]} more', '{"a": ]} more', ""),
    ("mistral", '[TOOL_CALLS][{"name": "f", "arguments": {]', "{]", ""),
    ("json", '{"name": "now", "arguments": {"a" 1}}', '{"a" 1}}', ""),
    ("json", '{"name": "now", "arguments": "{\\"a\\": \\u00', '{"a": \\u00', ""),
]


@pytest.mark.parametrize(("name", "text", "arguments", "content"), BROKEN)
def test_arguments_that_break_stay_as_they_stand(
    name: str, text: str, arguments: str, content: str | None
) -> None:
    result = whole(name, text)
    assert [written for _, written in result.calls] == [arguments]
    assert content is None or result.content == content


REASONING = [
    ("<think>\nhm\n</think>\n\nYes", False, "hm", "Yes"),
    ("\n<think>a  b</think> Yes ", False, "a  b", "Yes "),
    ("<think>\n\n</think>\n\nYes", False, "", "Yes"),
    ("hm\n</think>\nYes", True, "hm", "Yes"),
    ("<think>hm</think>Yes", True, "hm", "Yes"),
    ("never ends  ", True, "never ends  ", ""),
    ("<think>never ends </thi", False, "never ends </thi", ""),
    ("<thi", False, "", "<thi"),
    ("<thi", True, "<thi", ""),
    ("  plain <think>x</think>", False, "", "  plain <think>x</think>"),
    ("</think>", True, "", ""),
    ("<think>a</think>b</think>c", False, "a", "b</think>c"),
]


@pytest.mark.parametrize(("text", "opened", "reasoning", "content"), REASONING)
def test_reasoning(text: str, opened: bool, reasoning: str, content: str) -> None:
    result = whole(None, text, reasoning="think", opened=opened)
    assert (result.reasoning, result.content) == (reasoning, content)


def test_reasoning_then_a_call() -> None:
    text = f"<think>A <tool_call> is due.</think>\n\nOne moment. <tool_call>{WEATHER}</tool_call>"
    result = whole("hermes", text, reasoning="think")
    assert result == Parsed("A <tool_call> is due.", "One moment.", [PARIS], "rcBAE")


def test_a_single_call_ends_the_output_where_parallel_calls_are_off() -> None:
    text = f"[TOOL_CALLS][{WEATHER}, {WEATHER}] and more"
    result = whole("mistral", text, parallel=False)
    assert (result.content, result.calls) == ("", [PARIS])


FRAGMENTS = [
    *("<think>", "</think>", "<tool_call>", "</tool_call>", "<|python_tag|>", "[TOOL_CALLS]"),
    *("[ARGS]", "[CALL_ID]", WEATHER, WEATHER[:-1], '{"name": "now", "parameters": ', '"now"'),
    *("now", "{", "}", "[", "]", ",", ";", ":", '"', "\\", "\\u", "\\ud83d", "\\ude42", "00e9"),
    *(" ", "\n", "<", "</", "t", "é🙂", "null", "12", '"name"', '"arguments"', '{"a": "b"}'),
]
outputs = st.lists(st.sampled_from(FRAGMENTS), max_size=14).map("".join)


@settings(max_examples=400)
@given(outputs, st.sampled_from([*SYNTAXES, None]), st.booleans(), st.booleans(), CUTS)
def test_the_parse_does_not_depend_on_the_cuts(
    text: str, name: str | None, opened: bool, parallel: bool, cuts: list[int]
) -> None:
    options = {"reasoning": "think", "opened": opened, "parallel": parallel}
    expected = parse(make_parser(name, **options), [text])
    assert parse_cut(make_parser(name, **options), text, cuts) == expected
    assert parse(make_parser(name, **options), list(text)) == expected


@settings(max_examples=200)
@given(outputs, st.sampled_from(list(SYNTAXES)))
def test_no_letter_is_lost(text: str, name: str) -> None:
    """Markers and white space go, and what makes a call; every other character is somewhere."""
    result = parse(make_parser(name), [text])
    if not result.calls:
        assert result.content == text
    for called, arguments in result.calls:
        assert called in ("now", "get_weather", "t")
        assert arguments


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)


@given(
    st.dictionaries(st.text(), json_values, max_size=4),
    st.booleans(),
    st.sampled_from([None, 2]),
    st.sampled_from(["object", "string"]),
    CUTS,
)
def test_any_arguments_arrive(
    arguments: dict[str, object], ascii_only: bool, indent: int | None, form: str, cuts: list[int]
) -> None:
    written = json.dumps(arguments, ensure_ascii=ascii_only, indent=indent)
    value = written if form == "object" else json.dumps(written, ensure_ascii=ascii_only)
    call = f'{{"name": "now", "arguments": {value}}}'
    texts = {
        "hermes": f"<tool_call>{call}</tool_call>",
        "llama3": call,
        "mistral": f"[TOOL_CALLS][{call}]",
        "json": call,
    }
    for name, text in texts.items():
        result = parse_cut(make_parser(name), text, cuts)
        assert (result.content, len(result.calls)) == ("", 1)
        ((called, received),) = result.calls
        assert called == "now"
        assert received == written or form == "string"
        assert json.loads(received) == arguments


ALL_FRAGMENTS = st.lists(st.sampled_from([*FRAGMENTS, "stop", "é", "🙂 "]), max_size=12)


@settings(max_examples=200)
@given(
    ALL_FRAGMENTS.map("".join),
    st.sampled_from(list(SYNTAXES)),
    st.sampled_from([(), ("stop",), ("<", "now"), ("\n", '"')]),
    CUTS,
)
def test_a_choice_does_not_depend_on_how_its_tokens_arrive(
    text: str, name: str, stop: tuple[str, ...], cuts: list[int]
) -> None:
    """Tokens are bytes and markers; stop strings are found before anything is parsed."""
    params = SamplingParams(stop=stop, logprobs=0)

    def told(cuts: list[int]) -> tuple[object, ...]:
        ids = TOKENIZER.encode(text, add_special_tokens=False)
        parsing = ModelParsers(TOKENIZER, name, "think").parsing(names=NAMES)
        choice = Choice(0, params, TOKENIZER, parsing=parsing)
        bounds = [0, *sorted(min(cut, len(ids)) for cut in cuts), len(ids)]
        collected = Collected()
        for start, end in itertools.pairwise(bounds):
            if choice.finished:
                break
            hand = ids[start:end]
            reason = "stop" if end == len(ids) else None
            logprobs = [TokenLogprobs(-float(token)) for token in hand]
            collected.add(choice.take(TokenOutput("r", hand, logprobs, reason)))
            if reason:
                break
        calls = [(call.index, call.name, call.arguments) for call in collected.tool_calls]
        tokens = [(token.token_id, token.text_offset) for token in collected.tokens]
        plain = [token for token, _ in tokens if token < 0x80]  # a byte, a character
        assert all(chr(token) in collected.text for token in plain)
        assert tokens or not collected.text
        return (
            *(collected.text, collected.reasoning, calls, tokens, collected.finish_reason),
            choice.num_reasoning_tokens,
        )

    assert told(cuts) == told([]) == told(list(range(400)))


def test_a_long_output_of_nothing_but_markers_takes_linear_time() -> None:
    for text in ("<tool_call>{" * 6_000, '<tool_call>{"name": "' * 6_000, " \n" * 6_000):
        result = parse(make_parser("hermes", reasoning="think"), list(text))
        assert result.content == text
