"""The kinds of requests of soak.py. A kind sends one request, checks its answer to the last field
and returns how it went: the status, or `left`. It raises WrongAnswerError for what was not earned.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import httpx
import jsonschema

TEXT = "/v1/completions"
CHAT = "/v1/chat/completions"
WORDS = ["def", "class", "import", "return", "the", "of", "list", "string", "file", "value", "é🙂"]


class WrongAnswerError(Exception):
    """What no server should answer."""


@dataclass(frozen=True)
class Kind:
    run: Callable[[httpx.AsyncClient, random.Random], Awaitable[str]]
    weight: float
    needs_tools: bool = False  # of the model's chat template


KINDS: dict[str, Kind] = {}


def kind(
    weight: float, needs_tools: bool = False
) -> Callable[[Callable[[httpx.AsyncClient, random.Random], Awaitable[str]]], None]:
    def register(run: Callable[[httpx.AsyncClient, random.Random], Awaitable[str]]) -> None:
        KINDS[run.__name__] = Kind(run, weight, needs_tools)

    return register


# -- requests


def words(draw: random.Random, most: int) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randrange(1, most)))


def sampling(draw: random.Random) -> dict[str, Any]:
    fields: dict[str, Any] = {"max_tokens": draw.choice([1, 5, 20, 60, 150])}
    choices: dict[str, list[Any]] = {
        "temperature": [0, 0.7, 1.5],
        "top_p": [0.5, 1],
        "top_k": [1, 40],
        "min_p": [0.1],
        "seed": [1, 2**63],
        "stop": ["\n", ["return", "é"]],
        "presence_penalty": [-1, 1],
        "repetition_penalty": [1.2],
        "logit_bias": [{"5": 100}, {"7": -100}],
        "ignore_eos": [True],
        "min_tokens": [1],
        "priority": [-1, 3],
        "cache_salt": ["a", "b"],
    }
    for name in draw.sample(list(choices), draw.randrange(4)):
        fields[name] = draw.choice(choices[name])
    return fields


def text_body(draw: random.Random) -> dict[str, Any]:
    return {"prompt": words(draw, draw.choice([5, 50, 200])), **sampling(draw)}


def chat_body(draw: random.Random) -> dict[str, Any]:
    messages = [{"role": "user", "content": words(draw, 40)}]
    if draw.random() < 0.3:
        messages.insert(0, {"role": "system", "content": words(draw, 20)})
    return {"messages": messages, **sampling(draw)}


def any_body(draw: random.Random) -> tuple[str, dict[str, Any]]:
    return (TEXT, text_body(draw)) if draw.random() < 0.5 else (CHAT, chat_body(draw))


# -- answers


def expect(condition: bool, what: str) -> None:
    if not condition:
        raise WrongAnswerError(what)


def refused(response: httpx.Response) -> bool:
    """Whether it is a 429, and a good one."""
    if response.status_code != 429:
        return False
    expect(1 <= int(response.headers.get("retry-after", 0)) <= 60, "429 without Retry-After")
    expect(response.json()["error"]["code"] == "queue_full", f"429: {response.text[:200]}")
    return True


def check_whole(response: httpx.Response, num_choices: int, max_tokens: int) -> None:
    expect(response.status_code == 200, f"{response.status_code}: {response.text[:300]}")
    answer = response.json()
    expect([one["index"] for one in answer["choices"]] == list(range(num_choices)), "choices")
    for one in answer["choices"]:
        expect(one["finish_reason"] in ("stop", "length"), f"finish_reason {one['finish_reason']}")
        expect(isinstance(one.get("text", one.get("message", {}).get("content")), str), "no text")
    usage = answer["usage"]
    expect(usage["completion_tokens"] <= max_tokens * num_choices, f"too many tokens: {usage}")
    total = usage["prompt_tokens"] + usage["completion_tokens"]
    expect(usage["total_tokens"] == total, f"usage {usage}")


async def send(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> str:
    """A whole answer."""
    num_choices = body.get("n", 1)
    if isinstance(body.get("prompt"), list) and isinstance(body["prompt"][0], str):
        num_choices *= len(body["prompt"])
    response = await client.post(path, json=body)
    if refused(response):
        return "429"
    check_whole(response, num_choices, body["max_tokens"])
    return "200"


async def stream(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], pause: float = 0.0
) -> str:
    """A streamed answer; `pause` seconds before each event is read."""
    body = body | {"stream": True, "stream_options": {"include_usage": True}}
    lines: list[str] = []
    async with client.stream("POST", path, json=body) as response:
        if response.status_code != 200:
            await response.aread()
            if refused(response):
                return "429"
            raise WrongAnswerError(f"{response.status_code}: {response.text[:300]}")
        async for line in response.aiter_lines():
            if line:
                lines.append(line)
            if pause:
                await asyncio.sleep(pause)
    expect(lines[-1:] == ["data: [DONE]"], f"the stream ended with {lines[-1:]}")
    finished: list[int] = []
    usages = []
    for line in lines[:-1]:
        event = json.loads(line.removeprefix("data: "))
        expect("error" not in event, f"error in a stream: {event}")
        usages += [event["usage"]] if event.get("usage") else []
        for choice in event["choices"]:
            expect(choice["index"] not in finished, "a choice went on behind its end")
            if choice.get("finish_reason"):
                finished.append(choice["index"])
    expect(sorted(finished) == list(range(body.get("n", 1))), f"finished: {finished}")
    expect(len(usages) == 1, f"{len(usages)} usages")
    return "200"


# -- kinds


@kind(6)
async def whole(client: httpx.AsyncClient, draw: random.Random) -> str:
    return await send(client, *any_body(draw))


@kind(6)
async def streamed(client: httpx.AsyncClient, draw: random.Random) -> str:
    return await stream(client, *any_body(draw))


@kind(1)
async def read_slowly(client: httpx.AsyncClient, draw: random.Random) -> str:
    path, body = any_body(draw)
    return await stream(client, path, body | {"max_tokens": 20}, pause=0.1)


@kind(1)
async def several(client: httpx.AsyncClient, draw: random.Random) -> str:
    path, body = any_body(draw)
    body["n"] = draw.randrange(2, 5)
    if path == TEXT and draw.random() < 0.3:
        body["prompt"] = [words(draw, 10) for _ in range(3)]
        return await send(client, path, body)
    return await (send if draw.random() < 0.5 else stream)(client, path, body)


@kind(1)
async def scored(client: httpx.AsyncClient, draw: random.Random) -> str:
    body = text_body(draw) | {"logprobs": draw.randrange(4), "echo": draw.random() < 0.5}
    return await (send if draw.random() < 0.5 else stream)(client, TEXT, body)


@kind(3)
async def leave(client: httpx.AsyncClient, draw: random.Random) -> str:
    """Gone after some events, or before the answer."""
    path, body = any_body(draw)
    body |= {"max_tokens": 200, "ignore_eos": True, "n": draw.randrange(1, 4)}
    if draw.random() < 0.5:
        try:
            response = await client.post(path, json=body, timeout=draw.random())
        except httpx.TimeoutException:
            return "left"
        return "429" if refused(response) else str(response.status_code)
    async with client.stream("POST", path, json=body | {"stream": True}) as response:
        if response.status_code == 429:
            return "429"
        expect(response.status_code == 200, f"{response.status_code}")
        left = draw.randrange(20)
        async for _ in response.aiter_lines():
            left -= 1
            if left < 0:
                break
    return "left"


@kind(1)
async def time_out(client: httpx.AsyncClient, draw: random.Random) -> str:
    path, body = any_body(draw)
    body |= {"max_tokens": 200, "ignore_eos": True, "timeout": 0.01 + draw.random() / 4}
    response = await client.post(path, json=body)
    if refused(response):
        return "429"
    if response.status_code == 408:
        expect(response.json()["error"]["code"] == "timeout", response.text)
        return "408"
    check_whole(response, body.get("n", 1), 200)
    return "200"


def schema(draw: random.Random, depth: int = 2) -> dict[str, Any]:
    """A small JSON schema that nobody has asked for before, probably."""
    if depth == 0 or draw.random() < 0.3:
        ends: list[dict[str, Any]] = [
            {"type": "boolean"},
            {"type": "integer"},
            {"type": "string", "maxLength": 9},
        ]
        ends.append({"enum": [words(draw, 4) for _ in range(3)]})
        return draw.choice(ends)
    if draw.random() < 0.3:
        return {"type": "array", "items": schema(draw, depth - 1), "maxItems": draw.randrange(4)}
    names = [f"{draw.choice(WORDS)}{i}" for i in range(draw.randrange(1, 4))]
    properties = {name: schema(draw, depth - 1) for name in names}
    return {
        "type": "object",
        "properties": properties,
        "required": names,
        "additionalProperties": False,
    }


@kind(2)
async def structured(client: httpx.AsyncClient, draw: random.Random) -> str:
    """What the answer is held to, it keeps to."""
    path, body = any_body(draw)
    for name in ("stop", "logit_bias", "ignore_eos", "min_tokens", "repetition_penalty"):
        body.pop(name, None)
    body["max_tokens"] = 150
    pattern = draw.choice(["[0-9]{3}-[a-z]{2,5}", "(yes|no)( and (yes|no)){0,3}"])
    asked = schema(draw)
    form: dict[str, Any] = draw.choice(
        [
            {"response_format": {"type": "json_schema", "json_schema": {"schema": asked}}},
            {"guided_regex": pattern},
            {"structured_outputs": {"choice": ["alpha", "beta", "gamma"]}},
        ]
    )
    response = await client.post(path, json=body | form)
    if refused(response):
        return "429"
    check_whole(response, 1, 150)
    (choice,) = response.json()["choices"]
    text = choice["text"] if path == TEXT else choice["message"]["content"]
    if choice["finish_reason"] == "stop":
        if "guided_regex" in form:
            expect(re.fullmatch(pattern, text) is not None, f"{pattern}: {text!r}")
        elif "structured_outputs" in form:
            expect(text in ("alpha", "beta", "gamma"), f"choice: {text!r}")
        else:
            try:
                jsonschema.validate(json.loads(text), asked)
            except (ValueError, jsonschema.ValidationError) as error:
                raise WrongAnswerError(f"{asked}: {text!r}: {error}") from None
    return "200"


WRONG_FORMS: list[dict[str, Any]] = [
    {"guided_regex": "("},
    {"guided_regex": "(?=x)y"},
    {"guided_json": {"type": "nothing"}},
    {"guided_json": {"$ref": "#/nowhere"}},
    {"guided_grammar": "start: nothing"},
    {"guided_choice": []},
    {"response_format": {"type": "json_schema"}},
    {"response_format": {"type": "xml"}},
    {"guided_regex": "a", "guided_choice": ["b"]},
]


@kind(1)
async def wrong_form(client: httpx.AsyncClient, draw: random.Random) -> str:
    path, body = any_body(draw)
    form = draw.choice(WRONG_FORMS)
    response = await client.post(path, json=body | form)
    if refused(response):
        return "429"
    expect(response.status_code == 400, f"{form}: {response.status_code} {response.text[:200]}")
    return "400"


WRONG: list[tuple[str, Any, set[int]]] = [
    (TEXT, {"prompt": []}, {400}),
    (TEXT, {"prompt": "x" * 1_000_000}, {400}),
    (TEXT, {"prompt": [999_999_999]}, {400}),
    (TEXT, {"prompt": "x", "n": 100_000}, {400}),
    (TEXT, {"prompt": "x", "max_tokens": -1}, {400}),
    (TEXT, {"prompt": "x", "max_tokens": 10**9}, {400}),
    (TEXT, {"prompt": "x", "temperature": -1}, {400}),
    (TEXT, {"prompt": "x", "top_p": 0}, {400}),
    (TEXT, {"prompt": "x", "logit_bias": {"x": 1}}, {400}),
    (TEXT, {"prompt": "x", "stop": [""]}, {400}),
    (TEXT, {"prompt": "x", "timeout": 0}, {400}),
    (TEXT, {"prompt": "x", "stream_options": {"include_usage": True}}, {400}),
    (TEXT, {"prompt": "x", "model": "another"}, {404}),
    (TEXT, [1, 2, 3], {400}),
    (CHAT, {"messages": []}, {400}),
    (CHAT, {"messages": [{"role": "nobody", "content": "x"}]}, {400}),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, {400}),
    (CHAT, {"messages": [{"role": "user", "content": "x"}], "top_logprobs": 3}, {400}),
    (CHAT, {}, {400}),
    ("/v1/nothing", {}, {404}),
]


@kind(2)
async def wrong(client: httpx.AsyncClient, draw: random.Random) -> str:
    path, body, statuses = draw.choice(WRONG)
    response = await client.post(path, json=body)
    status = response.status_code
    expect(status in statuses, f"{path} {str(body)[:100]}: {status} {response.text[:200]}")
    expect(bool(response.json()["error"]["message"]), "no message")
    return str(status)


@kind(1)
async def not_json(client: httpx.AsyncClient, draw: random.Random) -> str:
    content = draw.choice([b"", b"{", b"\xff\xfe", b"[" * 5000, b'{"prompt": "x", "n": 1e999}'])
    headers = {"content-type": draw.choice(["application/json", "text/plain"])}
    response = await client.post(draw.choice([TEXT, CHAT]), content=content, headers=headers)
    expect(response.status_code in (400, 415), f"{content[:20]!r}: {response.status_code}")
    return str(response.status_code)


@kind(1)
async def look(client: httpx.AsyncClient, draw: random.Random) -> str:
    """What people and monitors ask meanwhile."""
    path = draw.choice(["/health", "/ready", "/stats", "/metrics", "/v1/models"])
    response = await client.get(path)
    # While its engine restarts a server is not ready, and says so.
    earned = {200, 503} if path == "/ready" else {200}
    expect(response.status_code in earned, f"{path}: {response.status_code}")
    return str(response.status_code)


@kind(1)
async def tokenize(client: httpx.AsyncClient, draw: random.Random) -> str:
    text = words(draw, 50)
    ids = (await client.post("/tokenize", json={"prompt": text})).json()["tokens"]
    response = await client.post("/detokenize", json={"tokens": ids})
    expect(response.status_code == 200 and text in response.json()["prompt"], response.text[:200])
    return "200"


@kind(1)
async def embed(client: httpx.AsyncClient, draw: random.Random) -> str:
    inputs = [words(draw, 30) for _ in range(draw.randrange(1, 4))]
    response = await client.post("/v1/embeddings", json={"input": inputs})
    if refused(response):
        return "429"
    expect(response.status_code == 200, f"{response.status_code}: {response.text[:200]}")
    expect(len(response.json()["data"]) == len(inputs), "embeddings are missing")
    return "200"


@kind(1)
async def respond(client: httpx.AsyncClient, draw: random.Random) -> str:
    body = {"input": words(draw, 30), "max_output_tokens": draw.choice([16, 40])}
    response = await client.post("/v1/responses", json=body)
    if refused(response):
        return "429"
    expect(response.status_code == 200, f"{response.status_code}: {response.text[:200]}")
    status = response.json()["status"]
    expect(status in ("completed", "incomplete"), f"status {status}")
    return "200"
