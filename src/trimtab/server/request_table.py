"""The requests that are not finished, and what engine processes say of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from trimtab.engine.client import EngineRequest, TokenOutput
from trimtab.errors import EngineDeadError, FatalRequestError, QueueFullError, RequestError
from trimtab.server import messages
from trimtab.server.engine_counts import Pace
from trimtab.server.lineup import Lineup
from trimtab.server.live_request import LiveRequest, Sink

logger = logging.getLogger("trimtab.server")


class RequestTable:
    """add ──> live[request_id] ── Submit ──> engine process
    sink <── live[...] <── Outputs, Rejected <──┘
    """

    def __init__(self, limit: int, send: Callable[[messages.Command], None]) -> None:
        """At most `limit` requests; `send` gives a command to the present process, if any."""
        self._limit = limit
        self._send = send
        self._live: dict[str, LiveRequest] = {}  # in the order of their arrival
        self._lineup = Lineup()
        self._pace = Pace()
        self.fruitful = False  # something was emitted since this was last set to False

    def __len__(self) -> int:
        return len(self._live)

    @property
    def busy(self) -> bool:
        """The present process has work."""
        return any(live.submitted for live in self._live.values())

    def add(self, request: EngineRequest, sink: Sink) -> LiveRequest:
        """Raises QueueFullError, and RequestError for an id that is in use."""
        if len(self._live) >= self._limit:
            raise QueueFullError(
                "too many requests are running and waiting", self._pace.retry_after(self._limit)
            )
        if request.request_id in self._live:
            raise RequestError(f"request_id {request.request_id!r} is in use")
        live = LiveRequest.of(request, sink)
        self._live[request.request_id] = live
        self._submit(self._lineup.arrive(live))
        return live

    def drop(self, live: LiveRequest) -> None:
        """Forget a request that nobody wants any more; nothing if it is over."""
        if self._live.get(live.request_id) is live:
            del self._live[live.request_id]
            if live.submitted:
                self._send(messages.Abort(live.request_id))
            self._submit(self._lineup.leave(live))

    def fail_all(self, message: str) -> None:
        """End every request with EngineDeadError(message), and abort it in the engine."""
        for live in list(self._live.values()):
            self._fail(live, EngineDeadError(message))

    def fail_begun(self, message: str) -> None:
        """End those that another model would continue."""
        logger.error("%s: requests that had begun are given up", message)
        for live in list(self._live.values()):
            if live.begun:
                self._fail(live, EngineDeadError(message))

    # -- what a process says

    def take_outputs(self, outputs: Iterable[TokenOutput]) -> None:
        """Of one step. The hot path of the front process."""
        requests, lineup = self._live, self._lineup
        for output in outputs:
            live = requests.get(output.request_id)
            if live is None:
                continue
            self.fruitful = True
            if output.finish_reason is not None:
                del requests[output.request_id]
                self._pace.finished()
                self._submit(lineup.leave(live))
            live.take(output)
            if lineup.in_trial and output.request_id in requests:
                self._submit(lineup.progress(live))

    def reject(self, event: messages.Rejected) -> None:
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

    def begin(self) -> None:
        """A process is ready: it gets what is held."""
        self._submit(self._lineup.begin())

    def end(self) -> None:
        """The process is as good as gone: from here on requests are held for the next one."""
        guilty = self._lineup.end(self._live.values())
        if guilty is not None:
            logger.error("giving up request %s: it ends the engine process", guilty.request_id)
            self._fail(guilty, FatalRequestError("the engine process ended each time it ran this"))

    def _submit(self, requests: Iterable[LiveRequest]) -> None:
        for live in requests:
            self._send(messages.Submit(live.to_submit()))

    def _fail(self, live: LiveRequest, error: Exception) -> None:
        self.drop(live)
        live.sink(error)
