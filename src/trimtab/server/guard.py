"""The outermost layer: every request passes here before anything routes it, and every answer after.

It decides who may enter, notes when a request comes and how it ends, and gives each answer the
headers that all answers have.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Awaitable, Callable, Iterable
from time import perf_counter
from typing import Any

from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trimtab.config import ServerConfig
from trimtab.server.api_errors import ApiError, error_response
from trimtab.server.http import MAX_HEADER_BYTES
from trimtab.server.keys import Account, Key, KeyRing, digest_of
from trimtab.server.observation import Call, Observer, current_call, note_error
from trimtab.server.page_routes import PAGE_PATHS
from trimtab.server.tracing import Tracing

OPEN_PATHS = frozenset({"/health", "/ready"})
ADMIN_PREFIX = "/v1/admin/"
CLIENT_GONE = 499  # as nginx logs an answer that nobody waited for
PREFLIGHT_SECONDS = b"600"
_HOST = re.compile(rb"[A-Za-z0-9._:\[\]-]*\Z")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}\Z")
_HEADER_NAMES = re.compile(rb"[A-Za-z0-9, _-]{1,1024}\Z")
_EXPOSED = (
    b"retry-after, x-request-id, x-trace-id, x-ratelimit-limit-requests,"
    b" x-ratelimit-remaining-requests, x-ratelimit-reset-requests, x-ratelimit-limit-tokens,"
    b" x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens"
)
_ON = (b"1", b"true", b"on", b"yes")

RawHeaders = list[tuple[bytes, bytes]]


class Guard:
    """An ASGI application around another.

    It decides on the raw ASGI path, never on a URL put together from headers. With keys, every path
    but the open ones is closed, routes that do not exist included; paths of administration are
    closed to all keys but their own.
    """

    def __init__(
        self,
        app: ASGIApp,
        routes: Iterable[BaseRoute],
        config: ServerConfig,
        keys: KeyRing,
        observer: Observer,
        tracing: Tracing | None = None,
    ) -> None:
        self._app = app
        self._observer = observer
        self._tracing = tracing
        self._keys = keys
        admin = [] if config.admin_key is None else [Key("admin", digest_of(config.admin_key))]
        self._admin_keys = KeyRing(admin, perf_counter())
        self._open = OPEN_PATHS | ({"/metrics"} if config.open_metrics else set())
        if config.page:
            self._open |= PAGE_PATHS
        self._origins = frozenset(config.cors_origin.encode().replace(b",", b" ").split())
        self._paths = {route.endpoint: route.path for route in routes if isinstance(route, Route)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers: RawHeaders = scope["headers"]
        call = _call(self._observer, scope["method"], scope["path"], headers)
        current_call.set(call)
        outgoing = _Outgoing(send, call, self._cors(headers), lambda: self._end(scope, outgoing))
        self._observer.begin(call)
        if self._tracing is not None and call.method == "POST":
            self._tracing.begin(call, headers)
        try:
            if outgoing.cors and _is_preflight(scope["method"], headers):
                await _answer_preflight(headers, outgoing)
                return
            try:
                self._admit(scope, headers, call)
            except ApiError as error:
                note_error(error)
                await error_response(error, scope["path"])(scope, receive, outgoing)
            else:
                await self._app(scope, receive, outgoing)
        finally:
            self._end(scope, outgoing)

    def _end(self, scope: Scope, outgoing: _Outgoing) -> None:
        """The answer is about to be complete, or will never be; the first one counts."""
        if outgoing.call.ended is None:
            route = self._paths.get(scope.get("endpoint", _nowhere), "other")
            status = CLIENT_GONE if outgoing.status is None else outgoing.status
            self._observer.end(outgoing.call, route, status, outgoing.complete)

    def _admit(self, scope: Scope, headers: RawHeaders, call: Call) -> None:
        """Raises ApiError for a request that must not come in."""
        if sum(len(name) + len(value) for name, value in headers) > MAX_HEADER_BYTES:
            close = {"Connection": "close"}
            raise ApiError(431, "The request headers are too large.", headers=close)
        for name, value in headers:
            if name == b"host" and not _HOST.match(value):
                raise ApiError(400, "The Host header is not valid.")
        path = scope["path"]
        if path in self._open:
            return
        if path.startswith(ADMIN_PREFIX) and self._admin_keys:
            if _account(self._admin_keys, headers) is None:
                raise _unauthorized("This route needs the administration key.")
        elif self._keys:
            call.account = _account(self._keys, headers)
            if call.account is None:
                raise _unauthorized(
                    "A valid API key is required: Authorization: Bearer KEY, or x-api-key: KEY."
                )
            if call.method == "POST":
                call.account.take_request(call.arrived)

    def _cors(self, headers: RawHeaders) -> RawHeaders:
        """What a browser must see so that a page of another origin gets the answer."""
        if not self._origins:
            return []
        origin = _single(headers, b"origin")
        if origin is None or not self._origins & {origin, b"*"}:
            return []
        return [
            (b"access-control-allow-origin", origin),
            (b"access-control-expose-headers", _EXPOSED),
            (b"vary", b"Origin"),
        ]


def _nowhere() -> None:
    """The endpoint of paths that do not exist."""


class _Outgoing:
    """A Send that adds the headers which all answers have, and sees how the answer goes."""

    __slots__ = ("_on_complete", "_send", "call", "complete", "cors", "status")

    def __init__(
        self, send: Send, call: Call, cors: RawHeaders, on_complete: Callable[[], None]
    ) -> None:
        """`on_complete` runs before the last piece goes out: who has the whole answer finds it
        counted."""
        self._send = send
        self._on_complete = on_complete
        self.call = call
        self.cors = cors
        self.status: int | None = None
        self.complete = False  # all of it has been sent

    def __call__(self, message: Message) -> Awaitable[None]:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": [*message["headers"], *self._headers()]}
        elif not message.get("more_body", False):
            self.complete = True
            self._on_complete()
        return self._send(message)

    def _headers(self) -> RawHeaders:
        call = self.call
        headers = [(b"x-request-id", call.request_id.encode()), *self.cors]
        if call.trace is not None:
            headers += call.trace.response_headers()
        if call.account is not None:
            headers += call.account.headers(perf_counter())
        return headers


def _call(observer: Observer, method: str, path: str, headers: RawHeaders) -> Call:
    request_id = _single(headers, b"x-request-id")
    if request_id is None or not _REQUEST_ID.match(request_id):
        request_id = b"req-" + secrets.token_hex(12).encode()
    wants_timings = (_single(headers, b"x-trimtab-timings") or b"").lower() in _ON
    return Call(observer, request_id.decode(), method, path, wants_timings=wants_timings)


def _single(headers: RawHeaders, name: bytes) -> bytes | None:
    """The value of a header that must not come twice."""
    values = [value for one, value in headers if one == name]
    return values[0] if len(values) == 1 else None


def _account(keys: KeyRing, headers: RawHeaders) -> Account | None:
    """Whose key the request brings: one key, in one header or the same one in both."""
    given: set[bytes] = set()
    for name, value in headers:
        if name == b"authorization":
            scheme, _, token = value.partition(b" ")
            given.add(token.strip() if scheme.lower() == b"bearer" else b"")
        elif name == b"x-api-key":
            given.add(value.strip())
    return keys.find(given.pop()) if len(given) == 1 else None


def _unauthorized(message: str) -> ApiError:
    return ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def _is_preflight(method: str, headers: RawHeaders) -> bool:
    return method == "OPTIONS" and _single(headers, b"access-control-request-method") is not None


async def _answer_preflight(headers: RawHeaders, send: Any) -> None:
    """What a browser asks before it sends a request of another origin; it brings no key."""
    asked = _single(headers, b"access-control-request-headers") or b""
    answer = [
        (b"access-control-allow-methods", b"GET, POST, OPTIONS"),
        (b"access-control-max-age", PREFLIGHT_SECONDS),
    ]
    if _HEADER_NAMES.match(asked):
        answer.append((b"access-control-allow-headers", asked))
    await send({"type": "http.response.start", "status": 204, "headers": answer})
    await send({"type": "http.response.body", "body": b""})
