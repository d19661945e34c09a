"""ProcessEngineClient: an EngineClient whose engine lives in a supervised child process.

When the process is lost another one starts, and every live request goes on there behind the tokens
it has: by the law of docs/numerics.md exactly as it would have. What the lost process had emitted
and nobody read is emitted again; its consumer notices nothing but a pause. Requests that come in
the meantime wait for it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Literal

import msgspec

from trimtab import environment
from trimtab.config import ExecutorConfig, SchedulerConfig
from trimtab.engine.client import EngineInfo, EngineRequest, EngineStats, TokenOutput
from trimtab.errors import EngineDeadError, UserError
from trimtab.server import messages
from trimtab.server.child import EngineChild
from trimtab.server.engine_counts import sum_stats, without_counts
from trimtab.server.live_request import Sink
from trimtab.server.request_table import RequestTable
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
            model, executor, scheduler, -1, loader, 0, environment.debug_checks()
        )
        self._policy = policy or SupervisionPolicy()
        limit = scheduler.max_num_requests + scheduler.max_queued_requests
        self._requests = RequestTable(limit, self._send)
        self._state: EngineState = "loading"
        self._info: EngineInfo | None = None
        self._stats: EngineStats | None = None
        self._earlier_stats: EngineStats | None = None  # of all processes that are gone
        self._num_restarts = 0
        self._restarts = Restarts(self._policy)
        self._child: EngineChild | None = None
        self._watchdog = Watchdog(self._policy)
        self._ready_since: float | None = None  # of the present process
        self._last_start_failed = False
        self._first_load_seconds: float | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._ticking: asyncio.TimerHandle | None = None  # until the watchdog looks again
        self._first_start: asyncio.Future[None] | None = None

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
                num_waiting=len(self._requests),
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
        live = self._requests.add(request, sink)
        return lambda: self._requests.drop(live)

    async def reset_prefix_cache(self) -> None:
        """See EngineClient. A process that is yet to come has nothing to forget."""
        self._send(messages.ResetPrefixCache())

    def fail_all(self, message: str) -> None:
        """End every live request with EngineDeadError(message), and abort it in the engine."""
        self._requests.fail_all(message)

    def _send(self, command: messages.Command) -> None:
        if self._child is not None:
            self._child.send(command)

    # -- life and death of the process

    async def launch(self) -> None:
        """Start the engine process; returns while it loads."""
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
        self._requests.fruitful, self._ready_since = False, None
        self._watchdog = Watchdog(self._policy)
        lost: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        try:
            child = EngineChild(self._next_launch(), lambda frame: self._take_frame(frame, lost))
        except OSError as error:
            self._last_start_failed = True
            return EngineDeadError(f"the engine process cannot be started: {error}")
        self._child = child
        try:
            loss = await self._watch(child, lost)
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
        """The process is as good as gone."""
        self._requests.end()
        self._last_start_failed = self._ready_since is None
        if self._state == "ready":
            self._state = "restarting"
        if self._ready_since is not None and self._stats is not None:
            self._earlier_stats = sum_stats(self._earlier_stats, self._stats)
            self._stats = without_counts(self._stats)

    def _after(self, loss: Exception) -> float:
        """What follows a loss; seconds until the next start."""
        served = 0.0 if self._ready_since is None else time.monotonic() - self._ready_since
        fruitful = self._requests.fruitful or served > self._policy.stable_seconds
        delay = self._restarts.ended(fruitful=fruitful)
        self._num_restarts += 1
        when = f" in {delay:g} s" if delay else ""
        logger.error("%s; starting another%s for %d requests", loss, when, len(self._requests))
        if self._restarts.hopeless:
            self._state = "down"
            self.fail_all(f"the engine does not start again: {loss}")
        return delay

    async def _watch(self, child: EngineChild, lost: asyncio.Future[Exception]) -> Exception:
        """Serve one process until it is lost; says why. `lost` says so where something else than
        the end of the process tells it."""
        self._tick(child, lost)
        try:
            await asyncio.wait({lost, child.exited}, return_when=asyncio.FIRST_COMPLETED)
            if not lost.done():
                # What it said last may still be on its way: tokens, or why it did not start.
                serving = self._ready_since is not None
                await asyncio.wait(
                    {lost}, timeout=0.1 if serving else self._policy.last_words_seconds
                )
            if lost.done():
                return lost.result()
            return EngineDeadError(f"the engine process {child.describe_exit()}")
        finally:
            lost.cancel()
            if self._ticking is not None:
                self._ticking.cancel()

    def _tick(self, child: EngineChild, lost: asyncio.Future[Exception]) -> None:
        """Every `poll_seconds`. A plain timer: a task would cost several times as much."""
        if lost.done() or child.exit_status() is not None:
            return
        if self._ready_since is None:
            trouble = self._watchdog.tick_loading(self._first_load_seconds)
        else:
            trouble = self._watchdog.tick(busy=self._requests.busy)
        if trouble:
            lost.set_result(EngineDeadError(f"the engine process {trouble}"))
            return
        loop = asyncio.get_running_loop()
        self._ticking = loop.call_later(self._policy.poll_seconds, self._tick, child, lost)

    def _take_frame(self, frame: bytes, lost: asyncio.Future[Exception]) -> None:
        """What the process says. Once it is `lost` nothing counts any more."""
        if lost.done():
            return
        try:
            event = messages.decode_event(frame)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            problem = f"the engine process sent a malformed message: {error}"
            lost.set_result(EngineDeadError(problem))
            return
        try:
            loss = self._take_event(event)
        except Exception as error:  # a bug of ours
            lost.set_exception(error)
        else:
            if loss is not None and not lost.done():
                lost.set_result(loss)

    def _take_event(self, event: messages.Event) -> Exception | None:
        """What it says when it cannot go on; else None."""
        self._watchdog.heard()
        if isinstance(event, messages.Outputs):
            if event.stats is not None:
                self._note_stats(event.stats)
            self._requests.take_outputs(event.outputs)
        elif isinstance(event, messages.Heartbeat):
            if event.stats is not None:
                self._note_stats(event.stats)
        elif isinstance(event, messages.Rejected):
            self._watchdog.refused()
            self._requests.reject(event)
        elif isinstance(event, messages.Ready):
            self._become_ready(event)
        else:
            return (UserError if event.user_error else EngineDeadError)(event.message)
        return None

    def _become_ready(self, event: messages.Ready) -> None:
        assert self._first_start is not None
        assert self._child is not None
        changed = self._info is not None and self._info.identity != event.info.identity
        self._info = event.info
        self._note_stats(event.stats)
        self._state = "ready"
        self._ready_since = time.monotonic()
        seconds = self._ready_since - self._child.started_at
        if not self._first_start.done():
            self._first_load_seconds = seconds
            self._first_start.set_result(None)
        else:
            if changed:
                self._requests.fail_begun("the model was changed while the engine restarted")
            number = len(self._requests)
            logger.warning("the engine process is back after %.1f s; %d go on", seconds, number)
        self._requests.begin()

    def _note_stats(self, stats: EngineStats) -> None:
        self._watchdog.note(stats)
        self._stats = stats
