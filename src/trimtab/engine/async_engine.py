"""AsyncEngine: an Engine on a thread of its own, streamed to asyncio.

    event loops                      engine thread
    (a grammar is compiled first, on a thread for that)
    generate() -- inbox: submit -->  add_request
                                     step, step, step ...
    stream     <-- one call a step and loop -- outputs
    close of the iterator: abort --> abort

The inbox is emptied between steps, so an abort takes effect within one step. The engine never waits
for a consumer: outputs that were not fetched yet are merged into one, whose size is bounded by the
request's own max_tokens.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from trimtab.engine.admission import validate_request
from trimtab.engine.client import EngineInfo, EngineRequest, EngineStats, TokenOutput
from trimtab.engine.engine import Engine
from trimtab.engine.grammar import GrammarState
from trimtab.engine.struct import replace
from trimtab.errors import EngineDeadError, QueueFullError, RequestError, TrimtabError

logger = logging.getLogger(__name__)

IDLE_CHECK_SECONDS = 10.0  # at most one invariant check in that time, and only when idle


def merge_outputs(first: TokenOutput, second: TokenOutput) -> TokenOutput:
    """What a consumer that missed `first` gets instead of both."""
    scores = second.prompt_logprobs if first.prompt_logprobs is None else first.prompt_logprobs
    logprobs = first.logprobs
    if second.logprobs is not None:
        logprobs = (logprobs or []) + second.logprobs
    return replace(
        second,
        token_ids=first.token_ids + second.token_ids,
        logprobs=logprobs,
        prompt_logprobs=scores,
        timeline=second.timeline or first.timeline,
    )


class _Stream:
    """The consumer's end of one request. Touched only on its event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._pending: TokenOutput | None = None
        self._error: TrimtabError | None = None
        self._filled = asyncio.Event()

    def put(self, item: TokenOutput | TrimtabError) -> None:
        if isinstance(item, TokenOutput):
            self._pending = item if self._pending is None else merge_outputs(self._pending, item)
        else:
            self._error = item
        self._filled.set()

    async def next(self) -> TokenOutput:
        """The outputs since the last call, as one; then the error, if one came."""
        while self._pending is None and self._error is None:
            self._filled.clear()
            await self._filled.wait()
        if self._pending is not None:
            output, self._pending = self._pending, None
            return output
        assert self._error is not None
        raise self._error


@dataclass(frozen=True)
class _Submit:
    request: EngineRequest
    stream: _Stream
    grammar: GrammarState | None


@dataclass(frozen=True)
class _Abort:
    request_id: str


class _ResetPrefixCache:
    pass


class AsyncEngine:
    """EngineClient in this process. Usable from any number of event loops; owns the engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._changed = threading.Condition()  # guards the four below
        self._inbox: deque[_Submit | _Abort | _ResetPrefixCache] = deque()
        self._streams: dict[str, _Stream] = {}
        self._closed = False  # takes no more requests
        self._stopping = False
        self._death: BaseException | None = None
        self._live: dict[str, _Stream] = {}  # the engine thread's own
        self._next_check = 0.0
        # One, so that what waits for a slow grammar is other grammars and nothing else.
        self._compiling = ThreadPoolExecutor(1, thread_name_prefix="trimtab-grammars")
        self._thread = threading.Thread(target=self._run, name="trimtab-engine", daemon=True)
        self._thread.start()
        # A daemon thread must not be inside native code while the interpreter goes down.
        atexit.register(self.shutdown)

    @property
    def info(self) -> EngineInfo:
        return self._engine.info

    async def generate(self, request: EngineRequest) -> AsyncIterator[TokenOutput]:
        """See EngineClient. The request is submitted, or refused, at the first `anext`."""
        grammar = None if request.grammar is None else await self._read_grammar(request)
        stream = self._submit(request, grammar)
        try:
            while True:
                output = await stream.next()
                yield output
                if output.finish_reason is not None:
                    return
        finally:
            self._leave(request.request_id, stream)

    async def reset_prefix_cache(self) -> None:
        """See EngineClient."""
        with self._changed:
            self._inbox.append(_ResetPrefixCache())
            self._changed.notify()

    async def stats(self) -> EngineStats:
        return self._engine.stats()

    async def close(self, drain_seconds: float = 0.0) -> None:
        """Take no more requests, give the live ones this long, abort the rest, end the thread."""
        with self._changed:
            self._closed = True
        deadline = time.monotonic() + drain_seconds
        while self._streams and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(self.shutdown)

    def shutdown(self) -> None:
        """`close` for callers without an event loop; blocks until the running step is over."""
        with self._changed:
            self._closed = self._stopping = True
            self._changed.notify()
        self._compiling.shutdown(wait=False, cancel_futures=True)
        if threading.current_thread() is not self._thread:
            self._thread.join()
        atexit.unregister(self.shutdown)

    async def _read_grammar(self, request: EngineRequest) -> GrammarState | None:
        validate_request(request, self._engine.info)
        loop = asyncio.get_running_loop()
        try:
            read = loop.run_in_executor(self._compiling, self._engine.read_grammar, request)
        except RuntimeError:  # the thread is gone
            raise EngineDeadError("the engine is closed") from None
        return await read

    def _submit(self, request: EngineRequest, grammar: GrammarState | None) -> _Stream:
        validate_request(request, self._engine.info)
        stream = _Stream(asyncio.get_running_loop())
        with self._changed:
            if self._death is not None:
                raise _dead(self._death)
            if self._closed:
                raise EngineDeadError("the engine is closed")
            if request.request_id in self._streams:
                raise RequestError(
                    f"request id {request.request_id!r} is in use", param="request_id"
                )
            if len(self._streams) >= self._engine.max_live_requests:
                raise QueueFullError(
                    f"{len(self._streams)} requests are running or waiting; try again later"
                )
            self._streams[request.request_id] = stream
            self._inbox.append(_Submit(request, stream, grammar))
            self._changed.notify()
        return stream

    def _leave(self, request_id: str, stream: _Stream) -> None:
        """The consumer is gone; if its request is still live, so it must not be."""
        with self._changed:
            if self._streams.get(request_id) is stream:
                del self._streams[request_id]
                self._inbox.append(_Abort(request_id))
                self._changed.notify()

    # Everything below runs on the engine thread.

    def _run(self) -> None:
        death: BaseException = EngineDeadError("the engine is closed")
        try:
            while self._process_inbox():
                self._deliver(self._engine.step())
        except BaseException as error:
            death = error
            logger.critical("the engine thread died", exc_info=error)
        finally:
            self._bury(death)
            self._engine.close()

    def _process_inbox(self) -> bool:
        """Apply what came in, waiting for it when idle. False when the thread should end."""
        with self._changed:
            while not self._inbox and not self._stopping and not self._engine.num_live_requests:
                self._check_when_idle()
                self._changed.wait()
            commands = list(self._inbox)
            self._inbox.clear()
            stopping = self._stopping
        for command in commands:
            if isinstance(command, _Submit):
                self._add(command)
            elif isinstance(command, _ResetPrefixCache):
                self._engine.reset_prefix_cache()
            else:
                self._deliver(filter(None, [self._engine.abort(command.request_id)]))
        if stopping:
            aborted = [self._engine.abort(request_id) for request_id in list(self._live)]
            self._deliver(filter(None, aborted))
        return not stopping

    def _add(self, command: _Submit) -> None:
        request_id = command.request.request_id
        try:
            self._engine.add_request(command.request, command.grammar)
        except TrimtabError as error:
            self._forget(request_id, command.stream)
            _post(command.stream.loop, [(command.stream, error)])
        else:
            self._live[request_id] = command.stream

    def _deliver(self, outputs: Iterable[TokenOutput]) -> None:
        """Hand outputs to their streams: one call for each event loop, however many streams."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Stream, TokenOutput]]] = {}
        for output in outputs:
            stream = self._live[output.request_id]
            by_loop.setdefault(stream.loop, []).append((stream, output))
            if output.finish_reason is not None:
                del self._live[output.request_id]
                self._forget(output.request_id, stream)
        for loop, items in by_loop.items():
            if not _post(loop, items):
                for stream, output in items:
                    self._leave(output.request_id, stream)

    def _forget(self, request_id: str, stream: _Stream) -> None:
        with self._changed:
            if self._streams.get(request_id) is stream:
                del self._streams[request_id]

    def _check_when_idle(self) -> None:
        if time.monotonic() < self._next_check:
            return
        self._next_check = time.monotonic() + IDLE_CHECK_SECONDS
        try:
            self._engine.check()
        except RuntimeError:
            logger.exception("the engine's books are wrong")
            if self._engine.debug:
                raise

    def _bury(self, death: BaseException) -> None:
        """Nobody may wait for an engine that is gone."""
        with self._changed:
            self._death = death
            streams = list(self._streams.values())
            self._streams.clear()
            self._inbox.clear()
        for stream in streams:
            _post(stream.loop, [(stream, _dead(death))])


def _dead(death: BaseException) -> EngineDeadError:
    if isinstance(death, EngineDeadError):
        return EngineDeadError(str(death))
    return EngineDeadError(f"the engine died ({type(death).__name__}); see the log")


def _post(
    loop: asyncio.AbstractEventLoop,
    items: Sequence[tuple[_Stream, TokenOutput | TrimtabError]],
) -> bool:
    """Put each item into its stream, on the streams' loop. False if that loop is closed."""

    def put_all() -> None:
        for stream, item in items:
            stream.put(item)

    try:
        loop.call_soon_threadsafe(put_all)
    except RuntimeError:
        return False
    return True
