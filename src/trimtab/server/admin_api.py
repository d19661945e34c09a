"""`/v1/admin`: what an operator may do to a running server. There only if there is a key for it.

Nothing here loads, fetches, writes or runs anything, or shows what a client said.
"""

from __future__ import annotations

import dataclasses
import logging
from time import perf_counter
from typing import Any, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from trimtab.server.api_errors import JSONResponse
from trimtab.server.dashboard import engine_stats
from trimtab.server.desk import Desk
from trimtab.server.http import read_json_body
from trimtab.server.json_body import parse
from trimtab.server.keys import KeyRing

MAX_BODY_BYTES = 4096
ROOT = logging.getLogger("trimtab")


class LogLevel(msgspec.Struct, forbid_unknown_fields=True):
    level: Literal["debug", "info", "warning", "error"]


def routes(desk: Desk, keys: KeyRing) -> list[Route]:
    async def reset_prefix_cache(request: Request) -> Response:
        """Requests that come from now on compute everything themselves, and each other's."""
        desk.require_ready()
        await desk.engine.reset_prefix_cache()
        return JSONResponse({"status": "ok"})

    async def log_level(request: Request) -> Response:
        """At info, each request is logged; never what was said in it."""
        body = await read_json_body(request, MAX_BODY_BYTES)
        asked = parse(body, LogLevel, _no_more)
        ROOT.setLevel(asked.level.upper())
        return JSONResponse({"status": "ok", "level": asked.level})

    async def stats(request: Request) -> Response:
        return JSONResponse(await _stats(desk, keys))

    return [
        Route("/v1/admin/reset_prefix_cache", reset_prefix_cache, methods=["POST"]),
        Route("/v1/admin/log_level", log_level, methods=["POST"]),
        Route("/v1/admin/stats", stats, methods=["GET"]),
    ]


def _no_more(document: dict[str, Any]) -> None:
    """There is nothing to refuse beyond what the struct does."""


async def _stats(desk: Desk, keys: KeyRing) -> dict[str, Any]:
    """Everything that is counted, and what each key has left."""
    now = perf_counter()
    engine_counts = await engine_stats(desk)
    observer = desk.observer
    return {
        "state": desk.engine.state,
        "healthy": desk.engine.healthy,
        "draining": desk.draining,
        "engine_restarts": desk.engine.num_restarts,
        "engine": None if engine_counts is None else dataclasses.asdict(engine_counts),
        "open_requests": observer.num_open,
        "finished": dict(observer.finished),
        "rejected": dict(observer.refused),
        "keys": {account.key.name: account.left(now) for account in keys},
    }
