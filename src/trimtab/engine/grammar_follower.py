"""Keeps the grammars of live requests in step with their tokens, one step of the engine at a time.

    commit            take: the chosen token, then what the grammar forces behind it
    before a plan     settle: a mask for each request that moved

A mask takes tens of microseconds, but with some patterns many milliseconds. A request whose masks
are slow gets them on another thread and is held, so that no step waits for it: it misses a step or
two, and its answer is the same.
"""

from __future__ import annotations

import os
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import NamedTuple

from trimtab.engine.client import FinishReason
from trimtab.engine.grammar import GrammarError
from trimtab.engine.request import Request, RequestState

SLOW_SECONDS = 0.003  # for one mask
GRACE_SECONDS = 0.002  # that a step waits for slow masks all the same
IDLE_SECONDS = 0.02  # that it waits when it has nothing else to do
MAX_THREADS = 4


class Ending(NamedTuple):
    """A request that ends, or fails, where it is."""

    request: Request
    reason: FinishReason
    error: str | None = None


class GrammarFollower:
    """Used by the engine's thread alone."""

    def __init__(self) -> None:
        self.num_forced = 0  # tokens, since start
        self._moved: list[Request] = []
        self._slow: dict[Request, Future[bool]] = {}  # those that are held
        self._pool: ThreadPoolExecutor | None = None

    @property
    def has_work(self) -> bool:
        return bool(self._moved or self._slow)

    def add(self, request: Request) -> None:
        """A new request, whose grammar knows the tokens it brings."""
        request.num_reported = len(request.token_ids)
        self._moved.append(request)

    def take(self, request: Request, token_id: int) -> FinishReason | None:
        """A token was appended: append what the grammar forces behind it, too. Why the request ends
        there, if it does. GrammarError if the grammar fails."""
        assert request.grammar is not None
        self._moved.append(request)
        request.grammar.consume([token_id])
        return self._take_forced(request)

    def settle(self) -> list[Ending]:
        """Masks for those that moved. Not among those that end: requests that end when what they
        owe is computed."""
        moved, self._moved = self._moved, []
        endings = [self._settle(request) for request in moved]
        if self._slow:
            wait(self._slow.values(), GRACE_SECONDS)
            done = [request for request, future in self._slow.items() if future.done()]
            endings += [self._release(request) for request in done]
        return [ending for ending in endings if ending is not None]

    def wait(self) -> None:
        """Until a slow mask is there, or for a moment."""
        if self._slow:
            wait(self._slow.values(), IDLE_SECONDS, FIRST_COMPLETED)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _take_forced(self, request: Request) -> FinishReason | None:
        grammar = request.grammar
        assert grammar is not None
        while tokens := grammar.forced():
            reason, first = None, len(request.token_ids)
            for token_id in tokens:
                reason = request.accept(token_id)
                if reason is not None:
                    break
            num_taken = len(request.token_ids) - first
            self.num_forced += num_taken
            if request.params.logprobs is not None:
                request.num_unscored += num_taken
            if reason is not None:
                return reason
            grammar.consume(tokens)
        return "stop" if grammar.is_over else None

    def _settle(self, request: Request) -> Ending | None:
        if request.state is RequestState.FINISHED or request.ending is not None:
            return None
        grammar = request.grammar
        assert grammar is not None
        reason: FinishReason | None = None
        try:
            if request.num_cached_tokens is None and not request.num_computed_tokens:
                reason = self._take_forced(request)  # it is new: nothing was chosen yet
            if reason is None and grammar.seconds > SLOW_SECONDS:
                request.is_held = True
                unwanted = list(request.unwanted_ids)
                self._slow[request] = self._threads().submit(grammar.prepare, unwanted)
            elif reason is None and not grammar.prepare(request.unwanted_ids):
                reason = "stop"
        except GrammarError as error:
            return Ending(request, "error", str(error))
        return _ending(request, reason)

    def _release(self, request: Request) -> Ending | None:
        """A held request whose mask is there."""
        future = self._slow.pop(request)
        request.is_held = False
        if request.state is RequestState.FINISHED:
            return None
        try:
            return _ending(request, None if future.result() else "stop")
        except GrammarError as error:
            return Ending(request, "error", str(error))

    def _threads(self) -> ThreadPoolExecutor:
        if self._pool is None:
            num_threads = min(MAX_THREADS, os.cpu_count() or 1)
            self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="trimtab-masks")
        return self._pool


def _ending(request: Request, reason: FinishReason | None) -> Ending | None:
    if reason is None:
        return None
    if request.owed_rows:
        request.ending = reason
        return None
    return Ending(request, reason)
