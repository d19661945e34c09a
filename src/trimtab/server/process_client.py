"""ProcessEngineClient: an EngineClient whose engine lives in a supervised child process.

    submit ──> live[request_id] ── Submit ──> engine process
    consumer <── live[...].events <── Outputs, Rejected <──┘

The front keeps the whole of each live request, so that a later version can hand it to a new
process; today a request that loses its engine ends with EngineDeadError.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Literal

import msgspec
import zmq
import zmq.asyncio

from trimtab import environment
from trimtab.config import ExecutorConfig, SchedulerConfig
from trimtab.engine.client import EngineInfo, EngineRequest, EngineStats, TokenOutput
from trimtab.errors import EngineDeadError, QueueFullError, RequestError, UserError
from trimtab.server import messages
from trimtab.server.child import EngineChild

logger = logging.getLogger("trimtab.server")

DEFAULT_LOADER = "trimtab.server.loading:load"

EngineState = Literal["loading", "ready", "down", "closed"]


@dataclass(frozen=True)
class SupervisionPolicy:
    """When an engine process counts as lost, and how soon the next one starts."""

    poll_seconds: float = 0.1
    fresh_seconds: float = 5.0  # a heartbeat older than this makes /health fail
    silent_seconds: float = 10.0  # without any message for so long, the process is killed
    silent_loading_seconds: float = 300.0  # the same while it loads: packing may hold it up
    stalled_seconds: float = 600.0  # with work but without a finished step for so long, too
    first_backoff_seconds: float = 0.5
    max_backoff_seconds: float = 30.0
    last_words_seconds: float = 0.5  # for what a process said before it ended
    stop_seconds: float = 5.0


@dataclass
class LiveRequest:
    request: EngineRequest
    events: asyncio.Queue[TokenOutput | Exception] = field(default_factory=asyncio.Queue)


class ProcessEngineClient:
    """See EngineClient. `launch` and `started` before use, in the main thread's event loop;
    `close` at the end."""

    def __init__(
        self,
        model: str,
        executor: ExecutorConfig,
        scheduler: SchedulerConfig,
        *,
        loader: str = DEFAULT_LOADER,
        policy: SupervisionPolicy | None = None,
    ) -> None:
        self._launch = messages.Launch(
            model, executor, scheduler, "", loader, 0, environment.debug_checks()
        )
        self._policy = policy or SupervisionPolicy()
        self._limit = scheduler.max_num_requests + scheduler.max_queued_requests
        self._state: EngineState = "loading"
        self._info: EngineInfo | None = None
        self._stats: EngineStats | None = None
        self._live: dict[str, LiveRequest] = {}
        self._child: EngineChild | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._first_start: asyncio.Future[None] | None = None
        self._last_progress = 0.0
        self._context: zmq.asyncio.Context | None = None

    # -- what the layers above ask

    @property
    def state(self) -> EngineState:
        return self._state

    @property
    def healthy(self) -> bool:
        """The engine's loop runs: it is ready and said so less than five seconds ago."""
        child = self._child
        return (
            self._state == "ready"
            and child is not None
            and time.monotonic() - child.last_event < self._policy.fresh_seconds
        )

    @property
    def engine_pid(self) -> int | None:
        return self._child.pid if self._child is not None else None

    @property
    def info(self) -> EngineInfo:
        if self._info is None:
            raise EngineDeadError("the engine has not started yet")
        return self._info

    async def stats(self) -> EngineStats:
        """As of the engine's last step or heartbeat, half a second ago at most."""
        if self._stats is None:
            raise EngineDeadError("the engine has not started yet")
        return self._stats

    async def generate(self, request: EngineRequest) -> AsyncIterator[TokenOutput]:
        if self._state != "ready" or self._child is None:
            raise EngineDeadError(f"the engine is {self._state}")
        if len(self._live) >= self._limit:
            raise QueueFullError("too many requests are running and waiting")
        if request.request_id in self._live:
            raise RequestError(f"request_id {request.request_id!r} is in use")
        live = LiveRequest(request)
        self._live[request.request_id] = live
        finished = False
        try:
            self._child.send(messages.Submit(request))
            while not finished:
                event = await live.events.get()
                if isinstance(event, Exception):
                    finished = True
                    raise event
                finished = event.finish_reason is not None
                yield event
        finally:
            self._live.pop(request.request_id, None)
            if not finished and self._child is not None:
                self._child.send(messages.Abort(request.request_id))

    async def abort(self, request_id: str) -> None:
        live = self._live.pop(request_id, None)
        if live is not None and self._child is not None:
            self._child.send(messages.Abort(request_id))
            live.events.put_nowait(TokenOutput(request_id, [], finish_reason="abort"))

    def fail_all(self, message: str) -> None:
        """End every live request with EngineDeadError(message), and abort it in the engine."""
        live, self._live = self._live, {}
        for request_id, one in live.items():
            one.events.put_nowait(EngineDeadError(message))
            if self._child is not None and self._state == "ready":
                self._child.send(messages.Abort(request_id))

    # -- life and death of the process

    async def launch(self) -> None:
        """Start the engine process; returns while it loads."""
        self._context = zmq.asyncio.Context()
        self._first_start = asyncio.get_running_loop().create_future()
        self._supervisor = asyncio.create_task(self._supervise())
        await asyncio.sleep(0)  # there the supervisor starts it

    async def started(self) -> None:
        """Returns when the launched process is ready.

        Raises UserError with the process's own one line if the model or a setting is at fault, and
        EngineDeadError if it died for another reason. Later deaths are mended, not raised.
        """
        assert self._first_start is not None
        await asyncio.shield(self._first_start)

    async def close(self) -> None:
        """Ends the process. Live requests fail. Idempotent."""
        grace = self._policy.stop_seconds if self._state == "ready" else 0.0
        self._state = "closed"
        self.fail_all("the server is shutting down")
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)
            self._supervisor = None
        if self._child is not None:
            child, self._child = self._child, None
            await child.stop(grace)
        if self._context is not None:
            self._context.destroy(0)
            self._context = None
        if self._first_start is not None and self._first_start.done():
            self._first_start.exception()  # nobody may have waited for it

    async def _supervise(self) -> None:
        """One engine process after another, for ever; only a failed first start ends it."""
        assert self._first_start is not None
        backoff = self._policy.first_backoff_seconds
        while True:
            started = time.monotonic()
            error = await self._run_one()
            if not self._first_start.done():
                self._first_start.set_exception(error)
                return
            if time.monotonic() - started > self._policy.max_backoff_seconds:
                backoff = self._policy.first_backoff_seconds
            logger.error("%s; starting another in %.1f s", error, backoff)
            await asyncio.sleep(backoff)
            backoff = min(2 * backoff, self._policy.max_backoff_seconds)

    async def _run_one(self) -> Exception:
        """One process from its start to its end, and what must follow; says why it ended."""
        assert self._context is not None
        assert self._first_start is not None
        try:
            child = EngineChild(self._context, self._launch)
        except (OSError, zmq.ZMQError) as error:
            return EngineDeadError(f"the engine process cannot be started: {error}")
        self._child = child
        loss = await self._watch(child)
        self._child = self._stats = None
        if self._first_start.done():
            self._state = "down"
        self.fail_all("the engine stopped while the request was running")
        await child.stop(0)
        return loss

    async def _watch(self, child: EngineChild) -> Exception:
        """Serve one process until it is lost; says why."""
        reading = asyncio.create_task(self._read(child))
        try:
            while True:
                done, _ = await asyncio.wait({reading}, timeout=self._policy.poll_seconds)
                if done:
                    return reading.result()
                if child.exit_status() is not None:
                    # What it said last may still be on its way.
                    await asyncio.wait({reading}, timeout=self._policy.last_words_seconds)
                    if reading.done():
                        return reading.result()
                    return EngineDeadError(f"the engine process {child.describe_exit()}")
                if loss := self._loss(child):
                    return EngineDeadError(f"the engine process {loss}")
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    def _loss(self, child: EngineChild) -> str | None:
        now = time.monotonic()
        ready = self._state == "ready"
        limit = self._policy.silent_seconds if ready else self._policy.silent_loading_seconds
        if now - child.last_event > limit:
            return f"has been silent for {limit:g} s"
        if ready and self._live and now - self._last_progress > self._policy.stalled_seconds:
            return f"has not finished a step for {self._policy.stalled_seconds:g} s"
        return None

    async def _read(self, child: EngineChild) -> Exception:
        """Take in events until the process says that it cannot go on."""
        while True:
            try:
                event = await child.receive()
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                return EngineDeadError(f"the engine process sent a malformed message: {error}")
            if isinstance(event, messages.Outputs):
                self._note_stats(event.stats)
                for output in event.outputs:
                    if live := self._live.get(output.request_id):
                        live.events.put_nowait(output)
            elif isinstance(event, messages.Heartbeat):
                if event.stats is not None:
                    self._note_stats(event.stats)
            elif isinstance(event, messages.Rejected):
                if live := self._live.get(event.request_id):
                    live.events.put_nowait(_rejection(event))
            elif isinstance(event, messages.Ready):
                self._become_ready(event)
            else:
                return (UserError if event.user_error else EngineDeadError)(event.message)

    def _become_ready(self, event: messages.Ready) -> None:
        self._info = event.info
        self._stats = event.stats
        self._state = "ready"
        self._last_progress = time.monotonic()
        assert self._first_start is not None
        if not self._first_start.done():
            self._first_start.set_result(None)
        else:
            logger.warning("the engine process is back")

    def _note_stats(self, stats: EngineStats) -> None:
        idle = stats.num_running == 0 and stats.num_waiting == 0
        if self._stats is None or idle or stats.num_steps != self._stats.num_steps:
            self._last_progress = time.monotonic()
        self._stats = stats


def _rejection(event: messages.Rejected) -> Exception:
    if event.reason == "request":
        return RequestError(event.message, event.param, event.code)
    if event.reason == "queue_full":
        return QueueFullError(event.message)
    return EngineDeadError(f"the engine failed to run the request: {event.message}")
