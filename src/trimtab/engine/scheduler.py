"""What the next step computes. Knows integers only: token counts, block ids, orders.

One step, one token budget, three passes:

1. *Decodes*: running requests that lack one token, in order of (priority, arrival); and room for
   the tokens that a grammar has appended to any of them.
2. *Prefills*: running requests that lack more, in the same order, cut to what is left.
3. *Admission*: waiting requests, in the same order, until one does not fit. Not in a step that
   preempted.

A request gets blocks for all its tokens when it is admitted, so only tokens that were appended
since need one. If none is free, the last request in the order is preempted: it gives its blocks
back, waits again at its old place and is recomputed later (mostly out of the prefix cache).

A request that is held, because its grammar is not ready, is left out; it keeps its blocks.

Progress: the first running request can take the blocks of all the others, and the engine admits
nothing that does not fit alone, so every step with work to do computes at least one token.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field

from trimtab.config import SchedulerConfig
from trimtab.engine.client import FinishReason
from trimtab.engine.kv_cache import KVCacheManager
from trimtab.engine.request import Request, RequestState
from trimtab.engine.speculation.draft import Draft

MAX_PASSED_OVER = 16  # waiting requests that may be passed over in one admission


@dataclass(slots=True)
class Chunk:
    """Rows of one request in a step: its tokens [start, start + count), and those of a draft
    behind them. Never changed once the batch is built."""

    request: Request
    start: int
    count: int
    emits: bool  # reaches the end of the known tokens, so the next one is chosen
    draft: Draft | None = None  # verified in this step; never empty

    @property
    def num_rows(self) -> int:
        return self.count if self.draft is None else self.count + len(self.draft)


@dataclass
class StepPlan:
    """Valid until it is committed; one plan at a time."""

    chunks: list[Chunk] = field(default_factory=list)
    num_preempted: int = 0

    @property
    def num_rows(self) -> int:
        return sum(chunk.num_rows for chunk in self.chunks)


class CompletionEstimate:
    """How long completions turn out to be: what admission keeps free for running requests.

    An average over finished requests, raised by half at each preemption, so that memory is
    neither left idle nor promised twice over and over.
    """

    INITIAL = 64.0
    WEIGHT = 1 / 16

    def __init__(self) -> None:
        self.tokens = self.INITIAL

    def finished(self, num_generated: int) -> None:
        self.tokens += (num_generated - self.tokens) * self.WEIGHT

    def preempted(self, limit: int) -> None:
        self.tokens = max(self.tokens, min(self.tokens * 1.5 + 1, limit))

    def remaining(self, request: Request) -> int:
        """Tokens that the request is expected to emit yet, at least one."""
        most = request.max_total_tokens - request.num_tokens
        return max(1, min(most, int(self.tokens) - request.num_generated))


class Scheduler:
    """Owns the requests and, through `kv_cache`, their blocks. Not thread-safe."""

    def __init__(self, config: SchedulerConfig, kv_cache: KVCacheManager) -> None:
        self.config = config
        self.kv_cache = kv_cache
        self.estimate = CompletionEstimate()
        self.num_preemptions = 0
        self.num_prompt_tokens = 0  # of requests admitted since start
        self.num_cached_prompt_tokens = 0  # of those, found in the prefix cache
        self._running: list[Request] = []  # both sorted by Request.order
        self._waiting: list[Request] = []

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def add(self, request: Request) -> None:
        """Queue a request that fits the KV cache when alone."""
        _insert(self._waiting, request)

    def schedule(self) -> StepPlan:
        """Plan the next step; empty only if nothing is live. Preempts and admits."""
        plan = StepPlan()
        budget = self.config.max_batch_tokens
        budget = self._plan_decodes(plan, budget)
        budget = self._plan_prefills(plan, budget)
        if not plan.num_preempted:
            self._admit(plan, budget)
        return plan

    def would_preempt(self) -> bool:
        """Whether the next plan has to take blocks from somebody."""
        kv_cache = self.kv_cache
        wanted = sum(
            max(0, kv_cache.blocks_for(request.num_needed) - len(request.block_ids))
            for request in self._running
            if not request.is_held
        )
        return wanted > kv_cache.num_free_blocks

    def commit(self, chunk: Chunk) -> None:
        """The step has computed this chunk: its tokens count, its full blocks may be shared."""
        request = chunk.request
        request.num_computed_tokens = chunk.start + chunk.count
        self.kv_cache.commit(request)

    def commit_draft(self, request: Request) -> None:
        """The step has also computed the token that the request has just accepted."""
        request.num_computed_tokens += 1
        self.kv_cache.commit(request)

    def finish(self, request: Request, reason: FinishReason) -> None:
        """Forget a live request and give its blocks back, at any moment; idempotent."""
        if request.state is RequestState.FINISHED:
            return
        if request.state is RequestState.RUNNING:
            self._running.remove(request)
            self.kv_cache.release(request, poisoned=reason == "error")
        else:
            self._waiting.remove(request)
        request.state = RequestState.FINISHED
        if reason in ("stop", "length") and request.completes:
            self.estimate.finished(request.num_generated)

    def check(self) -> None:
        """RuntimeError unless every invariant of queues and blocks holds."""
        for queue, state in (
            (self._running, RequestState.RUNNING),
            (self._waiting, RequestState.WAITING),
        ):
            orders = [request.order for request in queue]
            if orders != sorted(set(orders)):
                raise RuntimeError(f"{state.value} queue out of order: {orders}")
            for request in queue:
                if request.state is not state:
                    raise RuntimeError(f"{request.request_id}: {request.state} but {state.value}")
        for request in self._waiting:
            if request.block_ids or request.num_computed_tokens:
                raise RuntimeError(f"{request.request_id}: waiting, but holds blocks")
        if len(self._running) > self.config.max_num_requests:
            raise RuntimeError(f"{len(self._running)} requests run at once")
        self.kv_cache.check(self._running)

    def _plan_decodes(self, plan: StepPlan, budget: int) -> int:
        index = 0
        while index < len(self._running) and budget:
            request = self._running[index]
            if request.is_held:
                index += 1
                continue
            if not self._make_room(request, plan):
                break  # it was the last one, and preempted itself
            if request.num_missing == 1:
                plan.chunks.append(_chunk(request, 1))
                budget -= 1
            index += 1
        return budget

    def _plan_prefills(self, plan: StepPlan, budget: int) -> int:
        for request in self._running:
            if not budget:
                break
            if request.num_missing > 1 and not request.is_held:
                count = min(request.num_missing, budget)
                plan.chunks.append(_chunk(request, count))
                budget -= count
        return budget

    def _make_room(self, request: Request, plan: StepPlan) -> bool:
        """Blocks for all tokens of a running request; False if it had to be preempted itself.

        Victims come from the end of the order, so none of them is in the plan already.
        """
        while not self.kv_cache.grow(request):
            victim = self._running[-1]
            self._preempt(victim)
            plan.num_preempted += 1
            if victim is request:
                return False
        return True

    def _preempt(self, victim: Request) -> None:
        self.estimate.preempted(victim.max_total_tokens)
        self.kv_cache.release(victim)
        self._running.remove(victim)
        victim.state = RequestState.WAITING
        victim.num_preemptions += 1
        self.num_preemptions += 1
        _insert(self._waiting, victim)

    def _admit(self, plan: StepPlan, budget: int) -> None:
        reserved = -1  # computed when first needed
        index = 0
        while index < len(self._waiting) and budget:
            if len(self._running) >= self.config.max_num_requests:
                return
            request = self._waiting[index]
            if request.is_held:
                index += 1  # it holds up nobody
                continue
            if index < MAX_PASSED_OVER and self.kv_cache.is_being_computed(request):
                index += 1  # a step or two later it will find the blocks in the cache
                continue
            if reserved < 0:
                reserved = sum(self._expected_blocks(other) for other in self._running)
            own = self._expected_blocks(request)
            if not self.kv_cache.admit(request, reserved + own if self._running else 0):
                return
            reserved += own
            del self._waiting[index]
            _insert(self._running, request)
            request.state = RequestState.RUNNING
            request.num_prefill_tokens = request.num_tokens
            if request.num_cached_tokens is None:
                cached = min(request.num_computed_tokens, request.num_prompt_tokens)
                request.num_cached_tokens = cached
                self.num_prompt_tokens += request.num_prompt_tokens
                self.num_cached_prompt_tokens += cached
            count = min(request.num_missing, budget)
            plan.chunks.append(_chunk(request, count))
            budget -= count

    def _expected_blocks(self, request: Request) -> int:
        """Blocks that the request will probably need beyond those for its present tokens."""
        blocks_for = self.kv_cache.blocks_for
        expected = request.num_tokens + self.estimate.remaining(request)
        return blocks_for(expected) - blocks_for(request.num_tokens)


def _chunk(request: Request, count: int) -> Chunk:
    start = request.num_computed_tokens
    return Chunk(request, start, count, emits=start + count == request.num_needed)


def _insert(queue: list[Request], request: Request) -> None:
    bisect.insort(queue, request, key=lambda other: other.order)
