"""tool_choice required and named: the grammar lets the calls through that the parser reads, and
nothing else; and a model of random weights has no other way than to make them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import llguidance
import pytest
from live import Live, end, serve_command, start
from parsed import parse
from scripted import MARKERS, scripted, tokenizer_with
from test_tool_templates import TOOL, USER
from tiny_model import write_tiny_model
from tool_templates import HERMES, LLAMA_3, MISTRAL, OPENED, QWEN, TEXT_ARGUMENTS

from trimtab.server.parsing.choose import ModelParsers

PAINT_SCHEMA = {
    "type": "object",
    "properties": {"color": {"enum": ["red", "blue"]}, "deep": {"type": "boolean"}},
    "required": ["color", "deep"],
    "additionalProperties": False,
}
PAINT = {"type": "function", "function": {"name": "paint", "parameters": PAINT_SCHEMA}}
NOW_SCHEMA = {"type": "object", "properties": {}, "additionalProperties": False}
NOW = {"type": "function", "function": {"name": "now", "parameters": NOW_SCHEMA}}
ARGUMENTS = '{"color": "red", "deep": true}'
OBJECT = f'{{"name": "paint", "arguments": {ARGUMENTS}}}'
HERMES_CALL = f"<tool_call>\n{OBJECT}\n</tool_call>"
CALLS = {
    "hermes": (HERMES, HERMES_CALL, f"{HERMES_CALL}\n{HERMES_CALL}"),
    "llama3": (
        LLAMA_3,
        OBJECT.replace("arguments", "parameters"),
        "; ".join([OBJECT.replace("arguments", "parameters")] * 2),
    ),
    "mistral": (MISTRAL, f"[TOOL_CALLS][{OBJECT}]", f"[TOOL_CALLS][{OBJECT}, {OBJECT}]"),
    "json": (TEXT_ARGUMENTS, OBJECT, f"[{OBJECT}, {OBJECT}]"),
}


def accepts(grammar: str, text: str) -> bool:
    """Whether it is a whole text of the grammar; a token is a byte."""
    tokenizer = llguidance.LLTokenizer("byte")
    matcher = llguidance.LLMatcher(tokenizer, grammar)
    assert not matcher.is_error(), matcher.get_error()
    tokens = tokenizer.tokenize_str(text)
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


@pytest.mark.parametrize("name", CALLS)
def test_the_grammar_has_the_calls_that_the_parser_reads(name: str) -> None:
    template, one, two = CALLS[name]
    parsers = ModelParsers(tokenizer_with(template))
    single = parsers.forced_calls([NOW, PAINT], False, False)
    several = parsers.forced_calls([NOW, PAINT], True, False)
    named = parsers.forced_calls([NOW], False, False)
    assert accepts(single.source, one)
    assert not accepts(single.source, two)
    assert accepts(several.source, two)
    assert not accepts(named.source, one)
    for text in ("", "Sure.", one + "x", one.replace("red", "green"), one.replace("paint", "p")):
        assert not accepts(several.source, text)
    for text, number in ((one, 1), (two, 2)):
        parsing = parsers.parsing(names=["paint", "now"])
        assert parsing is not None
        result = parse(parsing.parser(), [text])
        assert (result.content, result.calls) == ("", [("paint", ARGUMENTS)] * number)


def test_markers_that_are_special_tokens_stand_in_it_by_id() -> None:
    tokenizer = tokenizer_with(MISTRAL, MARKERS)
    grammar = ModelParsers(tokenizer).forced_calls([NOW], False, False)
    for marker in ("[TOOL_CALLS]", "[ARGS]"):
        assert f"<[{tokenizer.token_to_id(marker)}]>" in grammar.source
        assert marker not in grammar.source


async def test_what_the_engine_is_asked() -> None:
    async with scripted(OPENED, MARKERS) as server:
        server.says(f"Red.</think>\n\n{HERMES_CALL}")
        create = server.openai.chat.completions.create
        fields: dict[str, Any] = {"model": "scripted", "messages": [USER], "tools": [NOW, PAINT]}
        (choice,) = (await create(**fields, tool_choice="required")).choices
        assert choice.finish_reason == "tool_calls"
        assert choice.message.tool_calls[0].function.arguments == ARGUMENTS
        grammar = server.engine.requests[-1].grammar
        end_of_thinking = server.engine._tokenizer.token_to_id("</think>")
        assert (grammar.kind, grammar.after) == ("lark", (end_of_thinking,))
        assert "now" in grammar.source
        named = {"type": "function", "function": {"name": "paint"}}
        (choice,) = (await create(**fields, tool_choice=named)).choices
        assert choice.finish_reason == "stop"
        assert len(choice.message.tool_calls) == 1
        assert "now" not in server.engine.requests[-1].grammar.source
        response_format = {"type": "json_object"}
        await create(**fields, response_format=response_format)
        assert server.engine.requests[-1].grammar.after == (end_of_thinking,)
        body = fields | {"tool_choice": "required", "response_format": response_format}
        response = await server.http.post("/v1/chat/completions", json=body)
        assert (response.status_code, response.json()["error"]["param"]) == (400, "response_format")
    async with scripted(OPENED) as server:  # the end of the reasoning is no token
        body = {"messages": [USER], "tools": [TOOL], "tool_choice": "required"}
        response = await server.http.post("/v1/chat/completions", json=body)
        assert (response.status_code, response.json()["error"]["param"]) == (400, "tool_choice")


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    model = write_tiny_model(tmp_path_factory.mktemp("models") / "tiny", QWEN)
    live = start(serve_command(Path(model), "--json", "--weights", "f32", "--threads", "1"))
    yield live
    end(live)


def test_a_model_of_random_weights_makes_the_calls(real: Live) -> None:
    fields: dict[str, Any] = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "x"}],
        "tools": [PAINT],
        "max_tokens": 110,
        "parallel_tool_calls": False,
    }
    named = {"type": "function", "function": {"name": "paint"}}
    for choice in ("required", named):
        for seed in range(3):
            asked = fields | {"tool_choice": choice, "seed": seed}
            (answer,) = real.openai().chat.completions.create(**asked).choices
            (call,) = answer.message.tool_calls or []
            assert call.function.name == "paint"
            jsonschema.validate(json.loads(call.function.arguments), PAINT_SCHEMA)
            assert answer.finish_reason == ("tool_calls" if choice == "required" else "stop")
            with real.openai().chat.completions.create(**asked, stream=True) as stream:
                deltas = [chunk.choices[0].delta for chunk in stream]
            streamed = [call for delta in deltas for call in delta.tool_calls or []]
            arguments = "".join(call.function.arguments for call in streamed)
            assert arguments == call.function.arguments


def test_a_schema_that_cannot_be_compiled_is_refused(real: Live) -> None:
    schema = {"type": "object", "properties": {"a": {"$ref": "#/nowhere"}}, "required": ["a"]}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    body = {"messages": [USER], "tools": [tool], "tool_choice": "required", "max_tokens": 50}
    response = real.post("/v1/chat/completions", json=body)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == "tool_choice"
