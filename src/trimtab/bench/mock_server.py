"""A deterministic OpenAI-like server in a process of its own: what a load generator is checked on.

    python -m trimtab.bench.mock_server '{"step_ms": 10, "max_batch": 8}'

prints {"url": ...} and serves until its standard input ends. Fields: `MockConfig`. A token is a
word. Each event says when it was sent (`mock_sent`, time.monotonic(), which processes of one
machine share), and GET /mock/requests what was asked, when it came, when its
first and its last token went out.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import httptools
import msgspec

from trimtab.bench.mock_schedule import Clock, Job, MockConfig, Schedule, make_schedule
from trimtab.bench.pacing import Pacer

MODEL = "mock"
DEFAULT_TOKENS = 16
_ERRORS = {400: "Bad Request", 404: "Not Found", 429: "Too Many Requests", 500: "Server Error"}


class MockServer:
    """What all connections share."""

    def __init__(self, config: MockConfig, schedule: Schedule) -> None:
        self.config = config
        self.schedule = schedule
        self.requests: list[dict[str, Any]] = []  # prompt, words, at, body
        self.num_asked = 0
        self._seen: set[tuple[str, ...]] = set()

    def fails(self) -> bool:
        """Whether the request that came now is one of those that fail."""
        self.num_asked += 1
        every = self.config.error_every
        return every > 0 and self.num_asked % every == 0

    def cached_words(self, words: list[str]) -> int:
        """Of a prompt's beginning that an earlier one had too, whole blocks of 16; keeps them."""
        cached = 0
        for end in range(16, len(words) + 1, 16):
            prefix = tuple(words[:end])
            if prefix in self._seen:
                cached = end
            self._seen.add(prefix)
        return cached


class _Connection(asyncio.Protocol):
    def __init__(self, server: MockServer) -> None:
        self._server = server
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._url = b""
        self._body = b""
        self._job: Job | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class

    def connection_lost(self, error: Exception | None) -> None:
        if self._job is not None:
            self._job.cancelled = True

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._close()

    def on_url(self, url: bytes) -> None:
        self._url = url

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        path, body, self._body = self._url.decode(), self._body, b""
        if path == "/v1/models":
            self._answer(200, {"object": "list", "data": [{"id": MODEL, "object": "model"}]})
        elif path == "/mock/requests":
            self._answer(200, self._server.requests)
        elif path in ("/v1/completions", "/v1/chat/completions"):
            self._generate(json.loads(body), chat="chat" in path)
        else:
            self._error(404)

    def _generate(self, asked: dict[str, Any], chat: bool) -> None:
        server, config = self._server, self._server.config
        prompt = _prompt_text(asked["messages"] if chat else asked["prompt"])
        words = prompt.split()
        extras = {"ignore_eos", "min_tokens"} & asked.keys()
        if config.refuses_extras and extras:
            return self._error(400, f"Unrecognized request argument: {extras.pop()}")
        if config.refuses_stream_options and "stream_options" in asked:
            return self._error(400, "Unrecognized request argument: stream_options")
        entry: dict[str, Any] = {"prompt": prompt, "at": time.monotonic(), "body": asked}
        server.requests.append(entry)
        fails = server.fails()
        if fails and config.error_kind.isdecimal():
            return self._error(int(config.error_kind))
        num_tokens = int(asked.get("max_tokens") or DEFAULT_TOKENS)
        if config.eos_after and not asked.get("ignore_eos"):
            num_tokens = min(num_tokens, config.eos_after)
        writer = _Answer(self, asked, chat, len(words), server.cached_words(words))
        writer.entry = entry
        if fails:
            writer.breaks = config.error_kind
        self._job = Job(len(words), num_tokens, writer.give)
        server.schedule.submit(self._job)
        return None

    def _error(self, status: int, message: str = "injected") -> None:
        error = {"message": message, "type": "mock_error", "code": status}
        self._answer(status, {"error": error}, b"retry-after: 1\r\n" if status == 429 else b"")

    def _answer(self, status: int, document: object, headers: bytes = b"") -> None:
        body = msgspec.json.encode(document)
        line = f"HTTP/1.1 {status} {_ERRORS.get(status, 'OK')}\r\n".encode()
        head = b"content-type: application/json\r\ncontent-length: %d\r\n" % len(body)
        self.write(line + headers + head + b"\r\n" + body)

    def write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def write_document(self, document: object) -> None:
        self._answer(200, document)

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    close = _close


class _Answer:
    """One answer on its way: the stream's events, or one document at the end."""

    def __init__(
        self, connection: _Connection, asked: dict[str, Any], chat: bool, words: int, cached: int
    ) -> None:
        self._connection = connection
        self._config = connection._server.config
        self._chat = chat
        self._words = words
        self._cached = cached
        self._num_given = 0
        self._text = ""
        self._streams = bool(asked.get("stream")) and self._config.streams
        options = asked.get("stream_options") or {}
        self._usage = self._config.gives_usage and (
            not self._streams or bool(options.get("include_usage"))
        )
        self._begun = False
        self.breaks = ""  # error kind
        self.entry: dict[str, Any] = {}

    def give(self, count: int, last: bool) -> None:
        text = "".join(f"w{self._num_given + i} " for i in range(count))
        self._num_given += count
        self.entry.setdefault("first", time.monotonic())
        self.entry["last"] = time.monotonic()
        self._text += text
        if not self._streams:
            if last:
                self._connection.write_document(self._document(self._text, "length", count, True))
            return
        data = self._begin() + _chunk(self._document(text, None, count))
        if self.breaks == "disconnect":
            self._connection.write(data)
            self._connection.close()
            return
        if self.breaks == "event":
            broken = {"error": {"message": "injected", "code": 500}}
            self._connection.write(data + _chunk(broken) + b"0\r\n\r\n")
            self._connection._job.cancelled = True  # type: ignore[union-attr]
            return
        if last:
            data += _chunk(self._document("", "length", 0))
            if self._usage:
                data += _chunk({**self._envelope([]), "usage": self._counts()})
            data += b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
        self._connection.write(data)

    def _begin(self) -> bytes:
        if self._begun:
            return b""
        self._begun = True
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
        head += b"transfer-encoding: chunked\r\n\r\n"
        if not self._chat:
            return head
        delta = {"role": "assistant", "content": ""}
        return head + _chunk(self._envelope([{"index": 0, "delta": delta}]))

    def _document(
        self, text: str, finish: str | None, count: int, whole: bool = False
    ) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish}
        if self._chat:
            choice["message" if whole else "delta"] = {"content": text}
        else:
            choice["text"] = text
        if self._config.gives_token_ids and count:
            choice["token_ids"] = list(range(self._num_given - count, self._num_given))
        document = self._envelope([choice], whole)
        if whole and self._usage:
            document["usage"] = self._counts()
        return document

    def _envelope(self, choices: list[dict[str, Any]], whole: bool = False) -> dict[str, Any]:
        kind = "text_completion"
        if self._chat:
            kind = "chat.completion" if whole else "chat.completion.chunk"
        return {
            "id": "mock-0",
            "object": kind,
            "created": 0,
            "model": MODEL,
            "mock_sent": time.monotonic(),
            "choices": choices,
        }

    def _counts(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self._words,
            "completion_tokens": self._num_given,
            "prompt_tokens_details": {"cached_tokens": self._cached},
        }


def _chunk(document: dict[str, Any]) -> bytes:
    data = b"data: " + msgspec.json.encode(document) + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(data), data)


def _prompt_text(prompt: Any) -> str:
    if isinstance(prompt, str):
        return prompt
    parts = [p if isinstance(p, int) else f"{p['role']} {p['content']}" for p in prompt]
    return " ".join(map(str, parts))


async def _serve(config: MockConfig) -> None:
    loop = asyncio.get_running_loop()
    pacer = Pacer(loop)
    server = MockServer(config, make_schedule(config, Clock(config, pacer.at, time.monotonic)))
    listening = await loop.create_server(lambda: _Connection(server), "127.0.0.1", 0, backlog=4096)
    port = listening.sockets[0].getsockname()[1]
    print(json.dumps({"url": f"http://127.0.0.1:{port}"}), flush=True)
    ended = asyncio.Event()
    loop.add_reader(0, lambda: None if os.read(0, 4096) else ended.set())
    await ended.wait()


def main() -> int:
    import uvloop

    uvloop.run(_serve(MockConfig(**json.loads(sys.argv[1] if len(sys.argv) > 1 else "{}"))))
    return 0


@contextmanager
def running_mock(config: MockConfig | None = None) -> Iterator[str]:
    """The URL of a mock server that lives as long as the block. RuntimeError if it cannot start."""
    source = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH", ""))))
    command = [sys.executable, "-m", "trimtab.bench.mock_server"]
    process = subprocess.Popen(
        [*command, json.dumps(asdict(config or MockConfig()))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"the mock server ended with status {process.wait(10)}")
        yield str(json.loads(line)["url"])
    finally:
        process.stdin.close()  # it ends when nobody holds it
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


if __name__ == "__main__":
    sys.exit(main())
