"""Kill the engine again and again under streams, and see whether anybody noticed.

    python benchmarks/kill_engine.py [MODEL] [--streams 64] [--tokens 200] [--kills 10] [--seed 0]

Every stream runs once undisturbed, then once more with all the others while the engine process is
killed (SIGKILL) at random moments: whenever so many tokens, drawn at random, have arrived in all.
Exit status 1 unless each of them finishes with the very answer that it had undisturbed: texts,
logprobs, reasoning, calls, finish_reason and usage.

Without MODEL it is the built-in one with a chat template that takes tools (tool_model.py), and the
streams are, in turn: completions, greedy and at temperature 0.8 with a seed of their own; calls of
tools that a grammar forces; reasoning, and forced calls behind it; messages in Anthropic's form,
with thinking and with forced calls. With a MODEL they are completions.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from serving import Server, serving
from tool_model import END_THINKING, write_tool_model

WORDS = ["def", "class", "import", "return", "the", "of", "list", "string", "file", "value"]
PARAMETERS = {
    "type": "object",
    "properties": {
        "color": {"enum": ["red", "blue"]},
        "a_name_that_leaves_no_choice_for_a_while": {"type": "boolean"},
        "words": {"type": "array", "items": {"type": "string", "maxLength": 40}, "maxItems": 20},
    },
    "required": ["color", "a_name_that_leaves_no_choice_for_a_while", "words"],
    "additionalProperties": False,
}


@dataclass
class Answer:
    parts: list[list[Any]] = field(default_factory=list)  # what it is, and its text
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str | None = None
    usage: int | None = None  # tokens of the completion
    error: Any = None
    num_tokens: int = 0  # that were seen to arrive
    longest_pause: float = 0.0

    def add(self, what: Any, text: str) -> None:
        if not self.parts or self.parts[-1][0] != what:
            self.parts.append([what, ""])
        self.parts[-1][1] += text


@dataclass(frozen=True)
class Stream:
    shape: str
    path: str
    body: dict[str, Any]
    read: Callable[[Answer, dict[str, Any]], int]  # an event, into the answer: its tokens, or 1


# -- what is asked, and how its events are read


def read_completion(answer: Answer, event: dict[str, Any]) -> int:
    answer.usage = (event.get("usage") or {}).get("completion_tokens", answer.usage)
    new: list[float] = []
    for choice in event["choices"]:
        answer.add("text", choice["text"])
        new += choice["logprobs"]["token_logprobs"] if choice.get("logprobs") else []
        answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
    answer.logprobs += new
    return len(new)


def read_chat(answer: Answer, event: dict[str, Any]) -> int:
    answer.usage = (event.get("usage") or {}).get("completion_tokens", answer.usage)
    new: list[float] = []
    for choice in event["choices"]:
        delta = choice["delta"]
        if delta.get("reasoning_content"):
            answer.add("reasoning", delta["reasoning_content"])
        if delta.get("content"):
            answer.add("content", delta["content"])
        for call in delta.get("tool_calls") or []:
            function = call["function"]
            if function.get("name"):
                answer.parts.append([f"call {call['index']}", function["name"] + " "])
            answer.add(f"call {call['index']}", function.get("arguments") or "")
        content = (choice.get("logprobs") or {}).get("content") or []
        new += [entry["logprob"] for entry in content]  # calls and reasoning have none
        answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
    answer.logprobs += new
    return len(event["choices"])


def read_message(answer: Answer, event: dict[str, Any]) -> int:
    if event["type"] == "content_block_start":
        block = event["content_block"]
        answer.parts.append([(event["index"], block["type"], block.get("name")), ""])
    elif event["type"] == "content_block_delta":
        delta = event["delta"]
        answer.parts[-1][1] += delta.get("text") or delta.get("thinking") or ""
        answer.parts[-1][1] += delta.get("partial_json") or ""
        return 1
    elif event["type"] == "message_delta":
        answer.finish_reason = event["delta"]["stop_reason"]
        answer.usage = event["usage"]["output_tokens"]
    return 0


def completion(index: int, tokens: int, draw: random.Random) -> Stream:
    prompt = " ".join(draw.choices(WORDS, k=draw.randrange(3, 60)))
    fields: dict[str, Any] = {"prompt": prompt, "max_tokens": tokens, "ignore_eos": True}
    fields |= {"temperature": 0} if index % 2 else {"temperature": 0.8, "seed": index}
    fields |= {"logprobs": 0, "stream_options": {"include_usage": True}}
    return Stream("completion", "/v1/completions", fields, read_completion)


def chat(index: int, tokens: int, draw: random.Random) -> dict[str, Any]:
    tools = [{"type": "function", "function": {"name": "paint", "parameters": PARAMETERS}}]
    return {
        "messages": [{"role": "user", "content": " ".join(draw.choices(WORDS, k=20))}],
        "max_tokens": tokens,
        "temperature": 0.8,
        "seed": index,
        "tools": tools,
        "logprobs": True,
        "stream_options": {"include_usage": True},
    }


def forced_calls(index: int, tokens: int, draw: random.Random) -> Stream:
    fields = chat(index, tokens, draw) | {"tool_choice": "required"}
    return Stream("forced calls", "/v1/chat/completions", fields, read_chat)


def reasoning(index: int, tokens: int, draw: random.Random) -> Stream:
    """With forced calls behind it, every other time."""
    fields = chat(index, tokens, draw) | {"chat_template_kwargs": {"enable_thinking": True}}
    if draw.random() < 0.5:
        return Stream("reasoning", "/v1/chat/completions", fields | {"ignore_eos": True}, read_chat)
    fields |= {"tool_choice": "required", "logit_bias": {str(END_THINKING): 11}}
    return Stream("reasoning, then calls", "/v1/chat/completions", fields, read_chat)


def message(index: int, tokens: int, draw: random.Random) -> Stream:
    """Greedy: there are no seeds."""
    fields: dict[str, Any] = {
        "messages": [{"role": "user", "content": " ".join(draw.choices(WORDS, k=20))}],
        "max_tokens": tokens,
        "temperature": 0,
    }
    if draw.random() < 0.5:
        fields["thinking"] = {"type": "enabled", "budget_tokens": 1024}
        return Stream("message, thinking", "/v1/messages", fields, read_message)
    fields["tools"] = [{"name": "paint", "input_schema": PARAMETERS}]
    fields["tool_choice"] = {"type": "any"}
    return Stream("message, calls", "/v1/messages", fields, read_message)


SHAPES = (completion, completion, forced_calls, reasoning, message)


# -- asking, and killing


class Killer:
    """Kills the engine whenever the number of tokens passes one of `moments`."""

    def __init__(self, server: Server, moments: Sequence[int]) -> None:
        self._server = server
        self._moments = sorted(moments)
        self._num_tokens = 0
        self.num_kills = 0

    def token(self) -> None:
        self._num_tokens += 1
        if self._moments and self._num_tokens >= self._moments[0]:
            pid = self._server.engine_pid
            with suppress(ProcessLookupError):
                if pid is not None:
                    os.kill(pid, signal.SIGKILL)
                    self.num_kills += 1
                    self._moments.pop(0)


async def ask(client: httpx.AsyncClient, stream: Stream, killer: Killer | None) -> Answer:
    answer = Answer()
    last = None
    body = stream.body | {"stream": True}
    async with client.stream("POST", stream.path, json=body) as response:
        if response.status_code != 200:
            answer.error = (await response.aread()).decode()[:300]
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line[6:])
            if event.get("error"):
                answer.error = event
                break
            now = time.monotonic()
            answer.longest_pause = max(answer.longest_pause, now - last if last else 0.0)
            last = now
            num_tokens = stream.read(answer, event)
            answer.num_tokens += num_tokens
            for _ in range(num_tokens):
                if killer is not None:
                    killer.token()
    return answer


async def ask_all(
    server: Server, streams: Sequence[Stream], killer: Killer | None = None
) -> list[Answer]:
    async with server.client() as client:
        return await asyncio.gather(*[ask(client, one, killer) for one in streams])


def same(first: Answer, second: Answer) -> bool:
    return (
        second.error is None
        and second.finish_reason is not None
        and second.usage is not None
        and (first.parts, first.logprobs, first.finish_reason, first.usage)
        == (second.parts, second.logprobs, second.finish_reason, second.usage)
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    shapes = SHAPES if arguments.model is None else (completion,)
    streams = [shapes[i % len(shapes)](i, arguments.tokens, draw) for i in range(arguments.streams)]
    with tempfile.TemporaryDirectory() as directory:
        model = arguments.model or str(write_tool_model(Path(directory) / "tools"))
        with serving(model) as server:
            began = time.monotonic()
            undisturbed = asyncio.run(ask_all(server, streams))
            seconds = time.monotonic() - began
            total = sum(one.num_tokens for one in undisturbed)
            moments = [draw.randrange(1, total) for _ in range(arguments.kills)]
            killer = Killer(server, moments)
            began = time.monotonic()
            disturbed = asyncio.run(ask_all(server, streams, killer))
            killed_seconds = time.monotonic() - began
    pairs = zip(streams, undisturbed, disturbed, strict=True)
    equal = Counter(stream.shape for stream, one, other in pairs if same(one, other))
    asked = Counter(stream.shape for stream in streams)
    document = {
        "streams": arguments.streams,
        "finished": sum(one.finish_reason is not None for one in disturbed),
        "equal": equal.total(),
        "equal_by_shape": {name: f"{equal[name]} of {asked[name]}" for name in asked},
        "tokens_seen": total,
        "kills": killer.num_kills,
        "seconds_undisturbed": round(seconds, 2),
        "seconds_disturbed": round(killed_seconds, 2),
        "longest_pause_seconds": round(max(one.longest_pause for one in disturbed), 2),
        "errors": [one.error for one in [*undisturbed, *disturbed] if one.error][:3],
    }
    print(json.dumps(document, indent=2))
    is_equal = document["equal"] == arguments.streams
    return 0 if is_equal and killer.num_kills == arguments.kills else 1


if __name__ == "__main__":
    sys.exit(main())
