"""Tools and reasoning of /v1/responses: the items, their events, and the next turn with them."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from scripted import MARKERS, MODEL, Scripted, scripted
from test_tool_calls import ARGUMENTS, WEATHER
from test_tool_templates import TOOL
from tool_templates import HERMES, QWEN

FUNCTION = {"type": "function", **TOOL["function"]}
CALL = f"<tool_call>\n{WEATHER}\n</tool_call>"
THOUGHT = "<think>\nIt asks.\n</think>\n\n"


async def ask(server: Scripted, **fields: Any) -> Any:
    fields = {"model": MODEL, "input": "Weather?", "tools": [FUNCTION]} | fields
    return await server.openai.responses.create(**fields)


def shape(items: list[Any]) -> list[tuple[str, ...]]:
    """Items without their ids."""
    found: list[tuple[str, ...]] = []
    for item in items:
        assert item.id
        if item.type == "message":
            found.append(("message", item.status, "".join(part.text for part in item.content)))
        elif item.type == "reasoning":
            found.append(("reasoning", item.status, item.content[0].text))
        else:
            assert item.call_id
            found.append((item.type, item.status, item.name, item.arguments))
    return found


CASES = {
    "call": (CALL, [("function_call", "completed", "get_weather", ARGUMENTS)]),
    "two calls behind a text": (
        f"Let me see.{CALL}{CALL}",
        [
            ("message", "completed", "Let me see."),
            ("function_call", "completed", "get_weather", ARGUMENTS),
            ("function_call", "completed", "get_weather", ARGUMENTS),
        ],
    ),
    "thought": (
        f"{THOUGHT}Sunny.",
        [("reasoning", "completed", "It asks."), ("message", "completed", "Sunny.")],
    ),
    "thought and call": (
        f"{THOUGHT}{CALL}",
        [
            ("reasoning", "completed", "It asks."),
            ("function_call", "completed", "get_weather", ARGUMENTS),
        ],
    ),
}


@pytest.mark.parametrize("name", CASES)
async def test_items_whole_and_streamed(name: str) -> None:
    script, expected = CASES[name]
    async with scripted(QWEN, MARKERS) as server:
        for seed in range(3):
            server.says(script, seed=seed)
            whole = await ask(server)
            assert shape(whole.output) == expected
            assert whole.status == "completed"
            assert (whole.usage.output_tokens_details.reasoning_tokens > 0) == ("thought" in name)
            events = [event async for event in await ask(server, stream=True)]
            final = events[-1].response
            assert events[-1].type == "response.completed"
            assert shape(final.output) == expected
            check_events(events, final.output)


def check_events(events: list[Any], items: list[Any]) -> None:
    """Each item is added, grows and is done, before the next one begins."""
    assert [event.sequence_number for event in events] == list(range(len(events)))
    indices = [event.output_index for event in events if hasattr(event, "output_index")]
    assert [index for index, _ in itertools.groupby(indices)] == list(range(len(items)))
    for index, item in enumerate(items):
        own = [event for event in events if getattr(event, "output_index", None) == index]
        kinds = [kind.removeprefix("response.") for kind in (event.type for event in own)]
        deltas = "".join(getattr(event, "delta", "") for event in own)
        assert (kinds[0], kinds[-1]) == ("output_item.added", "output_item.done")
        assert own[0].item.status == "in_progress"
        assert own[-1].item == item
        if item.type == "function_call":
            assert deltas == item.arguments == own[-2].arguments
            assert own[0].item.name == own[-2].name == item.name
            assert kinds[-2] == "function_call_arguments.done"
        else:
            assert deltas == item.content[0].text == own[-3].text
            assert kinds[1] == "content_part.added"
            stem = "reasoning_text" if item.type == "reasoning" else "output_text"
            assert kinds[-3:-1] == [f"{stem}.done", "content_part.done"]


async def test_the_stream_helper_puts_calls_together() -> None:
    async with scripted(HERMES, MARKERS) as server:
        server.says(f"Let me see.{CALL}")
        tools: Any = [FUNCTION]
        async with server.openai.responses.stream(
            model=MODEL, input="Weather?", tools=tools
        ) as stream:
            snapshots = [
                event.snapshot
                async for event in stream
                if event.type == "response.function_call_arguments.delta"
            ]
            final = await stream.get_final_response()
        assert snapshots[-1] == ARGUMENTS
        call: Any = final.output[1]
        assert (call.name, call.arguments) == ("get_weather", ARGUMENTS)


async def test_the_next_turn_takes_the_items_as_they_came() -> None:
    async with scripted(QWEN, MARKERS) as server:
        server.says(f"{THOUGHT}{CALL}")
        first = await ask(server)
        history: list[Any] = [{"role": "user", "content": "Weather?"}]
        history += [item.model_dump(exclude_unset=True) for item in first.output]
        call_id = first.output[1].call_id
        history.append({"type": "function_call_output", "call_id": call_id, "output": "rain"})
        server.says("Rain.")
        assert (await ask(server, input=history)).output_text == "Rain."
        prompt = server.prompt
        body = {
            "model": MODEL,
            "tools": [TOOL],
            "messages": [
                history[0],
                {
                    "role": "assistant",
                    "content": None,
                    "reasoning_content": "It asks.",
                    "tool_calls": [
                        {
                            "id": call_id,
                            "type": "function",
                            "function": {"name": "get_weather", "arguments": ARGUMENTS},
                        }
                    ],
                },
                {"role": "tool", "tool_call_id": call_id, "content": "rain"},
            ],
        }
        assert (await server.http.post("/v1/chat/completions", json=body)).status_code == 200
        assert server.prompt == prompt
        assert "rain" in prompt
        assert "It asks." in prompt


async def test_a_call_that_is_cut_is_incomplete() -> None:
    async with scripted(HERMES, MARKERS) as server:
        server.says(f"{THOUGHT[:12]}", reason="length")
        answer = await ask(server)
        assert (answer.status, answer.output[-1].status) == ("incomplete", "incomplete")


async def test_tools_that_cannot_be_are_named() -> None:
    async with scripted(HERMES) as server:
        for fields, param in (
            ({"tools": [{"type": "function"}]}, "tools"),
            ({"tools": [{"type": "function", "name": "a b"}]}, "tools"),
            ({"tools": [], "tool_choice": "required"}, "tool_choice"),
            ({"tool_choice": {"type": "function", "name": "no_such"}}, "tool_choice"),
            ({"input": [{"type": "function_call_output", "call_id": "x"}]}, "input"),
        ):
            body = {"input": "x", "tools": [FUNCTION]} | fields
            response = await server.http.post("/v1/responses", json=body)
            assert response.status_code == 400, response.text
            assert response.json()["error"]["param"] == param
