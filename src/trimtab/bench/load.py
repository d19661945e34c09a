"""A load on any OpenAI server, and whether its figures can be believed."""

from __future__ import annotations

import asyncio
import gc
import resource
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from trimtab.bench.http_stream import ConnectionPool
from trimtab.bench.lateness import Lateness, LatenessMeter
from trimtab.bench.load_answer import BY_EVENTS, BY_USAGE_AND_LENGTH, CountTokens
from trimtab.bench.load_client import LoadClient
from trimtab.bench.load_prompts import MakeText, Prompts, route_of, warm_up_workload
from trimtab.bench.load_state import LoadOptions, LoadProgress, Outcome
from trimtab.bench.load_target import Endpoint, Target, parse_url, resolve
from trimtab.bench.pacing import Pacer
from trimtab.bench.real_time import real_time_priority
from trimtab.bench.saturation import Saturation
from trimtab.errors import UserError
from trimtab.workloads.records import RequestRecord
from trimtab.workloads.requests import Piece, Workload
from trimtab.workloads.slo import Slo
from trimtab.workloads.texts import PieceTexts

Result = TypeVar("Result")
OPEN_AHEAD = 32  # connections, before the load


@dataclass(frozen=True)
class LoadRun:
    """One load. If not `valid`, the client was the limit, and `why` says how: the records tell
    nothing about the server."""

    records: list[RequestRecord]
    lateness: Lateness
    valid: bool
    why: str
    model: str
    route: str
    server: str  # as it calls itself
    exact_lengths: bool  # it takes ignore_eos and min_tokens
    counted_by: dict[str, int]  # how tokens were counted -> answers
    statuses: dict[int, int]  # HTTP status -> answers
    saturation: Saturation | None
    elapsed: float  # seconds
    started: float  # of the wall clock
    num_warm_up: int
    num_unsent: int
    num_short: int
    num_retried: int
    num_resent: int  # on a new connection, because the server had closed the one that was kept
    peak_in_flight: int
    max_concurrency: int | None
    real_time: bool = False  # the client had real-time priority
    interrupted: bool = False
    notes: tuple[str, ...] = field(default=())


def run_load(
    target: Target,
    workload: Workload,
    *,
    make_text: MakeText | None = None,
    count_tokens: CountTokens | None = None,
    slo: Slo | None = None,
    options: LoadOptions | None = None,
    progress: Callable[[LoadProgress], None] | None = None,
) -> LoadRun:
    """Sends `workload` to `target` and waits until the last answer has ended.

    `make_text` writes out the pieces of a prompt (`PieceTexts` of the model's tokenizer; without,
    about four characters a token); `count_tokens` is the model's tokenizer, for
    servers whose events do not say how many tokens they bring. `slo` sets how late the client may
    be. `progress` is called twice a second, inside the measured process: it must be quick. SIGINT
    ends the load early, with what there is.

    Raises UserError if the server cannot be reached or refuses every form of request.
    """
    options = options or LoadOptions()
    _raise_file_limit()
    work = _run(target, workload, make_text or _plain_texts(), count_tokens, slo, options, progress)
    return in_fast_loop(work)


def _plain_texts() -> MakeText:
    texts = PieceTexts()

    def make_text(pieces: Sequence[Piece]) -> str:
        return texts.prompt(pieces).text

    return make_text


def in_fast_loop(work: Coroutine[Any, Any, Result]) -> Result:
    """asyncio.run, on uvloop where it is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(work)
    return uvloop.run(work)


async def _run(
    target: Target,
    workload: Workload,
    make_text: MakeText,
    count_tokens: CountTokens | None,
    slo: Slo | None,
    options: LoadOptions,
    progress: Callable[[LoadProgress], None] | None,
) -> LoadRun:
    loop = asyncio.get_running_loop()
    endpoint = parse_url(target)
    route = route_of(workload, target.route)
    endpoint = replace(endpoint, route=route, asks_token_ids=options.token_ids)
    pool, pacer = ConnectionPool(loop, endpoint.address), Pacer(loop)
    try:
        try:
            await pool.open(1)
        except (OSError, asyncio.TimeoutError) as error:
            raise UserError(f"{target.url}: nobody answers there ({error})") from None
        endpoint = await resolve(pool, endpoint)
        prompts = Prompts(endpoint, make_text)
        num_warm_up = await _warm_up(pool, pacer, prompts, workload, options)
        if options.on_start is not None:
            options.on_start()
        await _open_ahead(pool, workload)
        meter = LatenessMeter(pacer)
        client = LoadClient(pool, pacer, prompts, workload, options, meter, count_tokens, progress)
        client.prepare()
        started = time.time()
        with (
            _no_collection(),
            _stop_on_interrupt(loop, client) as interrupted,
            real_time_priority() as is_real_time,
        ):
            outcome = await client.run()
            lateness = meter.stop(slo)
        client.recount()
    finally:
        pacer.close()
        await pool.close()
    reasons = lateness.reasons_against()
    return LoadRun(
        records=outcome.records,
        lateness=lateness,
        valid=not reasons,
        why="; ".join(reasons),
        model=endpoint.model,
        route=endpoint.route,
        server=endpoint.server,
        exact_lengths=endpoint.takes_exact_lengths,
        counted_by=dict(outcome.sources),
        statuses=dict(outcome.statuses),
        saturation=outcome.saturation,
        elapsed=outcome.elapsed,
        started=started,
        num_warm_up=num_warm_up,
        num_unsent=outcome.num_unsent,
        num_short=outcome.num_short,
        num_retried=outcome.num_retried,
        num_resent=pool.num_resent,
        peak_in_flight=outcome.peak_in_flight,
        max_concurrency=options.max_concurrency,
        real_time=is_real_time,
        interrupted=bool(interrupted),
        notes=tuple(_notes(endpoint, outcome, pool, options, bool(interrupted))),
    )


async def _warm_up(
    pool: ConnectionPool,
    pacer: Pacer,
    prompts: Prompts,
    workload: Workload,
    options: LoadOptions,
) -> int:
    if options.warm_up < 1:
        return 0
    warm = warm_up_workload(workload, options.warm_up, concurrency=min(4, options.warm_up))
    limits = LoadOptions(request_seconds=options.request_seconds)
    outcome = await LoadClient(pool, pacer, prompts, warm, limits).run()
    errors = [record.error for record in outcome.records if record.error is not None]
    if errors and len(errors) == len(outcome.records):
        raise UserError(f"every request of the warm-up failed: {errors[0]}")
    return len(outcome.records)


async def _open_ahead(pool: ConnectionPool, workload: Workload) -> None:
    wanted = workload.concurrency or min(OPEN_AHEAD, len(workload.requests))
    with suppress(OSError, asyncio.TimeoutError):
        await pool.open(min(wanted, 4 * OPEN_AHEAD))


def _notes(
    endpoint: Endpoint,
    outcome: Outcome,
    pool: ConnectionPool,
    options: LoadOptions,
    interrupted: bool,
) -> Iterator[str]:
    if interrupted:
        yield "interrupted: this is what there was until then"
    if outcome.saturation is not None:
        yield outcome.saturation.line()
    if outcome.num_unsent:
        yield f"{outcome.num_unsent} requests were not sent: the load was ended before"
    if not endpoint.streams:
        yield "the server does not stream: the time to the first token is that of the whole answer"
    if not endpoint.takes_exact_lengths:
        yield "the server does not take ignore_eos: it decides how long its answers are"
    if outcome.num_short:
        yield f"{outcome.num_short} answers were shorter than planned"
    for source in (BY_EVENTS, BY_USAGE_AND_LENGTH):
        if number := outcome.sources.get(source):
            yield f"tokens of {number} answers were counted by {source}"
    if options.max_concurrency is not None:
        yield (
            f"no more than {options.max_concurrency} requests at once, as asked: waiting for a "
            "place is part of the latencies"
        )
    if outcome.num_retried:
        yield f"{outcome.num_retried} times asked again after Retry-After; the wait is latency"
    if pool.num_resent:
        yield f"{pool.num_resent} requests met a connection that the server had closed"


@contextmanager
def _no_collection() -> Iterator[None]:
    """A full collection stops the client for tens of milliseconds."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()


@contextmanager
def _stop_on_interrupt(loop: asyncio.AbstractEventLoop, client: LoadClient) -> Iterator[list[bool]]:
    interrupted: list[bool] = []

    def stop() -> None:
        interrupted.append(True)
        client.stop()

    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return
    loop.add_signal_handler(signal.SIGINT, stop)
    try:
        yield interrupted
    finally:
        loop.remove_signal_handler(signal.SIGINT)


def _raise_file_limit() -> None:
    """A connection for each request in flight may be more than the 1,024 that shells allow."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
