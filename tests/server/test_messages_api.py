"""`/v1/messages`: what Anthropic's client sees, streamed and whole, and raw events and refusals."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import pytest
from fake_engine import MODEL_NAME
from live import Live, live_server
from scripted import MARKERS, Scripted, scripted
from test_tool_templates import PARAMETERS
from tool_templates import HERMES, NO_TOOLS, QWEN

MESSAGES = "/v1/messages"
USER = {"role": "user", "content": "How is Paris?"}
TOOL = {"name": "get_weather", "description": "The weather", "input_schema": PARAMETERS}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Zürich 🙂"}}\n</tool_call>'
SCRIPT = f"<think>\nIt is far.\n</think>\n\nLet me see.\n{CALL}\n{CALL}\nDone."
THINKING = {"type": "enabled", "budget_tokens": 1024}


def blocks_of(message: Any) -> list[tuple[str, Any]]:
    """Without ids, which are new in each answer."""
    found = []
    for block in message.content:
        if block.type == "tool_use":
            assert block.id
            found.append((block.name, block.input))
        else:
            found.append((block.type, getattr(block, block.type)))
    return found


async def ask(server: Scripted, **fields: Any) -> Any:
    asked = {"model": "scripted", "max_tokens": 500, "messages": [USER]} | fields
    return await server.anthropic.messages.create(**asked)


async def ask_streamed(server: Scripted, **fields: Any) -> Any:
    asked = {"model": "scripted", "max_tokens": 500, "messages": [USER]} | fields
    async with server.anthropic.messages.stream(**asked) as stream:
        return await stream.get_final_message()


@pytest.mark.parametrize("special", [(), MARKERS], ids=["text", "special"])
async def test_streamed_and_whole_are_the_same(special: tuple[str, ...]) -> None:
    expected = [
        ("thinking", "It is far."),
        ("text", "Let me see."),
        ("get_weather", {"city": "Zürich 🙂"}),
        ("get_weather", {"city": "Zürich 🙂"}),
        ("text", "Done."),
    ]
    async with scripted(QWEN, special) as server:
        for seed in range(5):
            server.says(SCRIPT, seed=seed)
            fields = {"tools": [TOOL], "thinking": THINKING}
            whole = await ask(server, **fields)
            streamed = await ask_streamed(server, **fields)
            assert blocks_of(whole) == blocks_of(streamed) == expected
            for message in (whole, streamed):
                assert message.id.startswith("msg_")
                assert (message.stop_reason, message.stop_sequence) == ("tool_use", None)
            assert whole.usage == streamed.usage
            assert whole.usage.output_tokens > 100


async def test_raw_events() -> None:
    async with scripted(QWEN) as server:
        server.says("<think>a</think>b")
        body = {"max_tokens": 9, "messages": [USER], "stream": True, "thinking": THINKING}
        response = await server.http.post(MESSAGES, json=body)
        assert response.headers["content-type"].startswith("text/event-stream")
        events = []
        for frame in response.text.removesuffix("\n\n").split("\n\n"):
            name, data = frame.split("\n")
            event = json.loads(data.removeprefix("data: "))
            assert name == f"event: {event['type']}"
            events.append(event)
        start = events[0]["message"]
        assert (start["content"], start["stop_reason"], start["type"]) == ([], None, "message")
        assert start["usage"]["input_tokens"] > 0
        assert events[1:] == [
            {"type": "ping"},
            {
                "type": "content_block_start",
                "index": 0,
                "content_block": {"type": "thinking", "thinking": "", "signature": ""},
            },
            {
                "type": "content_block_delta",
                "index": 0,
                "delta": {"type": "thinking_delta", "thinking": "a"},
            },
            {"type": "content_block_stop", "index": 0},
            {
                "type": "content_block_start",
                "index": 1,
                "content_block": {"type": "text", "text": ""},
            },
            {
                "type": "content_block_delta",
                "index": 1,
                "delta": {"type": "text_delta", "text": "b"},
            },
            {"type": "content_block_stop", "index": 1},
            {
                "type": "message_delta",
                "delta": {"stop_reason": "end_turn", "stop_sequence": None},
                "usage": start["usage"] | {"output_tokens": 17},
            },
            {"type": "message_stop"},
        ]


async def test_why_it_stops() -> None:
    async with scripted(NO_TOOLS) as server:
        server.says("one two three")
        stopped = await ask(server, stop_sequences=["never", " three"])
        assert blocks_of(stopped) == [("text", "one two")]
        assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", " three")
        server.says("one two three", "length")
        assert (await ask(server)).stop_reason == "max_tokens"
        assert (await ask_streamed(server)).stop_reason == "max_tokens"
        server.says("")
        assert (await ask(server)).content == []


async def test_thinking_is_off_unless_asked_for() -> None:
    async with scripted(QWEN) as server:
        server.says("fine")
        for fields in ({}, {"thinking": {"type": "disabled"}}):
            assert blocks_of(await ask(server, **fields)) == [("text", "fine")]
            assert server.prompt.endswith("<think>\n\n</think>\n\n")
        await ask(server, thinking=THINKING)
        assert server.prompt.endswith("assistant\n")
    async with scripted(HERMES, MARKERS) as server:  # it thinks all the same: nobody asked
        server.says("<think>hm</think>fine")
        assert blocks_of(await ask(server)) == [("text", "fine")]
        assert blocks_of(await ask_streamed(server)) == [("text", "fine")]


async def test_a_conversation_with_tools() -> None:
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "How is"}]},
        {"role": "user", "content": "Paris?"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Look up.", "signature": "x"},
                {"type": "redacted_thinking", "data": "x"},
                {"type": "text", "text": "A moment."},
                {"type": "tool_use", "id": "t1", "name": "get_weather", "input": {"city": "Paris"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "t1",
                    "content": [{"type": "text", "text": "blue"}],
                },
                {"type": "text", "text": "And?"},
            ],
        },
    ]
    async with scripted(QWEN) as server:
        server.says("Blue.")
        answer = await ask(
            server,
            system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
            messages=messages,
            tools=[TOOL],
            tool_choice={"type": "auto", "disable_parallel_tool_use": True},
            metadata={"user_id": "u"},
        )
        assert blocks_of(answer) == [("text", "Blue.")]
        prompt = server.prompt
        for part in (
            "Be brief.\n\n",
            '"description": "The weather"',
            "user\nHow is\n\nParis?<|im_end|>",
            "<think>\nLook up.\n</think>\n\nA moment.<tool_call>",
            '"arguments": {"city": "Paris"}}',
            "<tool_response>\nblue\n</tool_response>",
            "user\nAnd?<|im_end|>",
        ):
            assert part in prompt
        count = await server.anthropic.messages.count_tokens(
            model="scripted", system="Be brief.", messages=messages, tools=[TOOL]
        )
        assert count.input_tokens == answer.usage.input_tokens


async def test_the_assistant_goes_on_with_its_own_words() -> None:
    async with scripted(QWEN) as server:
        server.says(" blue.")
        answer = await ask(server, messages=[USER, {"role": "assistant", "content": "It is"}])
        assert blocks_of(answer) == [("text", " blue.")]
        assert server.prompt.endswith("assistant\nIt is")


async def test_arguments_that_are_no_object_are_kept_as_text() -> None:
    async with scripted(HERMES) as server:
        server.says('<tool_call>{"name": "get_weather", "arguments": {"city": ', "length")
        (block,) = (await ask(server, tools=[TOOL])).content
        assert block.input == {"malformed_arguments": '{"city": '}


async def test_a_call_can_be_forced() -> None:
    async with scripted(HERMES) as server:
        server.says(CALL)
        for choice in ({"type": "any"}, {"type": "tool", "name": "get_weather"}):
            answer = await ask(server, tools=[TOOL], tool_choice=choice)
            assert answer.stop_reason == "tool_use"
            grammar = server.engine.requests[-1].grammar
            assert grammar is not None
            assert "get_weather" in grammar.source
        await ask(server, tools=[TOOL], tool_choice={"type": "none"})
        assert server.engine.requests[-1].grammar is None


def image() -> dict[str, Any]:
    return {"type": "image", "source": {"type": "url", "url": "http://x/y.png"}}


def blocks(*content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(content)}]}


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "system", "content": "x"}]}, "role"),
    ({"max_tokens": None}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"temperature": 1.5}, "temperature"),
    (blocks(image()), "'image'"),
    (blocks({"type": "document", "source": {}}), "'document'"),
    (blocks({"type": "search_result"}), "'search_result'"),
    (blocks({"type": "text"}), "text"),
    (blocks({"type": "tool_result", "tool_use_id": "t9", "content": "x"}), "tool_call_id"),
    (blocks({"type": "tool_result", "tool_use_id": "t9", "content": [image()]}), "'image'"),
    (blocks({"type": "tool_result", "tool_use_id": "t9", "content": [5]}), "tool_result"),
    (blocks({"type": "tool_use", "id": "a", "name": "b", "input": {}}), "'tool_use'"),
    (
        {"messages": [USER, {"role": "assistant", "content": [{"type": "server_tool_use"}]}]},
        "'server_tool_use'",
    ),
    ({"system": [image()]}, "'image'"),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "'web_search_20250305'"),
    ({"tools": [{"name": "a b"}]}, "name"),
    ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "other"}}, "other"),
    ({"tools": [TOOL], "tool_choice": {"type": "most"}}, "'most'"),
    ({"tool_choice": {"type": "any"}}, "tool_choice"),
    ({"thinking": {"type": "deep"}}, "'deep'"),
    ({"stop_sequences": ["x"] * 17}, "stop"),
    ({"mcp_servers": [{"url": "http://x"}]}, "mcp_servers"),
    ({"container": "c"}, "container"),
    ({"messages": [USER, {"role": "assistant", "content": ""}]}, "messages"),
]


@pytest.mark.parametrize(("fields", "word"), REFUSED)
async def test_refusals(fields: dict[str, Any], word: str) -> None:
    async with scripted(QWEN) as server:
        body = {"model": "scripted", "max_tokens": 5, "messages": [USER]} | fields
        response = await server.http.post(MESSAGES, json=body)
        assert response.status_code == 400, response.text
        document = response.json()
        assert set(document) == {"type", "error"}
        assert set(document["error"]) == {"type", "message"}
        assert (document["type"], document["error"]["type"]) == ("error", "invalid_request_error")
        assert word in document["error"]["message"]
        assert server.engine.requests == []


async def test_errors_have_the_shape_of_this_api() -> None:
    async with scripted(QWEN) as server:
        with pytest.raises(anthropic.NotFoundError, match="does not exist"):
            await ask(server, model="other")
        assert (await server.http.get(MESSAGES)).json()["error"]["type"] == "invalid_request_error"
        response = await server.http.post(MESSAGES, content=b"{", headers={"x": "y"})
        assert response.json()["type"] == "error"
        long = await server.http.post(
            MESSAGES + "/count_tokens",
            json={"messages": [{"role": "user", "content": "x" * 9_000_000}]},
        )
        assert (long.status_code, long.json()["type"]) == (400, "error")


@pytest.fixture(scope="module")
def guarded() -> Any:
    with live_server(server={"api_key": "sesame"}) as live:
        yield live


def client(server: Live, key: str) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key=key, max_retries=0, timeout=20)


def test_the_client_over_the_wire_with_its_own_key_header(guarded: Live) -> None:
    fields: Any = {"model": MODEL_NAME, "max_tokens": 7, "messages": [USER]}
    fields["extra_body"] = {"temperature": 0}
    with client(guarded, "wrong") as wrong, pytest.raises(anthropic.AuthenticationError):
        wrong.messages.create(**fields)
    with client(guarded, "sesame") as right:
        whole = right.messages.create(**fields)
        with right.messages.stream(**fields) as stream:
            assert "".join(stream.text_stream) == whole.content[0].text
        assert whole.stop_reason == "max_tokens"
        assert whole.usage.cache_read_input_tokens == 3
        counted = right.messages.count_tokens(model=MODEL_NAME, messages=[USER])
        assert counted.input_tokens == whole.usage.input_tokens + 3
        broken = {**fields, "messages": [{"role": "user", "content": "BROKEN"}]}
        with pytest.raises(anthropic.InternalServerError, match="not finite"):
            right.messages.create(**broken)
        with (
            pytest.raises(anthropic.APIStatusError, match="not finite"),
            right.messages.stream(**broken) as stream,
        ):
            stream.get_final_message()
