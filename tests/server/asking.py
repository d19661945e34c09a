"""Requests of every kind, and their answers in a form that does not depend on how tokens fell into
events: what a disturbed server answers must equal what an undisturbed one does."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
from live import Live

TEXT = "/v1/completions"
PATIENCE = httpx.Timeout(60)


WORDS = {"type": "array", "minItems": 99, "items": {"enum": ["a long word", "a longer one"]}}


def shapes(max_tokens: int) -> list[tuple[str, dict[str, Any]]]:
    """Requests of every kind, all of them exact: greedy or with a seed."""
    common: dict[str, Any] = {"max_tokens": max_tokens, "ignore_eos": True}
    text = common | {"temperature": 0.8, "seed": 7}
    chat = common | {"messages": [{"role": "user", "content": "hello"}], "seed": 3}
    usage = {"stream": True, "stream_options": {"include_usage": True}}
    kinds: list[tuple[str, dict[str, Any]]] = [
        (TEXT, text | {"prompt": "a", "temperature": 0}),
        (TEXT, text | {"prompt": "b", "n": 2}),
        (TEXT, text | {"prompt": ["c", "d"], "logprobs": 2}),
        (TEXT, text | {"prompt": "e", "logprobs": 1, "echo": True}),
        (TEXT, text | {"prompt": "f UTF8"}),
        (TEXT, text | {"prompt": "g", "stop": ["zz", "e"]}),
        (TEXT, text | {"prompt": "h", "presence_penalty": 1, "repetition_penalty": 1.2}),
        (TEXT, text | {"prompt": "prompt " * 10, "prompt_logprobs": 1, "min_tokens": 100}),
        (TEXT, text | {"prompt": "i", "logprobs": 1, "guided_regex": "([a-z]{4} and so on; )+"}),
        ("/v1/chat/completions", chat),
        ("/v1/chat/completions", chat | {"guided_json": WORDS, "max_tokens": max_tokens}),
        ("/v1/chat/completions", chat | {"response_format": {"type": "json_object"}}),
        ("/v1/chat/completions", chat | {"logprobs": True, "top_logprobs": 1, "n": 2}),
    ]
    return [(path, body | extra) for path, body in kinds for extra in ({}, usage)]


async def ask(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> Any:
    """The answer, or all events of the stream, without what differs from answer to answer."""
    if not body.get("stream"):
        answer = (await client.post(path, json=body)).json()
        return {key: value for key, value in answer.items() if key not in ("id", "created")}
    events = []
    async with client.stream("POST", path, json=body) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                event = json.loads(line[6:])
                events.append({k: v for k, v in event.items() if k not in ("id", "created")})
            elif line:
                events.append(line)
    return joined(events)


def joined(events: list[Any]) -> Any:
    """A stream, however its tokens fell into events."""
    texts: dict[int, str] = {}
    logprobs: dict[int, list[Any]] = {}
    rest = []
    for event in events:
        if isinstance(event, str) or not event.get("choices"):
            rest.append(event)
            continue
        for choice in event["choices"]:
            index = choice["index"]
            text = choice.get("text") or choice.get("delta", {}).get("content") or ""
            texts[index] = texts.get(index, "") + text
            logprobs.setdefault(index, []).append(choice.get("logprobs"))
            if choice.get("finish_reason"):
                rest.append((index, choice["finish_reason"]))
    kept = {index: [one for one in logprobs[index] if one] for index in sorted(logprobs)}
    flattened = {index: flat(entries) for index, entries in kept.items()}
    return sorted(texts.items()), flattened, sorted(map(str, rest))


def flat(entries: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Logprobs of all events as those of one."""
    result: dict[str, list[Any]] = {}
    for entry in entries:
        for key, values in entry.items():
            if values is not None:
                result.setdefault(key, []).extend(values)
    return result


async def ask_all(server: Live, max_tokens: int, *others: Any) -> list[Any]:
    """All shapes at once, and beside them whatever else is to be awaited."""
    async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE, verify=False) as client:
        asking = [ask(client, path, body) for path, body in shapes(max_tokens)]
        return (await asyncio.gather(*asking, *others))[: len(asking)]
