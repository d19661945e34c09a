"""Tools and reasoning over the API: what the SDK sees, streamed and whole, and every refusal."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import BaseModel
from scripted import MARKERS, Scripted, scripted
from test_tool_templates import ANSWERED, CALLED, PARAMETERS, TOOL, USER
from tool_templates import HERMES, LLAMA_3, MISTRAL, NO_TOOLS, QWEN, TEXT_ARGUMENTS

CHAT = "/v1/chat/completions"
WEATHER = '{"name": "get_weather", "arguments": {"city": "Zürich 🙂"}}'
ARGUMENTS = '{"city": "Zürich 🙂"}'
NOW = {"type": "function", "function": {"name": "now"}}
SAID = {
    "hermes": (HERMES, f"Let me see.\n<tool_call>\n{WEATHER}\n</tool_call>"),
    "llama3": (LLAMA_3, f"Let me see.<|python_tag|>{WEATHER}"),
    "mistral": (MISTRAL, f"Let me see.[TOOL_CALLS][{WEATHER}]"),
    "mistral-args": (MISTRAL, f"Let me see.[TOOL_CALLS]get_weather[ARGS]{ARGUMENTS}"),
}


async def ask(server: Scripted, **fields: Any) -> Any:
    fields = {"model": "scripted", "messages": [USER], "tools": [TOOL]} | fields
    return await server.openai.chat.completions.create(**fields)


async def put_together(stream: Any) -> dict[str, Any]:
    """A streamed choice as its message would be; checks the framing of the stream."""
    message: dict[str, Any] = {"content": "", "reasoning": "", "calls": [], "tokens": []}
    async for chunk in stream:
        (choice,) = chunk.choices
        assert "finish_reason" not in message
        delta = choice.delta
        message["content"] += delta.content or ""
        message["reasoning"] += getattr(delta, "reasoning_content", None) or ""
        assert getattr(delta, "reasoning", None) == getattr(delta, "reasoning_content", None)
        for call in delta.tool_calls or []:
            if call.id is not None:
                assert (call.index, call.type) == (len(message["calls"]), "function")
                message["calls"].append([call.id, call.function.name, ""])
            else:
                assert (call.function.name, call.type) == (None, None)
            message["calls"][call.index][2] += call.function.arguments
        if choice.logprobs:
            message["tokens"] += [entry.token for entry in choice.logprobs.content]
        if choice.finish_reason:
            message["finish_reason"] = choice.finish_reason
    return message


@pytest.mark.parametrize("special", [(), MARKERS], ids=["text", "special"])
@pytest.mark.parametrize("name", SAID)
async def test_a_call_whole_and_streamed(name: str, special: tuple[str, ...]) -> None:
    """Markers that are special tokens are no part of a text, but they are seen."""
    template, script = SAID[name]
    async with scripted(template, special) as server:
        for seed in range(4):
            server.says(script, seed=seed)
            answer = await ask(server)
            (choice,) = answer.choices
            assert choice.finish_reason == "tool_calls"
            assert choice.message.content == "Let me see."
            (call,) = choice.message.tool_calls
            assert (call.type, call.function.name) == ("function", "get_weather")
            assert call.function.arguments == ARGUMENTS
            assert len(call.id) == (9 if "mistral" in name else 29)
            streamed = await put_together(await ask(server, stream=True))
            assert streamed["content"] == "Let me see."
            assert [entry[1:] for entry in streamed["calls"]] == [["get_weather", ARGUMENTS]]
            assert streamed["finish_reason"] == "tool_calls"


async def test_the_next_turn_takes_the_answer_as_it_came() -> None:
    async with scripted(MISTRAL, MARKERS) as server:
        server.says(SAID["mistral"][1])
        message = (await ask(server)).choices[0].message
        result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "sunny"}
        server.says("Sunny.")
        history = [USER, message.model_dump(exclude_unset=True), result]
        answer = await ask(server, messages=history)
        assert answer.choices[0].message.content == "Sunny."
        assert '"name": "get_weather"' in server.prompt
        assert "sunny" in server.prompt


async def test_only_a_call_has_null_content() -> None:
    async with scripted(HERMES) as server:
        server.says(f"<tool_call>{WEATHER}</tool_call><tool_call>{WEATHER}</tool_call>")
        message = (await ask(server)).choices[0].message
        assert message.content is None
        assert len({call.id for call in message.tool_calls}) == 2
        single = await ask(server, parallel_tool_calls=False)
        assert len(single.choices[0].message.tool_calls) == 1
        assert single.choices[0].finish_reason == "tool_calls"
        assert single.usage.completion_tokens < len(server.engine.script)


async def test_without_tools_nothing_is_parsed() -> None:
    async with scripted(QWEN) as server:
        server.says(SAID["hermes"][1])
        for fields in ({"tools": None}, {"tools": []}, {"tool_choice": "none"}):
            answer = await ask(server, **fields)
            assert answer.choices[0].message.content == server.engine.script
            assert answer.choices[0].finish_reason == "stop"
            assert "get_weather" not in server.prompt
    async with scripted(QWEN, tool_parser="none", reasoning_parser="none") as server:
        server.says("<think>a</think>b")
        answer = await ask(server, tools=None)
        assert answer.choices[0].message.content == "<think>a</think>b"
        assert not hasattr(answer.choices[0].message, "reasoning")


async def test_malformed_calls_are_content() -> None:
    async with scripted(QWEN, MARKERS) as server:
        script = 'So: <tool_call>{"name": oops}</tool_call>'
        server.says(script)
        message = (await ask(server)).choices[0].message
        assert (message.content, message.tool_calls) == (script, None)
        streamed = await put_together(await ask(server, stream=True))
        assert (streamed["content"], streamed["finish_reason"]) == (script, "stop")


async def test_a_call_cut_short_keeps_its_reason() -> None:
    async with scripted(HERMES) as server:
        server.says('<tool_call>{"name": "get_weather", "arguments": {"city": "Z', "length")
        (choice,) = (await ask(server)).choices
        assert choice.finish_reason == "length"
        assert choice.message.tool_calls[0].function.arguments == '{"city": "Z'


SCRIPT = f"<think>\nIt is far.\n</think>\n\nLet me see.\n<tool_call>\n{WEATHER}\n</tool_call>"
STOPS = [
    ("far", "It is ", "", [], "stop"),
    ("</think>", "It is far.\n", "", [], "stop"),
    (".\n</th", "It is far", "", [], "stop"),
    ("Let", "It is far.", "", [], "stop"),
    ("see.", "It is far.", "Let me ", [], "stop"),
    ("<tool_call>", "It is far.", "Let me see.\n", [], "stop"),
    ("rich", "It is far.", "Let me see.", ['{"city": "Zü'], "tool_calls"),
    ("}\n", "It is far.", "Let me see.", ['{"city": "Zürich 🙂"}'], "tool_calls"),
]


@pytest.mark.parametrize(("stop", "reasoning", "content", "arguments", "reason"), STOPS)
@pytest.mark.parametrize("seed", [0, 1, 2])
async def test_stop_strings_end_all_of_the_output(
    stop: str, reasoning: str, content: str, arguments: list[str], reason: str, seed: int
) -> None:
    async with scripted(QWEN, MARKERS) as server:
        server.says(SCRIPT, seed=seed)
        (choice,) = (await ask(server, stop=[stop, "never"])).choices
        message = choice.message
        assert message.reasoning_content == reasoning
        assert (message.content or "") == content
        assert [call.function.arguments for call in message.tool_calls or []] == arguments
        assert choice.finish_reason == reason
        streamed = await put_together(await ask(server, stop=stop, stream=True))
        assert (streamed["reasoning"], streamed["content"]) == (reasoning, content)
        assert [call[2] for call in streamed["calls"]] == arguments
        assert streamed["finish_reason"] == reason


async def test_logprobs_are_those_of_the_content() -> None:
    async with scripted(QWEN, MARKERS) as server:
        for seed in range(6):
            server.says(SCRIPT + " Done é🙂", seed=seed)
            (choice,) = (await ask(server, logprobs=True)).choices
            assert choice.message.content == "Let me see.Done é🙂"
            tokens = choice.logprobs.content
            assert b"".join(bytes(entry.bytes) for entry in tokens).decode() == (
                choice.message.content
            )
            assert [entry.logprob for entry in tokens] == [
                -float(entry.bytes[0]) for entry in tokens
            ]
            streamed = await put_together(await ask(server, logprobs=True, stream=True))
            assert streamed["tokens"] == [entry.token for entry in tokens]


class GetWeather(BaseModel):
    """The weather."""

    city: str


async def test_the_stream_helper_of_the_sdk() -> None:
    import openai

    tool = openai.pydantic_function_tool(GetWeather, name="get_weather")
    async with scripted(QWEN, MARKERS) as server:
        server.says(SCRIPT)
        async with server.openai.chat.completions.stream(
            model="scripted", messages=[USER], tools=[tool]
        ) as stream:
            kinds = [event.type async for event in stream]
            final = await stream.get_final_completion()
        assert "content.done" in kinds
        assert "tool_calls.function.arguments.delta" in kinds
        assert kinds.count("tool_calls.function.arguments.done") == 1
        (call,) = final.choices[0].message.tool_calls
        assert call.function.parsed_arguments == GetWeather(city="Zürich 🙂")
        parsed = await server.openai.chat.completions.parse(
            model="scripted", messages=[USER], tools=[tool]
        )
        (call,) = parsed.choices[0].message.tool_calls
        assert call.function.parsed_arguments == GetWeather(city="Zürich 🙂")


def tool(**function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f"} | function}


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"tools": [{"type": "web_search"}]}, "tools"),
    ({"tools": [{"type": "custom", "function": {"name": "f"}}]}, "tools"),
    ({"tools": [tool(name="")]}, "tools"),
    ({"tools": [tool(name="a b")]}, "tools"),
    ({"tools": [tool(name="a" * 129)]}, "tools"),
    ({"tools": [tool(), tool()]}, "tools"),
    ({"tools": [tool(name=f"f{i}") for i in range(129)]}, "tools"),
    ({"tools": [tool(description="x" * (256 << 10))]}, "tools"),
    ({"tools": [tool(parameters=[])]}, "tools"),
    ({"tools": [tool(parameters={"type": "array"})]}, "tools"),
    ({"tools": [tool(parameters={"type": ["object", 5]})]}, "tools"),
    ({"tools": [tool(parameters={"properties": []})]}, "tools"),
    ({"tools": [tool(parameters={"properties": {"a": 5}})]}, "tools"),
    ({"tools": [tool(parameters={"required": "a"})]}, "tools"),
    ({"tools": [tool(parameters=nested(40))]}, "tools"),
    ({"tool_choice": "always"}, "tool_choice"),
    ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
    ({"tool_choice": {"type": "custom", "function": {"name": "get_weather"}}}, "tool_choice"),
    ({"tool_choice": {"type": "function"}}, "tool_choice"),
    ({"tool_choice": 5}, "tool_choice"),
    ({"tools": [], "tool_choice": "required"}, "tool_choice"),
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"function_call": "auto"}, "function_call"),
    ({"messages": [USER, ANSWERED]}, "messages"),
    ({"messages": [USER, CALLED, {**ANSWERED, "tool_call_id": "other"}]}, "messages"),
    ({"messages": [USER, CALLED, {"role": "tool", "content": "x"}]}, "messages"),
    ({"messages": [USER, CALLED, {**ANSWERED, "content": None}]}, "messages"),
    ({"messages": [{**CALLED, "role": "user", "content": "x"}]}, "messages"),
    ({"messages": [USER, {"role": "assistant", "tool_calls": [{"id": "x"}]}]}, "messages"),
    (
        {"messages": [USER, {**CALLED, "tool_calls": [{**CALLED["tool_calls"][0], "type": "x"}]}]},
        "messages",
    ),
    ({"messages": [USER, {"role": "assistant", "content": None}]}, "messages"),
    ({"messages": [{"role": "function", "name": "f", "content": "x"}]}, "messages"),
    ({"continue_final_message": True}, "continue_final_message"),
    (
        {"continue_final_message": True, "add_generation_prompt": False},
        "continue_final_message",
    ),
    ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
    ({"chat_template_kwargs": {"enable_thinking": "no"}}, "chat_template_kwargs"),
    ({"chat_template_kwargs": {"date_string": "x" * 300}}, "chat_template_kwargs"),
    ({"reasoning_effort": "extreme"}, "reasoning_effort"),
]


@pytest.mark.parametrize(("fields", "param"), REFUSED)
async def test_refusals(fields: dict[str, Any], param: str) -> None:
    async with scripted(QWEN) as server:
        body = {"messages": [USER], "tools": [TOOL]} | fields
        response = await server.http.post(CHAT, json=body)
        assert response.status_code == 400, response.text
        error = response.json()["error"]
        assert error["param"] == param
        assert len(error["message"]) < 300
        assert server.engine.requests == []


async def test_models_without_tools_say_so() -> None:
    async with scripted(NO_TOOLS) as server:
        response = await server.http.post(CHAT, json={"messages": [USER], "tools": [TOOL]})
        assert response.status_code == 400
        assert response.json()["error"]["message"] == "this model's chat template takes no tools"
        body = {"messages": [USER], "tools": [TOOL], "tool_choice": "none"}
        assert (await server.http.post(CHAT, json=body)).status_code == 200
        effort = {"messages": [USER], "reasoning_effort": "low"}
        response = await server.http.post(CHAT, json=effort)
        assert (response.status_code, response.json()["error"]["param"]) == (
            400,
            "reasoning_effort",
        )
    async with scripted(QWEN, tool_parser="none") as server:
        response = await server.http.post(CHAT, json={"messages": [USER], "tools": [TOOL]})
        assert response.status_code == 400
        assert "tool_parser" in response.json()["error"]["message"]


async def test_a_message_that_is_not_rendered_cannot_be_continued() -> None:
    body = {"messages": [USER, CALLED], "continue_final_message": True}
    async with scripted(LLAMA_3) as server:
        response = await server.http.post(CHAT, json=body | {"add_generation_prompt": False})
        assert response.status_code == 400
        assert "cannot be continued" in response.json()["error"]["message"]


async def test_mistral_refuses_ids_that_it_does_not_know() -> None:
    call = {**CALLED["tool_calls"][0], "id": "call_1"}
    messages = [USER, {**CALLED, "tool_calls": [call]}, {**ANSWERED, "tool_call_id": "call_1"}]
    async with scripted(MISTRAL) as server:
        response = await server.http.post(CHAT, json={"messages": messages, "tools": [TOOL]})
        assert response.status_code == 400
        assert "length 9" in response.json()["error"]["message"]


async def test_broken_arguments_in_the_history_stay_text() -> None:
    function = {"name": "get_weather", "arguments": '{"city": '}
    call = {"id": "abcDEF123", "type": "function", "function": function}
    async with scripted(QWEN) as server:
        messages = [USER, {**CALLED, "tool_calls": [call]}, ANSWERED]
        response = await server.http.post(CHAT, json={"messages": messages, "tools": [TOOL]})
        assert response.status_code == 200
        assert '"arguments": {"city": }' in server.prompt


async def test_plain_json_answers_are_calls_only_by_name() -> None:
    async with scripted(TEXT_ARGUMENTS) as server:
        server.says('{"name": "Ada", "arguments": {}}')
        (choice,) = (await ask(server)).choices
        assert (choice.message.content, choice.finish_reason) == (server.engine.script, "stop")
        server.says('{"name": "now"}')
        (choice,) = (await ask(server, tools=[TOOL, NOW])).choices
        assert choice.message.tool_calls[0].function.arguments == "{}"
        assert json.dumps({"type": "object", "properties": {}}) in server.prompt
        assert json.dumps(PARAMETERS) in server.prompt
