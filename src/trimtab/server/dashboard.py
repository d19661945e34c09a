"""`/dashboard.json`, what a live page shows, and `/metrics`: the routes that tell how it goes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from time import perf_counter
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from trimtab.engine.client import EngineStats, SpeculationStats
from trimtab.errors import EngineDeadError
from trimtab.server.api_errors import JSONResponse
from trimtab.server.desk import Desk
from trimtab.server.observation import Observer
from trimtab.server.tally import WINDOW_SECONDS, Distribution, Second, percentile

SHARES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
RATE_SECONDS = 5  # whole seconds that the present rates are means of


def routes(desk: Desk) -> list[Route]:
    async def metrics(request: Request) -> Response:
        """Answered while the engine loads or is gone, too, without its part."""
        library = await asyncio.to_thread(_metrics)
        text = library.scrape(desk, await engine_stats(desk))
        return Response(text, media_type=library.CONTENT_TYPE)

    async def dashboard(request: Request) -> Response:
        return JSONResponse(dashboard_of(desk, await engine_stats(desk)))

    return [
        Route("/metrics", metrics, methods=["GET"]),
        Route("/dashboard.json", dashboard, methods=["GET"]),
    ]


async def engine_stats(desk: Desk) -> EngineStats | None:
    try:
        return await desk.engine.stats()
    except EngineDeadError:
        return None


def _metrics() -> Any:
    """Imported for the first scrape: the library takes as long as a tenth of the server's start."""
    from trimtab.server import metrics

    return metrics


def blocks_of(stats: EngineStats) -> dict[str, int]:
    """KV blocks by state; they add up to all."""
    return {
        "used": stats.num_blocks - stats.num_free_blocks,
        "cached": stats.num_cached_blocks,
        "empty": stats.num_free_blocks - stats.num_cached_blocks,
    }


def parts_of(stats: EngineStats) -> dict[str, float]:
    """Seconds of all steps by part."""
    return {
        "schedule": stats.schedule_seconds,
        "draft": stats.draft_seconds,
        "build": stats.build_seconds,
        "execute": stats.execute_seconds,
        "commit": stats.commit_seconds,
        "between": stats.between_seconds,
    }


def dashboard_of(desk: Desk, stats: EngineStats | None) -> dict[str, Any]:
    """What a live page shows: the present, the last minute, the engine. Times in milliseconds."""
    now = perf_counter()
    observer = desk.observer
    seconds = observer.recent.seconds(now)
    engine = desk.engine
    document: dict[str, Any] = {
        "model": desk.model.name,
        "plan": None if stats is None else engine.info.executor,
        "uptime_seconds": round(now - observer.started, 1),
        "state": "draining" if desk.draining else engine.state,
        "engine_restarts": engine.num_restarts,
        "open_requests": observer.num_open,
        "tokens_per_second": _rates(observer, seconds, now),
        "last_minute": {
            "requests": sum(one.num_finished for one in seconds),
            "prompt_tokens": sum(one.num_prompt_tokens for one in seconds),
            "generated_tokens": sum(one.num_generated_tokens for one in seconds),
            "first_token_ms": _percentiles(
                observer.totals.first_token, [one.first_token for one in seconds]
            ),
            "inter_token_ms": _percentiles(observer.totals.token, [one.token for one in seconds]),
            "generated_tokens_by_second": _by_second(seconds, now),
        },
        "engine": None,
    }
    if stats is not None:
        config = desk.engine.info
        document["engine"] = {
            "running": stats.num_running,
            "waiting": stats.num_waiting,
            "max_running": config.max_running_requests,
            "max_waiting": config.max_queued_requests,
            "blocks": blocks_of(stats),
            "preemptions": stats.num_preemptions,
            "steps": stats.num_steps,
            "mean_step_tokens": _share(stats.num_step_tokens, stats.num_steps),
            "prefix_cache_hit_rate": _share(
                stats.num_cached_prompt_tokens, stats.num_prompt_tokens
            ),
            "speculation": _speculation(stats.speculation),
            "step_seconds": {name: round(one, 3) for name, one in parts_of(stats).items()},
        }
    return document


def _speculation(stats: SpeculationStats | None) -> dict[str, Any] | None:
    if stats is None:
        return None
    return {
        "drafted": stats.num_drafted,
        "accepted": stats.num_accepted,
        "acceptance_rate": _share(stats.num_accepted, stats.num_drafted),
        "accepted_by_proposer": stats.accepted_by_proposer,
    }


def _rates(observer: Observer, seconds: Sequence[Second], now: float) -> dict[str, float]:
    """Means of the last whole seconds, or of all since the start."""
    last = int(now)
    span = min(float(RATE_SECONDS), max(1.0, last - observer.started))
    window = [one for one in seconds if last - RATE_SECONDS <= one.second < last]
    return {
        "prompt": round(sum(one.num_prompt_tokens for one in window) / span, 2),
        "generated": round(sum(one.num_generated_tokens for one in window) / span, 2),
    }


def _by_second(seconds: Sequence[Second], now: float) -> list[int]:
    """Tokens of each whole second of the last minute, the oldest first."""
    known = {one.second: one.num_generated_tokens for one in seconds}
    last = int(now)
    return [known.get(second, 0) for second in range(last - WINDOW_SECONDS + 1, last)]


def _percentiles(counted: Distribution, counts: Sequence[list[int]]) -> dict[str, float | None]:
    total = [sum(column) for column in zip(*counts, strict=True)] or [0]
    found = {name: percentile(counted.bounds, total, share) for name, share in SHARES.items()}
    return {name: None if one is None else round(one * 1000, 3) for name, one in found.items()}


def _share(part: float, whole: float) -> float | None:
    return round(part / whole, 4) if whole else None
