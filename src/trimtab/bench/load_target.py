"""The server that a load is sent to: its address, its model, and which fields it takes."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from urllib.parse import urlsplit

from trimtab.bench.http_stream import Address, ConnectionPool, Exchange
from trimtab.bench.load_answer import error_message, read_document, read_stream
from trimtab.errors import UserError

Route = Literal["auto", "chat", "completions"]
PROBE_TOKENS = 4
PROBE_SECONDS = 120.0
READY_SECONDS = 60.0
_PATHS = {"chat": "/chat/completions", "completions": "/completions"}


@dataclass(frozen=True)
class Target:
    """Any OpenAI server. `url` may end in /v1 or not; None as model: the first that it serves."""

    url: str
    model: str | None = None
    api_key: str | None = field(default=None, repr=False)
    route: Route = "auto"


@dataclass(frozen=True)
class Endpoint:
    """A target that has answered."""

    address: Address
    base: str  # path of the API, "/v1"
    host: str  # for the Host header
    model: str
    route: Literal["chat", "completions"]
    api_key: str | None = field(default=None, repr=False)
    takes_exact_lengths: bool = True  # ignore_eos and min_tokens are not refused
    takes_stream_options: bool = True
    max_tokens_field: str = "max_tokens"
    server: str = ""  # what it calls itself
    streams: bool = True
    asks_token_ids: bool = False

    def request(
        self,
        prompt: str | list[dict[str, Any]],
        num_tokens: int,
        exactly: bool = True,
        **options: Any,
    ) -> bytes:
        """Head and body that ask for `num_tokens`, `exactly` as far as the server lets one."""
        body: dict[str, Any] = {"model": self.model, "stream": True, "temperature": 0.0}
        body["messages" if self.route == "chat" else "prompt"] = prompt
        body[self.max_tokens_field] = num_tokens
        if self.takes_stream_options:
            body["stream_options"] = {"include_usage": True}
        if exactly and self.takes_exact_lengths:
            body |= {"ignore_eos": True, "min_tokens": num_tokens}
        if self.asks_token_ids:
            body["return_token_ids"] = True
        body |= options
        return self.head("POST", _PATHS[self.route], json.dumps(body).encode())

    def head(self, method: str, path: str, body: bytes = b"") -> bytes:
        lines = [f"{method} {self.base}{path} HTTP/1.1", f"Host: {self.host}"]
        lines += ["Accept: text/event-stream, application/json", "User-Agent: trimtab-bench"]
        if self.api_key:
            lines.append(f"Authorization: Bearer {self.api_key}")
        if method == "POST":
            lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


@dataclass(frozen=True)
class ServedModel:
    name: str
    max_context: int = 0  # tokens; 0: it does not say
    root: str = ""  # what it was loaded from, where the server says so


def parse_url(target: Target) -> Endpoint:
    """Without asking it anything. Raises UserError."""
    try:
        parts = urlsplit(target.url)
        port = parts.port
    except ValueError as error:
        raise UserError(f"{target.url!r}: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"{target.url!r}: a server is http://host:port or https://host")
    if parts.username or parts.query or parts.fragment or not target.url.isascii():
        raise UserError(f"{target.url!r}: only scheme, host, port and path; use --api-key")
    key = target.api_key
    if key is not None and not (key.isascii() and key.isprintable()):
        raise UserError("the API key has characters that no header can carry")
    tls = parts.scheme == "https"
    base = parts.path.rstrip("/")
    return Endpoint(
        address=Address(parts.hostname, port or (443 if tls else 80), tls),
        base=base if base.endswith("/v1") else base + "/v1",
        host=parts.netloc,
        model=target.model or "",
        route="completions" if target.route == "auto" else target.route,
        api_key=key,
    )


async def ask(pool: ConnectionPool, request: bytes, seconds: float = PROBE_SECONDS) -> Exchange:
    """One request, to its end; `error` says if there was none in time."""
    loop = asyncio.get_running_loop()
    answered: asyncio.Future[Exchange] = loop.create_future()
    exchange = Exchange(request, lambda one: None if answered.done() else answered.set_result(one))
    timer = loop.call_later(seconds, pool.cancel, exchange, f"no answer in {seconds:g} s")
    pool.send(exchange)
    try:
        return await answered
    finally:
        timer.cancel()


async def ask_when_ready(pool: ConnectionPool, request: bytes) -> Exchange:
    """`ask`, again each second while the server says that it is not ready (503), a minute long."""
    deadline = time.monotonic() + READY_SECONDS
    while True:
        exchange = await ask(pool, request)
        if exchange.status != 503 or time.monotonic() > deadline:
            return exchange
        await asyncio.sleep(1.0)


async def resolve(pool: ConnectionPool, endpoint: Endpoint) -> Endpoint:
    """The model's name and which fields the server takes, by short requests that are no part of the
    load. Raises UserError with what the server said."""
    if not endpoint.model:
        endpoint = replace(endpoint, model=(await served_models(pool, endpoint))[0].name)
    for attempt in range(5):
        prompt = f"Probe {attempt}."
        messages = [{"role": "user", "content": prompt}]
        asked: Any = messages if endpoint.route == "chat" else prompt
        exchange = await ask_when_ready(pool, endpoint.request(asked, PROBE_TOKENS))
        if exchange.status == 200:
            return _as_seen(endpoint, exchange)
        weaker = _without_refused(endpoint, exchange)
        if weaker is None:
            break
        endpoint = weaker
    raise UserError(f"{_place(endpoint)}: {describe_failure(exchange)}")


async def served_models(pool: ConnectionPool, endpoint: Endpoint) -> list[ServedModel]:
    """At least one. Raises UserError."""
    exchange = await ask_when_ready(pool, endpoint.head("GET", "/models"))
    if exchange.status != 200:
        raise UserError(f"{_place(endpoint)}/models: {describe_failure(exchange)}")
    try:
        models = [
            ServedModel(
                str(one["id"]), int(one.get("max_model_len") or 0), str(one.get("root") or "")
            )
            for one in json.loads(exchange.body)["data"]
        ]
    except (ValueError, LookupError, TypeError, AttributeError):
        models = []
    if not models:
        raise UserError(f"{_place(endpoint)}/models lists no model: use --model-name")
    return models


def _as_seen(endpoint: Endpoint, exchange: Exchange) -> Endpoint:
    streams = "event-stream" in exchange.headers.get("content-type", "")
    reading = read_stream(exchange.pieces) if streams else read_document(0.0, exchange.body)
    if reading.error is not None:
        raise UserError(f"{_place(endpoint)}: {reading.error}")
    return replace(endpoint, server=exchange.headers.get("server", ""), streams=streams)


def _without_refused(endpoint: Endpoint, exchange: Exchange) -> Endpoint | None:
    """The endpoint without what it seems to have refused; None: it was something else."""
    if exchange.status not in (400, 422):
        return None
    said = exchange.body.decode(errors="replace")
    if "max_completion_tokens" in said and endpoint.max_tokens_field == "max_tokens":
        return replace(endpoint, max_tokens_field="max_completion_tokens")
    if "stream_options" in said and endpoint.takes_stream_options:
        return replace(endpoint, takes_stream_options=False)
    if endpoint.asks_token_ids and "return_token_ids" in said:
        raise UserError(f"{_place(endpoint)} does not give token ids: leave out --token-ids")
    if endpoint.takes_exact_lengths:
        return replace(endpoint, takes_exact_lengths=False)
    return None


def describe_failure(exchange: Exchange) -> str:
    """One line: status and message of an exchange that did not succeed."""
    if exchange.status == 0:
        return exchange.error or "no answer"
    try:
        document = json.loads(exchange.body)
        message = error_message(document.get("error", document))
    except (ValueError, AttributeError):
        message = " ".join(exchange.body.decode(errors="replace").split())[:300]
    return f"HTTP {exchange.status}: {message}".rstrip(": ")


def _place(endpoint: Endpoint) -> str:
    scheme = "https" if endpoint.address.tls else "http"
    return f"{scheme}://{endpoint.host}{endpoint.base}"
