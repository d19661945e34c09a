"""Keeps the grammars of live requests in step with their tokens, one step of the engine at a time.

    commit            take: the chosen token is noted
    before a plan     settle: what the grammar forces behind it, and a mask for the next one

A grammar takes tens of microseconds for that as a rule, but a pattern of many classes takes many
milliseconds for a mask, and one that forces half a million characters takes seconds. So all of it
happens on other threads. A step waits for them as long as is usual; a request whose grammar takes
longer is held: it misses steps, nobody else does, and its answer is the same.
"""

from __future__ import annotations

import logging
import queue
import threading
import weakref
from collections.abc import Collection, Sequence
from contextlib import suppress
from time import monotonic
from typing import NamedTuple

from trimtab.engine.client import FinishReason
from trimtab.engine.grammar import Advance, GrammarError, GrammarState
from trimtab.engine.request import Request, RequestState

logger = logging.getLogger(__name__)

GRACE_SECONDS = 0.002  # that a step waits for slow grammars all the same,
SHARE_SECONDS = 0.0001  # and for each request that has one
IDLE_SECONDS = 0.02  # that it waits when it has nothing else to do
NUM_THREADS = 4  # so many slow grammars hold up no others


class Ending(NamedTuple):
    """A request that ends, or fails, where it is."""

    request: Request
    reason: FinishReason
    error: str | None = None


class _Job(NamedTuple):
    """What a thread needs to know of a request, which itself is the engine's alone."""

    request: Request
    grammar: GrammarState
    token_ids: Sequence[int]  # that were chosen
    room: int
    stop_ids: Collection[int]


_Jobs = queue.SimpleQueue[_Job | None]  # None: no more
_Done = queue.SimpleQueue[tuple[Request, Advance | Exception]]


class GrammarFollower:
    """Used by the engine's thread alone."""

    def __init__(self) -> None:
        self.num_forced = 0  # tokens, since start
        self._moved: dict[Request, list[int]] = {}  # with the tokens that were chosen
        self._num_held = 0  # requests that are with a thread
        self._early: list[tuple[Request, Advance | Exception]] = []  # came while it waited
        self._jobs: _Jobs = queue.SimpleQueue()
        self._done: _Done = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []  # as many as were needed at once
        weakref.finalize(self, self._jobs.put, None)

    @property
    def has_work(self) -> bool:
        return bool(self._moved or self._num_held)

    def add(self, request: Request) -> None:
        """A new request, whose grammar knows the tokens it brings."""
        request.num_reported = len(request.token_ids)
        self._moved[request] = []

    def take(self, request: Request, token_id: int) -> None:
        """A token was chosen and appended. Nothing is forced behind one that another follows in the
        same step: so drafts are made."""
        self._moved.setdefault(request, []).append(token_id)

    def settle(self) -> list[Ending]:
        """Append what is forced behind the tokens that were taken, and have a mask for each request
        that moved, or hold it. Not among those that end: requests that end when what they owe is
        computed."""
        moved, self._moved = self._moved, {}
        sent = {request for request, token_ids in moved.items() if self._send(request, token_ids)}
        deadline = monotonic() + GRACE_SECONDS + SHARE_SECONDS * len(sent)
        found, self._early = self._early, []
        with suppress(queue.Empty):
            while True:
                # For those that were slow before, nobody waits again.
                left = max(0.0, deadline - monotonic()) if sent else 0.0
                found.append(self._done.get(timeout=left))
                sent.discard(found[-1][0])
        endings = [self._release(request, result) for request, result in found]
        return [ending for ending in endings if ending is not None]

    def wait(self) -> None:
        """Until a slow grammar has got on, or for a moment."""
        if self._num_held:
            with suppress(queue.Empty):
                self._early.append(self._done.get(timeout=IDLE_SECONDS))

    def close(self) -> None:
        """Ends the threads, each behind what it is at."""
        with suppress(queue.Empty):
            while True:
                self._jobs.get_nowait()
        self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def _send(self, request: Request, token_ids: list[int]) -> bool:
        if request.state is RequestState.FINISHED or request.ending is not None:
            return False
        assert request.grammar is not None
        request.is_held = True
        self._num_held += 1
        if len(self._threads) < min(self._num_held, NUM_THREADS):
            self._start()
        room = request.max_total_tokens - len(request.token_ids)
        self._jobs.put(_Job(request, request.grammar, token_ids, room, request.stop_ids))
        return True

    def _release(self, request: Request, found: Advance | Exception) -> Ending | None:
        """A held request whose grammar has got on."""
        self._num_held -= 1
        request.is_held = False
        if request.state is RequestState.FINISHED:
            return None
        if isinstance(found, GrammarError):
            return Ending(request, "error", str(found))
        if isinstance(found, Exception):
            logger.error("a grammar failed", exc_info=found)
            return Ending(request, "error", f"its grammar failed ({type(found).__name__})")
        request.token_ids.extend(found.token_ids)
        self.num_forced += len(found.token_ids)
        if request.params.logprobs is not None:
            request.num_unscored += len(found.token_ids)
        if found.reason is None:
            assert request.grammar is not None
            request.grammar.restrict(request.unwanted_ids)
            return None
        if request.owed_rows:
            request.ending = found.reason
            return None
        return Ending(request, found.reason)

    def _start(self) -> None:
        thread = threading.Thread(
            target=_work,
            args=(self._jobs, self._done),
            name=f"trimtab-grammar-{len(self._threads)}",
            daemon=True,
        )
        self._threads.append(thread)
        thread.start()


def _work(jobs: _Jobs, done: _Done) -> None:
    while (job := jobs.get()) is not None:
        found: Advance | Exception
        try:
            found = job.grammar.advance(job.token_ids, job.room, job.stop_ids)
        except Exception as error:  # whatever it was, only this request pays for it
            found = error
        done.put((job.request, found))
        del job, found  # a request that has ended is not kept by an idle thread
    jobs.put(None)  # for the next one
