"""Every way to write a request that is not the usual one: none of them gets past the key, none of
them gets an answer to a browser's page of another origin, none of them stops the server."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest
from fake_engine import VOCAB_SIZE, byte_tokenizer
from live import Live, live_server, read_all

from trimtab.config import ServerConfig
from trimtab.engine.client import EngineInfo
from trimtab.engine.sampling_params import SamplingParams
from trimtab.server.api_types import CompletionRequest, Message
from trimtab.server.desk import Desk
from trimtab.server.prompts import PromptMaker
from trimtab.server.text import ServedModel, TextWorkers

T = TypeVar("T")

KEY = "secret-key"
PAGE = "https://page.example"
TEXT = "/v1/completions"


@pytest.fixture(scope="module")
def guarded() -> Iterator[Live]:
    with live_server(server={"api_key": KEY, "cors_origin": f"{PAGE}, http://localhost:3"}) as live:
        yield live


def raw(server: Live, head: str, body: bytes = b"") -> tuple[int, bytes]:
    """Status and body of the answer to bytes as they are; 0 if there is none."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(head.replace("\n", "\r\n").encode("latin-1") + b"\r\n\r\n" + body)
        connection.shutdown(socket.SHUT_WR)
        answer = read_all(connection)
    if not answer:
        return 0, b""
    status, _, rest = answer.partition(b"\r\n")
    return int(status.split(b" ")[1]), rest


END = "\nConnection: close"


@pytest.mark.parametrize(
    "head",
    [
        "GET /v1/models HTTP/1.1\nHost: x/health?",
        "GET /v1/models HTTP/1.1\nHost: x/health",
        "GET /v1/models HTTP/1.1\nHost: /health",
        "GET /v1/models HTTP/1.1\nHost: x\\health",
        "GET /v1/models HTTP/1.1\nHost: a@b",
        "GET /v1/models HTTP/1.1\nHost: x\nHost: x/health",
        "GET http://x/v1/models HTTP/1.1\nHost: x",
        "GET http://x/health/../v1/models HTTP/1.1\nHost: x",
        "GET http://health/v1/models HTTP/1.1\nHost: health",
        "GET /health%2f..%2fv1/models HTTP/1.1\nHost: x",
        "GET /%76%31/models HTTP/1.1\nHost: x",
        "GET /v1%2fmodels HTTP/1.1\nHost: x",
        "GET /v1/models;/health HTTP/1.1\nHost: x",
        "GET /v1/models%00/health HTTP/1.1\nHost: x",
        "GET /./v1/models HTTP/1.1\nHost: x",
        "GET //v1/models HTTP/1.1\nHost: x",
        "GET /ready/v1/models HTTP/1.1\nHost: x",
        "GET /v1/models HTTP/1.0",
        "HEAD /v1/models HTTP/1.1\nHost: x",
        "OPTIONS /v1/models HTTP/1.1\nHost: x",
        "OPTIONS * HTTP/1.1\nHost: x",
        "PUT /v1/models HTTP/1.1\nHost: x",
        "TRACE /v1/models HTTP/1.1\nHost: x",
        "GET /v1/models HTTP/1.1\nHost: x\nX-HTTP-Method-Override: GET\nX-Forwarded-Path: /health",
        "GET /v1/models HTTP/1.1\nHost: x\nX-Rewrite-Url: /health\nX-Original-Url: /health",
        "GET /v1/models HTTP/1.1\nHost: x\nUpgrade: websocket\nConnection: Upgrade",
        "GET /v1/models HTTP/1.1\nHost: x\nUpgrade: h2c\nHTTP2-Settings: AAMAAABkAAQAAP",
        f"GET /v1/models HTTP/1.1\nHost: x\nAuthorization: Bearer a\nAuthorization: Bearer {KEY}",
        f"GET /v1/models HTTP/1.1\nHost: x\nAuthorization: Bearer {KEY}, Bearer {KEY}",
        f"GET /v1/models HTTP/1.1\nHost: x\nAuthorization: Bearer{KEY}",
        f"GET /v1/models HTTP/1.1\nHost: x\nAuthorization: Token {KEY}",
        f"GET /v1/models HTTP/1.1\nHost: x\nCookie: api_key={KEY}",
        f"GET /v1/models?key={KEY} HTTP/1.1\nHost: x",
        f"GET http://user:{KEY}@x/v1/models HTTP/1.1\nHost: x",
        "CONNECT x:80 HTTP/1.1\nHost: x",
        "PRI * HTTP/2.0",
    ],
)
def test_no_form_gets_past_the_key(guarded: Live, head: str) -> None:
    end = "" if "Connection:" in head else END
    status, body = raw(guarded, head + end)
    assert status in (0, 400, 401)
    assert b"fake-model" not in body
    assert guarded.get("/health").status_code == 200


def test_smuggled_requests_are_not_answered(guarded: Live) -> None:
    """Two lengths, or a length and chunks: a proxy in front could see another request."""
    hidden = b"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer secret-key\r\n\r\n"
    for lengths in (
        f"Content-Length: 0\nContent-Length: {len(hidden)}",
        "Content-Length: 5\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked, identity",
    ):
        head = f"POST /v1/completions HTTP/1.1\nHost: x\nContent-Type: application/json\n{lengths}"
        status, body = raw(guarded, head, b"0\r\n\r\n" + hidden)
        assert status in (400, 401)
        assert b"fake-model" not in body


def test_a_key_with_a_space_before_it_is_one(guarded: Live) -> None:
    head = f"GET /v1/models HTTP/1.1\nHost: x\nAuthorization: bearer  {KEY}{END}"
    assert raw(guarded, head)[0] == 200


# -- browsers


def headers_of(answer: Any) -> set[str]:
    return {name for name in answer.headers if name.startswith("access-control-")}


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", PAGE + ".evil", PAGE.upper(), "http://localhost:30"]
)
def test_other_origins_get_nothing(guarded: Live, origin: str) -> None:
    key = {"x-api-key": KEY, "origin": origin}
    assert headers_of(guarded.get("/v1/models", headers=key)) == set()
    ask = {"origin": origin, "access-control-request-method": "POST"}
    answer = guarded.http.options(guarded.url + TEXT, headers=ask)
    assert answer.status_code == 401
    assert headers_of(answer) == set()


@pytest.mark.parametrize("origin", [PAGE, "http://localhost:3"])
def test_a_named_origin_may_read(guarded: Live, origin: str) -> None:
    ask = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization, content-type, x-stainless-os",
    }
    preflight = guarded.http.options(guarded.url + TEXT, headers=ask)
    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-origin"] == origin
    assert "authorization" in preflight.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in preflight.headers
    for key, status in ((KEY, 200), ("wrong", 401)):
        headers = {"origin": origin, "authorization": f"Bearer {key}"}
        answer = guarded.post(TEXT, json={"prompt": "hi", "stream": True}, headers=headers)
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == origin
        assert "Origin" in answer.headers["vary"]
        assert "x-request-id" in answer.headers["access-control-expose-headers"]
        assert "access-control-allow-credentials" not in answer.headers


def test_no_origin_may_read_unless_one_is_named(server: Live) -> None:
    headers = {"origin": PAGE, "access-control-request-method": "POST"}
    assert headers_of(server.http.options(server.url + TEXT, headers=headers)) == set()
    assert headers_of(server.get("/v1/models", headers=headers)) == set()


# -- prompts and headers of every kind


@pytest.mark.parametrize("prompt", ["", " ", "\n\t", "\0", "\0" * 100, "\ud800", "\u202e", "a\0b"])
@pytest.mark.parametrize("path", [TEXT, "/v1/chat/completions"])
def test_strange_prompts_are_answered_or_refused(server: Live, path: str, prompt: str) -> None:
    body: dict[str, Any] = {"max_tokens": 2}
    if path == TEXT:
        body["prompt"] = prompt
    else:
        body["messages"] = [{"role": "user", "content": prompt}]
    data = json.dumps(body).encode()
    answer = server.post(path, content=data, headers={"content-type": "application/json"})
    assert answer.status_code in (200, 400)
    assert server.get("/health").status_code == 200


def test_more_messages_than_any_context_holds(server: Live) -> None:
    body = {"messages": [{"role": "user", "content": ""}] * 20_000, "max_tokens": 2}
    error = server.post("/v1/chat/completions", json=body).json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")


async def test_no_texts_or_messages_hold_up_the_event_loop() -> None:
    """However short each of many is, together they are worked on in another thread."""
    threads: list[threading.Thread] = []

    class Workers(TextWorkers):
        async def run(self, num_characters: int, function: Callable[[], T]) -> T:
            def watched() -> T:
                threads.append(threading.current_thread())
                return function()

            return await super().run(num_characters, watched)

    workers = Workers()
    tokenizer = byte_tokenizer()
    desk = Desk(ServerConfig(), None, ServedModel("m", tokenizer))  # type: ignore[arg-type]
    maker = PromptMaker(tokenizer, workers, desk.parsers)
    info = EngineInfo(VOCAB_SIZE, 2048, 1, 4096, "fake")
    messages = [Message("user", "") for _ in range(500)]
    few = [Message("user", "hi")]
    await maker.encode_messages(few, info)
    assert threads.pop() is threading.current_thread()
    await maker.encode_messages(messages, info)
    assert threads.pop() is not threading.current_thread()
    asked = CompletionRequest(prompt=["a" * 100] * 200, max_tokens=1)
    await maker.completion(asked, SamplingParams(max_tokens=1), info)
    assert threading.current_thread() not in threads
    assert len(threads) == 200
    workers.close()
    desk.close()


@pytest.mark.parametrize("value", ["x" * 129, "a b", 'a"b', "é".encode().decode("latin-1"), ""])
def test_a_request_id_that_could_spoil_a_log_is_replaced(server: Live, value: str) -> None:
    headers = [(b"x-request-id", value.encode("latin-1"))]
    answer = server.http.get(server.url + "/health", headers=headers)
    assert answer.headers["x-request-id"].startswith("req-")
