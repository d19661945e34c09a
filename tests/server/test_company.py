"""32 clients at once, on every route, streamed and not: each gets what it gets alone."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
from live import Live

TEXT, CHAT, RESPONSES = "/v1/completions", "/v1/chat/completions", "/v1/responses"
NUM_CLIENTS = 32


def request_of(i: int) -> tuple[str, dict[str, Any]]:
    """Another one for each client: route, length, sampling, logprobs."""
    text = f"client {i} " * (1 + i % 5)
    sampling = {"seed": i, "temperature": (0, 0.7, 1.3)[i % 3], "stream": i % 2 == 1}
    if i % 4 == 3:
        sampling |= {"presence_penalty": 0.5, "top_k": 9, "bad_words": ["aa"]}
    if i % 5 == 4:
        sampling |= {"allowed_token_ids": list(b"abcdef ")}
    if i % 8 == 7:
        fields = {"input": text, "max_output_tokens": 12, "top_logprobs": 2}
        return RESPONSES, sampling | fields
    if i % 8 < 4:
        fields = {"prompt": text, "max_tokens": 12 + i % 7, "logprobs": i % 3, "n": 1 + i % 2}
        return TEXT, sampling | fields
    messages = [{"role": "user", "content": text}]
    fields = {"messages": messages, "max_tokens": 10 + i % 9, "logprobs": True, "top_logprobs": 2}
    return CHAT, sampling | fields


VARIES = ("id", "created", "created_at", "item_id", "usage")  # usage: what was in the prefix cache


def bare(node: Any) -> Any:
    """Without what is another in every answer."""
    if isinstance(node, dict):
        return {name: bare(value) for name, value in node.items() if name not in VARIES}
    return [bare(one) for one in node] if isinstance(node, list) else node


def merged(text: str) -> Any:
    """What a stream says in all, however its tokens fell into events."""
    choices: dict[Any, list[Any]] = {}
    for line in text.splitlines():
        if not line.startswith("data: {"):
            continue
        event = json.loads(line.removeprefix("data: "))
        if event.get("type") in ("response.completed", "response.incomplete"):
            return bare(event["response"])
        for choice in event.get("choices", ()):
            said = choices.setdefault(choice["index"], ["", [], None])
            said[0] += choice.get("text") or choice.get("delta", {}).get("content") or ""
            logprobs = choice["logprobs"] or {}
            said[1] += logprobs.get("token_logprobs") or logprobs.get("content") or []
            said[2] = choice["finish_reason"] or said[2]
    return choices


async def answer(client: httpx.AsyncClient, i: int) -> Any:
    path, body = request_of(i)
    response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    return merged(response.text) if body["stream"] else bare(response.json())


def test_32_clients_at_once_get_what_each_gets_alone(real: Live) -> None:
    async def ask() -> tuple[list[Any], list[Any]]:
        async with httpx.AsyncClient(base_url=real.url, timeout=60) as client:
            together = await asyncio.gather(*(answer(client, i) for i in range(NUM_CLIENTS)))
            alone = [await answer(client, i) for i in range(NUM_CLIENTS)]
        return list(together), alone

    together, alone = asyncio.run(ask())
    assert together == alone
    assert len({json.dumps(one) for one in alone}) == NUM_CLIENTS
    assert {request_of(i)[0] for i in range(NUM_CLIENTS)} == {TEXT, CHAT, RESPONSES}
