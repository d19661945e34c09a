"""Every way to be refused: the status, the OpenAI shape, the field named, and a living server."""

from __future__ import annotations

import contextlib
import json
import socket
from typing import Any

import httpx
import openai
import pytest
from fake_engine import MAX_CONTEXT, MODEL_NAME, VOCAB_SIZE
from live import Live, live_server

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
MESSAGES = [{"role": "user", "content": "hi"}]


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    document = response.json()
    assert set(document) == {"error"}
    assert set(document["error"]) == {"message", "type", "param", "code"}
    assert document["error"]["message"]
    assert "Traceback" not in response.text
    return document["error"]  # type: ignore[no-any-return]


def connect(server: Live) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


CHAT_REFUSALS = [
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": [{"content": "hi"}]}, "messages"),
    ({"messages": [{"role": "user"}]}, "messages"),
    ({"messages": [{"role": "wizard", "content": "hi"}]}, "messages"),
    ({"messages": [{"role": "tool", "content": "hi", "tool_call_id": "1"}]}, "messages"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages"),
    (
        {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
            ]
        },
        "messages",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
        "messages",
    ),
    ({"messages": [{"role": "user", "content": "REFUSED BY TEMPLATE"}]}, "messages"),
    ({"n": 0}, "n"),
    ({"n": 129}, "n"),
    ({"n": 10**9}, "n"),
    ({"n": "2"}, "n"),
    ({"n": 1.5}, "n"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_completion_tokens": -1}, "max_tokens"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 2.5}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"min_p": 2}, "min_p"),
    ({"presence_penalty": 3}, "presence_penalty"),
    ({"frequency_penalty": -3}, "frequency_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"logit_bias": {"-1": 1}}, "logit_bias"),
    ({"logit_bias": {str(VOCAB_SIZE): 1}}, "logit_bias"),
    ({"logit_bias": {"1": 101}}, "logit_bias"),
    ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias"),
    ({"seed": 1 << 70}, "seed"),
    ({"stop": ""}, "stop"),
    ({"stop": ["x"] * 17}, "stop"),
    ({"stop": "x" * 1025}, "stop"),
    ({"stop": 5}, "stop"),
    ({"stop_token_ids": [VOCAB_SIZE]}, "stop_token_ids"),
    ({"stop_token_ids": [-1]}, "stop_token_ids"),
    ({"stop_token_ids": [1] * 2000}, "stop_token_ids"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "logprobs"),
    ({"logprobs": 3}, "logprobs"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    ({"tools": [{"type": "function"}], "tool_choice": "required"}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"response_format": {"type": "json_schema"}}, "response_format"),
    ({"response_format": {"type": "xml"}}, "response_format"),
    ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs"),
    ({"guided_json": {}, "guided_regex": "a"}, "guided_json"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"chat_template": "{{ 1 }}"}, "chat_template"),
    ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs"),
    ({"guided_choice": []}, "guided_choice"),
    ({"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
    ({"priority": "high"}, "priority"),
]


@pytest.mark.parametrize(("fields", "param"), CHAT_REFUSALS)
def test_chat_refusals(server: Live, fields: dict[str, Any], param: str) -> None:
    response = server.post(CHAT, json={"model": MODEL_NAME, "messages": MESSAGES} | fields)
    error = error_of(response, 400)
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param


TEXT_REFUSALS = [
    ({"prompt": None}, "prompt"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [""]}, "prompt"),
    ({"prompt": [[]]}, "prompt"),
    ({"prompt": [1, "a"]}, "prompt"),
    ({"prompt": [1.5]}, "prompt"),
    ({"prompt": [True]}, "prompt"),
    ({"prompt": {"text": "x"}}, "prompt"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": [VOCAB_SIZE]}, "prompt"),
    ({"prompt": [1 << 80]}, "prompt"),
    ({"prompt": ["x"] * 257}, "n"),
    ({"prompt": ["x"] * 129, "n": 2}, "n"),
    ({"suffix": "end"}, "suffix"),
    ({"logprobs": 21}, "logprobs"),
    ({"echo": True, "logprobs": 21}, "logprobs"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 0, "logprobs": 1}, "max_tokens"),
    ({"max_tokens": -1, "echo": True}, "max_tokens"),
    ({"prompt_embeds": "AAAA"}, "prompt_embeds"),
]


@pytest.mark.parametrize(("fields", "param"), TEXT_REFUSALS)
def test_text_refusals(server: Live, fields: dict[str, Any], param: str) -> None:
    response = server.post(TEXT, json={"model": MODEL_NAME, "prompt": "hi"} | fields)
    assert error_of(response, 400)["param"] == param


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("size", "max_tokens"), [(MAX_CONTEXT, None), (50_000, 5), (10, MAX_CONTEXT)]
)
def test_context_length(server: Live, stream: bool, size: int, max_tokens: int | None) -> None:
    body = {"prompt": "x" * size, "max_tokens": max_tokens, "stream": stream}
    error = error_of(server.post(TEXT, json=body), 400)
    assert error["code"] == "context_length_exceeded"
    assert str(MAX_CONTEXT) in error["message"]


def test_default_max_tokens_shrinks_to_the_room_left(server: Live) -> None:
    answer = server.post(TEXT, json={"prompt": "x" * (MAX_CONTEXT - 3)}).json()
    assert answer["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nonsense",
        b"[]",
        b"null",
        b'{"prompt": "\xff\xfe"}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "a\x00b"}',
        b'{"prompt": "a", "temperature": NaN}',
        b'{"prompt": "a", "temperature": 1e999}',
        b'{"prompt": "a"} trailing',
        b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"x":' * 5000 + b"1" + b"}" * 5000,
        b"[" * 1_000_000,
        b'{"prompt": [' + b"[1]," * 200_000 + b"[1]]}",
        b'{"prompt": "a", "seed": ' + b"9" * 10_000 + b"}",
    ],
    ids=lambda body: repr(body[:24]),
)
def test_bodies_that_are_no_request(server: Live, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    error = error_of(server.post(TEXT, content=body, headers=headers), 400)
    assert error["type"] == "invalid_request_error"
    assert server.get("/health").status_code == 200


def test_deep_brackets_inside_strings_are_text(server: Live) -> None:
    assert server.post(TEXT, json={"prompt": '["{' * 300}).status_code == 200


def test_routes_and_methods(server: Live) -> None:
    error_of(server.get("/nope"), 404)
    error_of(server.get("/v1/models/"), 404)
    error_of(server.get(TEXT), 405)
    error_of(server.post("/health"), 405)
    assert error_of(server.get("/v1/models/other"), 404)["code"] == "model_not_found"


def test_unknown_model(server: Live) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        server.openai().chat.completions.create(model="gpt-x", messages=MESSAGES)  # type: ignore[arg-type]
    assert caught.value.code == "model_not_found"


def test_content_types(server: Live) -> None:
    body = json.dumps({"prompt": "hi"}).encode()
    for headers in ({"content-type": "text/plain"}, {"content-encoding": "gzip"}):
        error_of(server.post(TEXT, content=body, headers=headers), 415)


def test_host_header(server: Live) -> None:
    error_of(server.get("/health", headers={"host": "x/health?"}), 400)


def test_large_bodies_are_refused_while_reading() -> None:
    with live_server(server={"max_body_bytes": 100_000}) as server:
        body = json.dumps({"prompt": "x" * 200_000}).encode()
        headers = {"content-type": "application/json"}
        error = error_of(server.post(TEXT, content=body, headers=headers), 413)
        assert error["code"] == "request_too_large"

        sent = 0

        def endless():  # type: ignore[no-untyped-def]
            nonlocal sent
            for _ in range(10_000):
                sent += 10_000
                yield b"x" * 10_000

        # The connection may be closed under the upload.
        with contextlib.suppress(httpx.WriteError, httpx.RemoteProtocolError, httpx.ReadError):
            error_of(server.post(TEXT, content=endless(), headers=headers), 413)
        assert sent < 50_000_000
        assert server.get("/health").status_code == 200


@pytest.mark.parametrize("value", [b"-1", b"abc", b"99999999999999999999999999"])
def test_claimed_length(server: Live, value: bytes) -> None:
    with connect(server) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: " + value + b"\r\n\r\n{}"
        )
        assert connection.recv(4096).split(b" ")[1] in (b"400", b"413")


def test_large_headers(server: Live) -> None:
    error_of(server.get("/health", headers={"x-large": "x" * 70_000}), 431)
    with connect(server) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nX-Large: ")
        sent = 0
        try:
            while sent < 50_000_000:
                connection.sendall(b"x" * 100_000)
                sent += 100_000
        except OSError:
            pass
        assert sent < 20_000_000
    assert server.get("/health").status_code == 200


def test_slow_clients_are_let_go() -> None:
    """Headers, or a body, that never end; an idle connection too."""
    start = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with live_server(header_seconds=0.5, body_seconds=0.5) as server:
        for sent in (b"", start, start + b'Content-Length: 100\r\n\r\n{"pro'):
            with connect(server) as connection:
                connection.sendall(sent)
                answer = b""
                while piece := connection.recv(4096):
                    answer += piece
                assert answer.startswith(b"HTTP/1.1 408 ")
        assert server.post(TEXT, json={"prompt": "hi"}).status_code == 200


def test_what_is_not_http(server: Live) -> None:
    with connect(server) as connection:
        connection.sendall(b"\x16\x03\x01 nonsense\r\n\r\n")
        head, _, body = connection.recv(4096).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 ")
        assert json.loads(body)["error"]["type"] == "invalid_request_error"


def test_queue_full_is_429_with_retry_after() -> None:
    scheduler = {"max_num_requests": 1, "max_queued_requests": 1}
    with live_server(scheduler=scheduler) as server, httpx.Client(timeout=20) as client:
        body = {"prompt": "SLOW", "max_tokens": 500, "n": 2, "stream": True}
        with client.stream("POST", server.url + TEXT, json=body) as running:
            assert running.status_code == 200
            response = server.post(TEXT, json={"prompt": "hi"})
            error = error_of(response, 429)
            assert error["code"] == "queue_full"
            assert response.headers["retry-after"] == "1"


@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_error_before_and_after_the_first_token(server: Live, stream: bool) -> None:
    response = server.post(TEXT, json={"prompt": "BROKEN", "stream": stream, "max_tokens": 9})
    if not stream:
        error = error_of(response, 500)
        assert error["code"] == "generation_failed"
        return
    assert response.status_code == 200
    events = response.text.strip().split("\n\n")
    assert events[-1] == "data: [DONE]"
    error = json.loads(events[-2].removeprefix("data: "))["error"]
    assert error["code"] == "generation_failed"
    assert server.post(TEXT, json={"prompt": "hi"}).status_code == 200


KEY = "secret-key"


@pytest.fixture(scope="module")
def guarded() -> Any:
    with live_server(server={"api_key": KEY}) as live:
        yield live


def test_key_opens_everything(guarded: Live) -> None:
    assert guarded.openai(KEY).models.list().data[0].id == MODEL_NAME
    with pytest.raises(openai.AuthenticationError) as caught:
        guarded.openai("wrong").models.list()
    assert caught.value.code == "invalid_api_key"
    for path in ("/health", "/ready"):
        assert guarded.get(path).status_code == 200


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/v1/models", {}),
        ("/v1/models", {"authorization": KEY}),
        ("/v1/models", {"authorization": f"Basic {KEY}"}),
        ("/v1/models", {"authorization": "Bearer"}),
        ("/v1/models", {"authorization": f"Bearer {KEY}x"}),
        ("/v1/models", {"authorization": f"Bearer {KEY[:-1]}"}),
        ("/v1/models", {"x-api-key": KEY[:-1]}),
        ("/v1/models", {"x-api-key": KEY, "authorization": "Bearer other"}),
        ("/v1/models", {"x-api-key": ""}),
        ("/v1/models?api_key=" + KEY, {}),
        ("/v1/models?/health", {}),
        ("/v1/models#/health", {}),
        ("/health/", {}),
        ("/health/../v1/models", {}),
        ("//health", {}),
        ("/Health", {}),
        ("/stats", {}),
        ("/nope", {}),
        ("/docs", {}),
        ("/openapi.json", {}),
        ("/v1/models", {"x-original-url": "/health"}),
        ("/v1/models", {"x-forwarded-prefix": "/health"}),
    ],
)
def test_key_is_not_bypassed(guarded: Live, path: str, headers: dict[str, str]) -> None:
    response = guarded.get(path, headers=headers)
    assert error_of(response, 401)["code"] == "invalid_api_key"
