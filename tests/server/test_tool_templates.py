"""Requests with tools, rendered: the text that transformers gives; parsers chosen by template."""

from __future__ import annotations

import json
from typing import Any

import pytest
from scripted import MARKERS, scripted, tokenizer_with
from tool_templates import (
    EFFORT,
    HERMES,
    LLAMA_3,
    MISTRAL,
    NO_TOOLS,
    OPENED,
    QWEN,
    TEXT_ARGUMENTS,
    TOOL_TEMPLATES,
)
from transformers import PreTrainedTokenizerFast

from trimtab.errors import ConfigError
from trimtab.server.parsing.choose import TOOL_SYNTAXES, ModelParsers
from trimtab.server.parsing.reasoning import REASONING_MARKERS

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "description": "The weather", "parameters": PARAMETERS},
}
USER = {"role": "user", "content": "How is Paris?"}
CALL = {
    "id": "abcDEF123",
    "type": "function",
    "function": {"name": "get_weather", "arguments": '{"city":"Paris é", "n": 1}'},
}
CALLED = {"role": "assistant", "content": None, "tool_calls": [CALL]}
ANSWERED = {"role": "tool", "tool_call_id": "abcDEF123", "content": '{"sky": "blue"}'}
CHAT = "/v1/chat/completions"


def as_transformers_wants(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    copied: list[dict[str, Any]] = json.loads(json.dumps(messages))
    for message in copied:
        for call in message.get("tool_calls", []):
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return copied


HISTORIES = {
    "question": [USER],
    "answered": [USER, CALLED, ANSWERED],
    "again": [USER, CALLED, ANSWERED, {"role": "assistant", "content": "Blue."}, USER],
}


@pytest.mark.parametrize("history", HISTORIES)
@pytest.mark.parametrize("name", [name for name in TOOL_TEMPLATES if name != "text"])
async def test_same_text_as_transformers(name: str, history: str) -> None:
    template, messages = TOOL_TEMPLATES[name], HISTORIES[history]
    theirs = PreTrainedTokenizerFast(tokenizer_object=tokenizer_with(None)._backend, bos_token="")
    theirs.eos_token = "<eos>"
    expected = theirs.apply_chat_template(
        as_transformers_wants(messages),
        tools=[TOOL],
        chat_template=template,
        add_generation_prompt=True,
        tokenize=False,
    )
    async with scripted(template, tool_parser="json") as server:
        server.says("x")
        answer = await server.openai.chat.completions.create(
            model="scripted", messages=messages, tools=[TOOL]
        )
        assert answer.choices[0].message.content == "x"
        assert server.prompt == expected


async def test_a_template_that_concatenates_arguments_gets_them_as_text() -> None:
    """And null stays null: it looks for calls only there."""
    async with scripted(TEXT_ARGUMENTS) as server:
        messages = HISTORIES["answered"]
        await server.openai.chat.completions.create(model="scripted", messages=messages)
        arguments = CALL["function"]["arguments"]
        assert server.prompt == (
            f"user:How is Paris?\n<call>get_weather\n{arguments}</call>"
            'tool:{"sky": "blue"}\nassistant:'
        )


async def test_reasoning_in_the_history() -> None:
    async with scripted(QWEN) as server:
        for name in ("reasoning_content", "reasoning"):
            message = {"role": "assistant", "content": "Blue.", name: "Look up."}
            response = await server.http.post(CHAT, json={"messages": [USER, message, USER]})
            assert response.status_code == 200
            assert "<think>\nLook up.\n</think>\n\nBlue." in server.prompt


CONTINUATIONS = [
    {"role": "assistant", "content": "Well, it "},
    {"role": "assistant", "content": " it\n"},
    {"role": "assistant", "content": [{"type": "text", "text": "Well"}]},
]


@pytest.mark.parametrize("last", CONTINUATIONS)
@pytest.mark.parametrize("template", [QWEN, LLAMA_3, HERMES], ids=["qwen", "llama3", "hermes"])
async def test_a_message_is_continued_as_transformers_does(
    template: str, last: dict[str, Any]
) -> None:
    theirs = PreTrainedTokenizerFast(tokenizer_object=tokenizer_with(None)._backend, bos_token="")
    text = last["content"] if isinstance(last["content"], str) else last["content"][0]["text"]
    expected = theirs.apply_chat_template(
        [USER, {"role": "assistant", "content": text}],
        chat_template=template,
        continue_final_message=True,
        tokenize=False,
    )
    body = {"add_generation_prompt": False, "continue_final_message": True}
    async with scripted(template) as server:
        response = await server.http.post(CHAT, json={"messages": [USER, last], **body})
        assert response.status_code == 200, response.text
        assert server.prompt == expected


async def test_reasoning_is_continued_as_reasoning() -> None:
    body = {"add_generation_prompt": False, "continue_final_message": True}
    for begun, expected in (("<think>Well", ("more", "Yes")), ("<think>a</think>b", (None, None))):
        messages = [USER, {"role": "assistant", "content": begun}]
        async with scripted(QWEN) as server:
            server.says("more</think>Yes")
            answer = (await server.http.post(CHAT, json={"messages": messages, **body})).json()
            message = answer["choices"][0]["message"]
            if expected[0]:
                assert (message["reasoning_content"], message["content"]) == expected
            else:
                assert message["content"] == "more</think>Yes"


CHOSEN = [
    (QWEN, (), "hermes", "think"),
    (HERMES, (), "hermes", None),
    (HERMES, ("<think>", "</think>"), "hermes", "think"),
    (LLAMA_3, (), "llama3", None),
    (MISTRAL, (), "mistral", None),
    (TEXT_ARGUMENTS, (), "json", None),
    (TEXT_ARGUMENTS, ("[TOOL_CALLS]",), "mistral", None),
    (NO_TOOLS, MARKERS, None, "think"),
    (QWEN + "{# <function=f> #}", (), None, "think"),
    (None, MARKERS, None, None),
]


@pytest.mark.parametrize(("template", "special", "tools", "reasoning"), CHOSEN)
def test_parsers_are_chosen_by_the_model(
    template: str | None, special: tuple[str, ...], tools: str | None, reasoning: str | None
) -> None:
    parsers = ModelParsers(tokenizer_with(template, special))
    assert parsers.syntax is (TOOL_SYNTAXES[tools] if tools else None)
    assert parsers.reasoning is (REASONING_MARKERS[reasoning] if reasoning else None)


def test_parsers_can_be_forced() -> None:
    tokenizer = tokenizer_with(QWEN)
    parsers = ModelParsers(tokenizer, "mistral", "magistral")
    assert parsers.syntax is TOOL_SYNTAXES["mistral"]
    assert parsers.reasoning is REASONING_MARKERS["magistral"]
    none = ModelParsers(tokenizer, "none", "none")
    assert (none.syntax, none.reasoning) == (None, None)
    for knobs in (("hermit", "auto"), ("auto", "thought-police")):
        with pytest.raises(ConfigError, match="must be one of auto, none, "):
            ModelParsers(tokenizer, *knobs)


EFFORTS = [
    (QWEN, {"reasoning_effort": "none"}, "<think>\n\n</think>"),
    (QWEN, {"reasoning_effort": "high"}, "assistant\n"),
    (QWEN, {"chat_template_kwargs": {"enable_thinking": False}}, "<think>\n\n</think>"),
    (
        QWEN,
        {"chat_template_kwargs": {"enable_thinking": True}, "reasoning_effort": "none"},
        "assistant\n",
    ),
    (EFFORT, {"reasoning_effort": "low"}, "Effort: low\nuser: How is Paris?"),
    (EFFORT, {"chat_template_kwargs": {"reasoning_effort": "high"}}, "Effort: high\nuser"),
    (NO_TOOLS, {"reasoning_effort": "none"}, "<assistant>"),
]


@pytest.mark.parametrize(("template", "fields", "end"), EFFORTS)
async def test_how_much_to_think(template: str, fields: dict[str, Any], end: str) -> None:
    async with scripted(template) as server:
        response = await server.http.post(CHAT, json={"messages": [USER], **fields})
        assert response.status_code == 200
        assert end in server.prompt
        assert ("<think>" in server.prompt) == ("<think>" in end)


async def test_a_template_may_open_the_reasoning() -> None:
    async with scripted(OPENED, MARKERS) as server:
        server.says("Hm.\n</think>\n\nBlue.")
        answer = await server.openai.chat.completions.create(model="scripted", messages=[USER])
        message = answer.choices[0].message
        assert (message.content, message.reasoning_content) == ("Blue.", "Hm.")
        assert answer.usage.completion_tokens_details.reasoning_tokens == len("Hm.\n.\n\n")
