"""The kinds of requests of soak.py that call tools, reason, or speak Anthropic's form; they need a
model whose chat template takes tools (tool_model.py)."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import httpx
import jsonschema

from soak_kinds import CHAT, TEXT, WrongAnswerError, expect, kind, refused, schema, words
from tool_model import END_THINKING

MESSAGES = "/v1/messages"
COUNT = "/v1/messages/count_tokens"
RESPONSES = "/v1/responses"
PAINT = {
    "type": "object",
    "properties": {"color": {"enum": ["red", "blue"]}, "deep": {"type": "boolean"}},
    "required": ["color", "deep"],
    "additionalProperties": False,
}
NOW: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
PATTERN = "(yes|no)( and (yes|no)){0,3}"
CALL = '<tool_call>\n{"name": "'
Calls = list[tuple[str, str]]  # name, arguments


def functions(draw: random.Random) -> dict[str, dict[str, Any]]:
    """Tools by name; the schema of one is new, mostly."""
    fresh = {"type": "object", "properties": {"x": schema(draw, 1)}, "additionalProperties": False}
    return {"paint": PAINT, "now": NOW, "fresh": fresh}


def check_calls(calls: Calls, tools: dict[str, Any], is_whole: bool) -> None:
    """Of a forced answer; if it is not whole, the last call may be cut."""
    for place, (name, arguments) in enumerate(calls):
        expect(name in tools, f"a call of {name!r}")
        if is_whole or place < len(calls) - 1:
            try:
                jsonschema.validate(json.loads(arguments), tools[name])
            except (ValueError, jsonschema.ValidationError) as error:
                raise WrongAnswerError(f"{name}: {tools[name]}: {arguments!r}: {error}") from None


def thinking(draw: random.Random) -> dict[str, Any]:
    """Reasoning that ends sooner or later, as fields of a chat."""
    return {
        "chat_template_kwargs": {"enable_thinking": True},
        "logit_bias": {str(END_THINKING): draw.choice([8, 11, 14])},
    }


async def events_of(
    client: httpx.AsyncClient, path: str, body: dict[str, Any]
) -> list[dict[str, Any]] | None:
    """The documents of a stream; None if it was refused, well."""
    lines: list[str] = []
    async with client.stream("POST", path, json=body | {"stream": True}) as response:
        if response.status_code != 200:
            await response.aread()
            if is_refused(response):
                return None
            raise WrongAnswerError(f"{response.status_code}: {response.text[:300]}")
        lines = [line async for line in response.aiter_lines() if line.startswith("data: {")]
    found = [json.loads(line.removeprefix("data: ")) for line in lines]
    for event in found:
        expect("error" not in event or event["error"] is None, f"error in a stream: {event}")
    return found


def is_refused(response: httpx.Response) -> bool:
    """Whether it is a good 429, in the form of its route."""
    if response.status_code != 429 or not response.url.path.startswith(MESSAGES):
        return refused(response)
    expect(1 <= int(response.headers.get("retry-after", 0)) <= 60, "429 without Retry-After")
    expect(response.json()["error"]["type"] == "rate_limit_error", f"429: {response.text[:200]}")
    return True


async def answer_of(
    client: httpx.AsyncClient, path: str, body: dict[str, Any]
) -> dict[str, Any] | None:
    """The document of a whole answer; None if it was refused, well."""
    response = await client.post(path, json=body)
    if is_refused(response):
        return None
    expect(response.status_code == 200, f"{response.status_code}: {response.text[:300]}")
    document: dict[str, Any] = response.json()
    return document


# -- chat


async def chat(
    client: httpx.AsyncClient, body: dict[str, Any], streamed: bool
) -> tuple[str, str | None, Calls, str] | None:
    """Reasoning, content, calls and the finish_reason of one choice."""
    if not streamed:
        answer = await answer_of(client, CHAT, body)
        if answer is None:
            return None
        (choice,) = answer["choices"]
        message = choice["message"]
        calls = [one["function"] for one in message.get("tool_calls") or []]
        pairs = [(one["name"], one["arguments"]) for one in calls]
        reasoning = message.get("reasoning_content") or ""
        return reasoning, message["content"], pairs, choice["finish_reason"]
    events = await events_of(client, CHAT, body)
    if events is None:
        return None
    reasoning, content, finish_reason = "", "", ""
    parts: list[list[str]] = []
    for event in events:
        for choice in event["choices"]:
            expect(not finish_reason, "a choice went on behind its end")
            delta = choice["delta"]
            if delta.get("reasoning_content"):
                expect(not content and not parts, "reasoning behind the answer")
                reasoning += delta["reasoning_content"]
            content += delta.get("content") or ""
            for call in delta.get("tool_calls") or []:
                if call["index"] == len(parts):
                    parts.append([call["function"]["name"], ""])
                parts[call["index"]][1] += call["function"].get("arguments") or ""
            finish_reason = choice.get("finish_reason") or ""
    return reasoning, content or None, [(name, text) for name, text in parts], finish_reason


@kind(4, needs_tools=True)
async def call_tools(client: httpx.AsyncClient, draw: random.Random) -> str:
    tools = functions(draw)
    name = draw.choice(list(tools))
    choices: list[Any] = ["auto", "none", "required"]
    choice = draw.choice([*choices, {"type": "function", "function": {"name": name}}])
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": words(draw, 30)}],
        "tools": [
            {"type": "function", "function": {"name": one, "parameters": parameters}}
            for one, parameters in tools.items()
        ],
        "tool_choice": choice,
        "parallel_tool_calls": draw.random() < 0.5,
        "max_tokens": draw.choice([20, 120]),
        "temperature": draw.choice([0, 0.8]),
    }
    thinks = draw.random() < 0.3
    body |= thinking(draw) if thinks else {}
    found = await chat(client, body, draw.random() < 0.5)
    if found is None:
        return "429"
    reasoning, content, calls, reason = found
    known = ("stop", "length", "tool_calls")
    expect(reason in known, f"finish_reason {reason}")
    expect(thinks or not reasoning, f"reasoning that nobody asked for: {reasoning!r}")
    if choice == "none":
        expect(not calls, "calls, though there were to be none")
    elif choice != "auto":
        is_whole = reason != "length"
        check_calls(calls, {name: tools[name]} if isinstance(choice, dict) else tools, is_whole)
        # A call that is cut before its name is there is text.
        is_cut_call = not is_whole and (content or "").startswith(CALL[: len(content or "")])
        expect(not content or is_cut_call, f"content beside forced calls: {content!r}")
        expect(bool(calls) or not is_whole or thinks, "no call")
        expect(body["parallel_tool_calls"] or len(calls) <= 1, f"{len(calls)} calls")
    return "200"


@kind(2, needs_tools=True)
async def reason(client: httpx.AsyncClient, draw: random.Random) -> str:
    """And, half of the time, say behind it what a pattern allows."""
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": words(draw, 30)}],
        "max_tokens": draw.choice([10, 80]),
        "temperature": draw.choice([0, 0.8]),
        **thinking(draw),
    }
    held = draw.random() < 0.5
    body |= {"guided_regex": PATTERN} if held else {}
    found = await chat(client, body, draw.random() < 0.5)
    if found is None:
        return "429"
    _, content, calls, finish_reason = found
    expect(not calls and finish_reason in ("stop", "length"), f"{calls} {finish_reason}")
    if held and content and finish_reason == "stop":
        expect(re.fullmatch(PATTERN, content) is not None, f"{PATTERN}: {content!r}")
    return "200"


# -- /v1/messages


def message_body(draw: random.Random) -> dict[str, Any]:
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": words(draw, 40)}],
        "max_tokens": draw.choice([5, 60]),
        "temperature": draw.choice([0, 0.8]),
    }
    if draw.random() < 0.3:
        body["system"] = words(draw, 20)
    if draw.random() < 0.3:
        body["thinking"] = {"type": "enabled", "budget_tokens": 1024}
    if draw.random() < 0.3:
        body["stop_sequences"] = ["return", "é"]
    if draw.random() < 0.3:
        call = {"type": "tool_use", "id": "toolu_1", "name": "now", "input": {}}
        result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": words(draw, 5)}
        body["messages"] += [
            {"role": "assistant", "content": [{"type": "text", "text": "Let me see."}, call]},
            {"role": "user", "content": [result]},
        ]
        body["tools"] = [{"name": "now", "input_schema": NOW}]
    return body


def check_blocks(blocks: list[dict[str, Any]], tools: dict[str, Any], is_whole: bool) -> Calls:
    calls = [(one["name"], one["input"]) for one in blocks if one["type"] == "tool_use"]
    for one in blocks:
        expect(one["type"] in ("text", "thinking", "tool_use"), f"block {one}")
    if is_whole:
        check_calls([(name, json.dumps(value)) for name, value in calls], tools, True)
    return [(name, json.dumps(value)) for name, value in calls]


def put_together(events: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    """The blocks of a streamed message and its stop_reason; one block is open at a time."""
    kinds = [event["type"] for event in events]
    expect(kinds[:1] + kinds[-2:] == ["message_start", "message_delta", "message_stop"], f"{kinds}")
    blocks: list[dict[str, Any]] = []
    is_open, text = False, ""
    for event in events:
        if event["type"] == "content_block_start":
            expect(not is_open and event["index"] == len(blocks), "blocks overlap")
            blocks.append(dict(event["content_block"]))
            is_open, text = True, ""
        elif event["type"] == "content_block_delta":
            expect(is_open and event["index"] == len(blocks) - 1, "a delta of no open block")
            delta = event["delta"]
            text += delta.get("partial_json") or delta.get("text") or delta.get("thinking") or ""
        elif event["type"] == "content_block_stop":
            is_open = False
            if blocks[-1]["type"] == "tool_use":
                blocks[-1]["text"] = text
    expect(not is_open, "a block was not closed")
    for block in blocks:
        if block["type"] == "tool_use":
            try:
                block["input"] = json.loads(block.pop("text"))
            except ValueError:
                block["input"] = None  # cut
    return blocks, events[-2]["delta"]["stop_reason"]


@kind(3, needs_tools=True)
async def message(client: httpx.AsyncClient, draw: random.Random) -> str:
    body = message_body(draw)
    tools: dict[str, Any] = {}
    choice = draw.choice([None, "auto", "any", "tool"])
    if choice is not None:
        tools = functions(draw)
        body["tools"] = [{"name": one, "input_schema": tools[one]} for one in tools]
        body["tool_choice"] = {"type": choice} | ({"name": "paint"} if choice == "tool" else {})
        body["max_tokens"] = 120
    stop_reason: str
    if draw.random() < 0.5:
        events = await events_of(client, MESSAGES, body)
        if events is None:
            return "429"
        blocks, stop_reason = put_together(events)
    else:
        answer = await answer_of(client, MESSAGES, body)
        if answer is None:
            return "429"
        blocks, stop_reason = answer["content"], answer["stop_reason"]
        expect(answer["usage"]["output_tokens"] <= body["max_tokens"], "too many tokens")
    known = ("end_turn", "max_tokens", "stop_sequence", "tool_use")
    expect(stop_reason in known, f"stop_reason {stop_reason}")
    shows = body.get("thinking") is not None
    expect(shows or all(one["type"] != "thinking" for one in blocks), "thinking, not asked for")
    is_forced = choice in ("any", "tool") and stop_reason == "tool_use"
    calls = check_blocks(blocks, tools, is_forced)
    expect(bool(calls) == (stop_reason == "tool_use") or stop_reason != "tool_use", "no call")
    return "200"


@kind(1, needs_tools=True)
async def count_tokens(client: httpx.AsyncClient, draw: random.Random) -> str:
    """As many as the message itself then says that it read."""
    body = message_body(draw)
    fields = ("messages", "system", "thinking", "tools")
    response = await client.post(COUNT, json={k: body[k] for k in fields if k in body})
    expect(response.status_code == 200, f"{response.status_code}: {response.text[:200]}")
    answer = await answer_of(client, MESSAGES, body | {"max_tokens": 1})
    if answer is None:
        return "429"
    usage = answer["usage"]
    read = usage["input_tokens"] + usage["cache_read_input_tokens"]
    count = response.json()["input_tokens"]
    expect(count == read, f"counted {count}, read {read}")
    return "200"


USER = {"role": "user", "content": "x"}
IMAGE = {"role": "user", "content": [{"type": "image"}]}
WRONG_MESSAGES: list[tuple[str, Any, int]] = [
    (MESSAGES, {"messages": [USER]}, 400),  # max_tokens is required
    (MESSAGES, {"messages": [], "max_tokens": 5}, 400),
    (MESSAGES, {"messages": [{"role": "system", "content": "x"}], "max_tokens": 5}, 400),
    (MESSAGES, {"messages": [USER], "max_tokens": 0}, 400),
    (MESSAGES, {"messages": [USER], "max_tokens": 10**9}, 400),
    (MESSAGES, {"messages": [USER], "max_tokens": 5, "temperature": 1.5}, 400),
    (MESSAGES, {"messages": [USER], "max_tokens": 5, "stop_sequences": [""]}, 400),
    (MESSAGES, {"messages": [USER], "max_tokens": 5, "thinking": {"type": "loud"}}, 400),
    (MESSAGES, {"messages": [USER], "max_tokens": 5, "tools": [{"name": "a b"}]}, 400),
    (MESSAGES, {"messages": [USER], "max_tokens": 5, "tool_choice": {"type": "any"}}, 400),
    (MESSAGES, {"messages": [USER], "max_tokens": 5, "model": "another"}, 404),
    (MESSAGES, {"messages": [IMAGE], "max_tokens": 5}, 400),
    (MESSAGES, [], 400),
    (COUNT, {}, 400),
    (COUNT, {"messages": [{"role": "user", "content": [{}]}]}, 400),
    (COUNT, {"messages": [{"role": "user", "content": "x" * 1_000_000}]}, 400),
    (RESPONSES, {"input": []}, 400),
    (RESPONSES, {"input": "x", "tools": [{"type": "web_search"}]}, 400),
    (RESPONSES, {"input": "x", "tool_choice": "required"}, 400),
    (CHAT, {"messages": [USER], "tool_choice": "required"}, 400),
    (CHAT, {"messages": [USER], "tools": [{"type": "function"}]}, 400),
    (TEXT, {"prompt": "x", "guided_regex": "((a{1000}){1000}){1000}"}, 400),
]  # fmt: skip


@kind(2, needs_tools=True)
async def wrong_message(client: httpx.AsyncClient, draw: random.Random) -> str:
    path, body, status = draw.choice(WRONG_MESSAGES)
    response = await client.post(path, json=body)
    if response.status_code == 429 and is_refused(response):
        return "429"
    given = f"{path} {str(body)[:120]}: {response.status_code} {response.text[:200]}"
    expect(response.status_code == status, given)
    error = response.json()["error"]
    expect(bool(error["message"]), "no message")
    if path.startswith(MESSAGES):
        types = {400: "invalid_request_error", 404: "not_found_error"}
        expect(error["type"] == types[status], f"{path}: {error}")
    return str(status)


# -- /v1/responses


@kind(2, needs_tools=True)
async def respond_with_tools(client: httpx.AsyncClient, draw: random.Random) -> str:
    tools = functions(draw)
    choice = draw.choice(["auto", "required", {"type": "function", "name": "paint"}])
    body: dict[str, Any] = {
        "input": words(draw, 30),
        "max_output_tokens": 120,
        "tools": [
            {"type": "function", "name": one, "parameters": parameters}
            for one, parameters in tools.items()
        ],
        "tool_choice": choice,
        "parallel_tool_calls": draw.random() < 0.5,
    }
    if draw.random() < 0.5:
        events = await events_of(client, RESPONSES, body)
        if events is None:
            return "429"
        numbers = [event["sequence_number"] for event in events]
        expect(numbers == list(range(len(events))), f"sequence numbers {numbers}")
        answer = events[-1]["response"]
        kind_of_end = events[-1]["type"]
        expect(kind_of_end == f"response.{answer['status']}", f"{kind_of_end} {answer['status']}")
    else:
        found = await answer_of(client, RESPONSES, body)
        if found is None:
            return "429"
        answer = found
    expect(answer["status"] in ("completed", "incomplete"), f"status {answer['status']}")
    calls = [
        (item["name"], item["arguments"])
        for item in answer["output"]
        if item["type"] == "function_call"
    ]
    if choice != "auto":
        allowed = tools if choice == "required" else {"paint": PAINT}
        check_calls(calls, allowed, answer["status"] == "completed")
        expect(bool(calls) or answer["status"] == "incomplete", "no call")
    return "200"
