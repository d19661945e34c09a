"""ProcessEngineClient: an EngineClient whose engine lives in a supervised child process.

    generate ──> live[request_id] ── Submit ──> engine process
    consumer <── live[...].events <── Outputs, Rejected <──┘

When the process is lost another one starts, and every live request goes on there behind the tokens
it has: by the law of docs/numerics.md exactly as it would have. What the lost process had emitted
and nobody read is emitted again; its consumer notices nothing but a pause. Requests that come in
the meantime wait for it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import replace
from typing import Literal

import msgspec
import zmq

from trimtab import environment
from trimtab.config import ExecutorConfig, SchedulerConfig
from trimtab.engine.client import EngineInfo, EngineRequest, EngineStats, TokenOutput
from trimtab.errors import (
    EngineDeadError,
    FatalRequestError,
    QueueFullError,
    RequestError,
    UserError,
)
from trimtab.server import messages
from trimtab.server.child import EngineChild
from trimtab.server.engine_counts import Pace, sum_stats, without_counts
from trimtab.server.lineup import Lineup
from trimtab.server.live_request import LiveRequest, Sink
from trimtab.server.watchdog import Restarts, SupervisionPolicy, Watchdog

logger = logging.getLogger("trimtab.server")

DEFAULT_LOADER = "trimtab.server.loading:load"

# loading: the first start. restarting: requests are taken and wait. down: it did not come back, and
# they are refused; starts go on.
EngineState = Literal["loading", "ready", "restarting", "down", "closed"]


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
        self._earlier_stats: EngineStats | None = None  # of all processes that are gone
        self._num_restarts = 0
        self._live: dict[str, LiveRequest] = {}  # not finished, in the order of their arrival
        self._pace = Pace()
        self._lineup = Lineup()
        self._restarts = Restarts(self._policy)
        self._child: EngineChild | None = None
        self._watchdog = Watchdog(self._policy)
        self._fruitful = False  # the present process has emitted something
        self._ready_since: float | None = None  # of the present process
        self._last_start_failed = False
        self._first_load_seconds: float | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._first_start: asyncio.Future[None] | None = None
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None

    # -- what the layers above ask

    @property
    def state(self) -> EngineState:
        return self._state

    @property
    def healthy(self) -> bool:
        """The engine is there, said so less than five seconds ago, and if it has work, its last
        progress is not older either."""
        return self._state == "ready" and self._watchdog.fresh

    @property
    def num_restarts(self) -> int:
        """Engine processes that were lost since the first one was ready."""
        return self._num_restarts

    @property
    def engine_pid(self) -> int | None:
        return self._child.pid if self._child is not None else None

    @property
    def info(self) -> EngineInfo:
        if self._info is None:
            raise EngineDeadError("the engine has not started yet")
        return self._info

    async def stats(self) -> EngineStats:
        """As of the engine's last step or heartbeat, a second ago at most. Counters go on over
        restarts; while there is no engine, every live request is waiting."""
        if self._stats is None:
            raise EngineDeadError("the engine has not started yet")
        stats = self._stats
        if self._state != "ready":
            stats = replace(
                stats,
                num_running=0,
                num_waiting=len(self._live),
                num_free_blocks=stats.num_blocks,
                num_cached_blocks=0,
            )
        return stats if self._earlier_stats is None else sum_stats(self._earlier_stats, stats)

    async def generate(self, request: EngineRequest) -> AsyncIterator[TokenOutput]:
        events: asyncio.Queue[TokenOutput | Exception] = asyncio.Queue()
        cancel = self.submit(request, events.put_nowait)
        try:
            while True:
                event = await events.get()
                if isinstance(event, Exception):
                    raise event
                yield event
                if event.finish_reason is not None:
                    return
        finally:
            cancel()

    def submit(self, request: EngineRequest, sink: Sink) -> Callable[[], None]:
        """See SupervisedEngine."""
        if self._state not in ("ready", "restarting"):
            raise EngineDeadError(f"the engine is {self._state}")
        if len(self._live) >= self._limit:
            raise QueueFullError(
                "too many requests are running and waiting", self._pace.retry_after(self._limit)
            )
        if request.request_id in self._live:
            raise RequestError(f"request_id {request.request_id!r} is in use")
        live = LiveRequest.of(request, sink)
        self._live[request.request_id] = live
        self._submit(self._lineup.arrive(live))
        return lambda: self._drop(live)

    async def abort(self, request_id: str) -> None:
        live = self._live.get(request_id)
        if live is not None:
            self._drop(live)
            live.sink(TokenOutput(request_id, [], finish_reason="abort"))

    async def reset_prefix_cache(self) -> None:
        """See EngineClient. A process that is yet to come has nothing to forget."""
        if self._child is not None:
            self._child.send(messages.ResetPrefixCache())

    def fail_all(self, message: str) -> None:
        """End every live request with EngineDeadError(message), and abort it in the engine."""
        for live in list(self._live.values()):
            self._fail(live, EngineDeadError(message))

    # -- requests

    def _submit(self, requests: Iterable[LiveRequest]) -> None:
        for live in requests:
            if self._child is not None:
                self._child.send(messages.Submit(live.to_submit()))

    def _drop(self, live: LiveRequest) -> None:
        """Forget a request that nobody wants any more; nothing if it is over."""
        if self._live.get(live.request_id) is live:
            del self._live[live.request_id]
            if live.submitted and self._child is not None:
                self._child.send(messages.Abort(live.request_id))
            self._submit(self._lineup.leave(live))

    def _fail(self, live: LiveRequest, error: Exception) -> None:
        self._drop(live)
        live.sink(error)

    def _take(self, output: TokenOutput) -> None:
        live = self._live.get(output.request_id)
        if live is None:
            return
        self._fruitful = True
        if output.finish_reason is not None:
            del self._live[output.request_id]
            self._pace.finished()
            self._submit(self._lineup.leave(live))
        live.take(output)
        if self._lineup.in_trial and output.request_id in self._live:
            self._submit(self._lineup.progress(live))

    def _reject(self, event: messages.Rejected) -> None:
        live = self._live.get(event.request_id)
        if live is None:
            return
        del self._live[event.request_id]
        self._submit(self._lineup.leave(live))
        if event.reason == "request" and not live.begun:
            error: Exception = RequestError(event.message, event.param, event.code)
        elif event.reason == "queue_full" and not live.begun:
            error = QueueFullError(event.message, self._pace.retry_after(self._limit))
        else:
            error = EngineDeadError(f"the engine failed to run the request: {event.message}")
        live.sink(error)

    # -- life and death of the process

    async def launch(self) -> None:
        """Start the engine process; returns while it loads."""
        self._context = zmq.Context()
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
        while True:
            loss = await self._run_one()
            if not self._first_start.done():
                self._first_start.set_exception(loss)
                return
            delay = self._after(loss)
            await asyncio.sleep(delay)

    async def _run_one(self) -> Exception:
        """One process from its start to its end; says why it ended. It is reaped then."""
        assert self._context is not None
        self._fruitful, self._ready_since = False, None
        self._watchdog = Watchdog(self._policy)
        try:
            child = EngineChild(self._context, self._next_launch())
        except (OSError, zmq.ZMQError) as error:
            self._last_start_failed = True
            return EngineDeadError(f"the engine process cannot be started: {error}")
        self._child = child
        try:
            loss = await self._watch(child)
        except Exception as error:  # a bug of ours: whatever it was, the engine is watched on
            logger.exception("the engine process cannot be followed any more")
            loss = EngineDeadError(f"the front failed to read from it ({type(error).__name__})")
        self._note_loss()
        await child.stop(0)
        self._child = None
        return loss

    def _next_launch(self) -> messages.Launch:
        """A restart gets the KV cache of the process before it, so that whatever was admitted there
        fits; if it did not come up like that, whatever there is room for now."""
        if self._stats is None or self._last_start_failed:
            return self._launch
        executor = replace(self._launch.executor, num_blocks=self._stats.num_blocks)
        return msgspec.structs.replace(self._launch, executor=executor)

    def _note_loss(self) -> None:
        """The process is as good as gone: from here on requests are held for the next one."""
        guilty = self._lineup.end(self._live.values())
        if guilty is not None:
            logger.error("giving up request %s: it ends the engine process", guilty.request_id)
            self._fail(guilty, FatalRequestError("the engine process ended each time it ran this"))
        self._last_start_failed = self._ready_since is None
        if self._state == "ready":
            self._state = "restarting"
        if self._ready_since is not None and self._stats is not None:
            self._earlier_stats = sum_stats(self._earlier_stats, self._stats)
            self._stats = without_counts(self._stats)

    def _after(self, loss: Exception) -> float:
        """What follows a loss; seconds until the next start."""
        served = 0.0 if self._ready_since is None else time.monotonic() - self._ready_since
        fruitful = self._fruitful or served > self._policy.stable_seconds
        delay = self._restarts.ended(fruitful=fruitful)
        self._num_restarts += 1
        when = f" in {delay:g} s" if delay else ""
        logger.error("%s; starting another%s for %d requests", loss, when, len(self._live))
        if self._restarts.hopeless:
            self._state = "down"
            self.fail_all(f"the engine does not start again: {loss}")
        return delay

    async def _watch(self, child: EngineChild) -> Exception:
        """Serve one process until it is lost; says why."""
        reading = asyncio.create_task(self._read(child))
        try:
            while True:
                await asyncio.wait(
                    {reading, child.exited},
                    timeout=self._policy.poll_seconds,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if reading.done():
                    return reading.result()
                if child.exit_status() is not None:
                    # What it said last may still be on its way: tokens, or why it did not start.
                    serving = self._ready_since is not None
                    seconds = 0.1 if serving else self._policy.last_words_seconds
                    await asyncio.wait({reading}, timeout=seconds)
                    if reading.done():
                        return reading.result()
                    return EngineDeadError(f"the engine process {child.describe_exit()}")
                if self._ready_since is None:
                    trouble = self._watchdog.tick_loading(self._first_load_seconds)
                else:
                    busy = any(live.submitted for live in self._live.values())
                    trouble = self._watchdog.tick(busy=busy)
                if trouble:
                    return EngineDeadError(f"the engine process {trouble}")
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _read(self, child: EngineChild) -> Exception:
        """Take in events until the process says that it cannot go on."""
        while True:
            try:
                event = await child.receive()
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                return EngineDeadError(f"the engine process sent a malformed message: {error}")
            self._watchdog.heard()
            if isinstance(event, messages.Outputs):
                self._note_stats(event.stats)
                for output in event.outputs:
                    self._take(output)
            elif isinstance(event, messages.Heartbeat):
                if event.stats is not None:
                    self._note_stats(event.stats)
            elif isinstance(event, messages.Rejected):
                self._watchdog.refused()
                self._reject(event)
            elif isinstance(event, messages.Ready):
                self._become_ready(event, child)
            else:
                return (UserError if event.user_error else EngineDeadError)(event.message)

    def _become_ready(self, event: messages.Ready, child: EngineChild) -> None:
        assert self._first_start is not None
        changed = self._info is not None and self._info.identity != event.info.identity
        self._info = event.info
        self._note_stats(event.stats)
        self._state = "ready"
        self._ready_since = time.monotonic()
        seconds = self._ready_since - child.started_at
        if not self._first_start.done():
            self._first_load_seconds = seconds
            self._first_start.set_result(None)
        else:
            if changed:
                self._fail_begun("the model was changed while the engine restarted")
            number = len(self._live)
            logger.warning("the engine process is back after %.1f s; %d go on", seconds, number)
        self._submit(self._lineup.begin())

    def _fail_begun(self, message: str) -> None:
        """End those that another model would continue."""
        logger.error("%s: requests that had begun are given up", message)
        for live in list(self._live.values()):
            if live.begun:
                self._fail(live, EngineDeadError(message))

    def _note_stats(self, stats: EngineStats) -> None:
        self._watchdog.note(stats)
        self._stats = stats
