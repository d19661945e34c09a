"""Streams as bytes on a socket: what a client that parses them by hand may rely on."""

from __future__ import annotations

import json
import re
import socket
from typing import Any

import pytest
from live import Live

TEXT, CHAT = "/v1/completions", "/v1/chat/completions"
BODY: dict[str, Any] = {"max_tokens": 5, "seed": 1, "stream": True}
BODIES: dict[str, dict[str, Any]] = {
    TEXT: BODY | {"prompt": "hi"},
    CHAT: BODY | {"messages": [{"role": "user", "content": "hi"}]},
}


def raw_answer(server: Live, path: str, body: dict[str, Any]) -> tuple[dict[str, str], bytes]:
    """Headers and the body, its chunks (RFC 9112, section 7.1) put together."""
    host, port = server.url.removeprefix("http://").split(":")
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(head.encode() + b"Content-Length: %d\r\n\r\n" % len(data) + data)
        received = b""
        while not received.endswith(b"0\r\n\r\n"):
            piece = connection.recv(65536)
            assert piece, received
            received += piece
    top, _, rest = received.partition(b"\r\n\r\n")
    status, *lines = top.decode().split("\r\n")
    assert status == "HTTP/1.1 200 OK"
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    assert headers["transfer-encoding"] == "chunked"
    text = b""
    while True:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        if not length:
            assert rest == b"\r\n"
            return headers, text
        text += rest[:length]
        assert rest[length : length + 2] == b"\r\n"
        rest = rest[length + 2 :]


def events_of(text: bytes) -> list[dict[str, Any]]:
    """Every byte is accounted for: `data: JSON`, an empty line, and so on up to [DONE]."""
    assert text.endswith(b"\n\ndata: [DONE]\n\n")
    assert text.count(b"[DONE]") == 1
    blocks = text[: -len(b"data: [DONE]\n\n")].split(b"\n\n")
    assert blocks.pop() == b""
    assert all(re.fullmatch(rb"data: \{[^\r\n]*\}", block) for block in blocks)
    return [json.loads(block.removeprefix(b"data: ")) for block in blocks]


@pytest.mark.parametrize("path", [TEXT, CHAT])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("usage", [None, False, True])
def test_the_frames_of_a_stream(server: Live, path: str, n: int, usage: bool | None) -> None:
    body = BODIES[path] | {"n": n}
    if usage is not None:
        body["stream_options"] = {"include_usage": usage}
    headers, text = raw_answer(server, path, body)
    assert headers["content-type"] == "text/event-stream; charset=utf-8"
    assert headers["cache-control"] == "no-cache"
    events = events_of(text)
    assert len({(event["id"], event["created"], event["model"]) for event in events}) == 1
    kind = "text_completion" if path == TEXT else "chat.completion.chunk"
    assert {event["object"] for event in events} == {kind}
    if usage:
        last = events.pop()
        assert last["choices"] == []
        assert last["usage"]["completion_tokens"] == 5 * n
    assert not any(event.get("usage") for event in events)
    for index in range(n):
        own = [e["choices"][0] for e in events if e["choices"][0]["index"] == index]
        reasons = [choice["finish_reason"] for choice in own]
        assert reasons == [None] * (len(own) - 1) + ["length"]
        if path == CHAT:
            roles = [choice["delta"].get("role") for choice in own]
            assert roles == ["assistant"] + [None] * (len(own) - 1)
    assert all(len(event["choices"]) == 1 for event in events)


@pytest.mark.parametrize("path", [TEXT, CHAT])
def test_a_failure_in_a_stream_is_one_more_event(server: Live, path: str) -> None:
    body = dict(BODIES[path])
    if path == TEXT:
        body["prompt"] = "BROKEN"
    else:
        body["messages"] = [{"role": "user", "content": "BROKEN"}]
    *events, last = events_of(raw_answer(server, path, body)[1])
    assert last.keys() == {"error"}
    assert last["error"]["code"] == "generation_failed"
    assert all(event["choices"][0]["finish_reason"] is None for event in events)


def test_text_that_looks_like_framing_stays_inside(server: Live) -> None:
    """A line break of the text is escaped, so it ends no event."""
    headers, text = raw_answer(
        server, TEXT, BODIES[TEXT] | {"prompt": "a\n\ndata: x", "echo": True}
    )
    events = events_of(text)
    assert "".join(e["choices"][0]["text"] for e in events).startswith("a\n\ndata: x")
    assert headers["x-accel-buffering"] == "no"
