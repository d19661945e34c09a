"""What happens to a request, noted in one place: metrics, traces, logs and timelines read it here.

`Guard` makes a Call of every HTTP request and ends it; the routes say when its body is there,
`Generation` when its prompt is ready and what came out. Everything lives on one event loop.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
from contextvars import ContextVar
from time import perf_counter, time_ns
from typing import Any

import msgspec

from trimtab.engine.client import RequestTimeline, TokenOutput
from trimtab.server.api_errors import ApiError
from trimtab.server.keys import Account
from trimtab.server.tally import (
    CHOICES_BOUNDS,
    COUNT_BOUNDS,
    REQUEST_BOUNDS,
    Distribution,
    Recent,
    Totals,
)

# The Call that the running task serves; None outside of a request.
current_call: ContextVar[Call | None] = ContextVar("current_call", default=None)


def note_error(error: ApiError) -> None:
    """The running request is answered with it."""
    if call := current_call.get():
        call.error = error.name


# -- what a client gets that asks for it


class ChunkTiming(msgspec.Struct):
    start_ms: float  # since the engine took the request, as all times of a choice
    ms: float
    tokens: int


class ChoiceTimings(msgspec.Struct):
    index: int
    queue_ms: float | None  # until its first step; null if it never ran
    prefill: list[ChunkTiming]
    first_token_ms: float | None
    decode_ms: float | None  # from the first token to the last
    cached_tokens: int
    completion_tokens: int
    preemptions: int
    drafts: int
    accepted_drafts: int


class Timings(msgspec.Struct):
    """Of one request; its times count from when its headers had arrived."""

    read_ms: float | None  # until its body was there
    tokenize_ms: float | None  # parsed, through the template, tokenized
    first_token_ms: float | None  # seen from here
    total_ms: float
    prompt_tokens: int
    choices: list[ChoiceTimings]


class ChoiceLife:
    """One sequence that the engine completes for a call."""

    __slots__ = (
        "finish_reason",
        "first_token",
        "last_token",
        "num_cached_tokens",
        "num_tokens",
        "timeline",
    )

    def __init__(self) -> None:
        self.num_tokens = 0
        self.num_cached_tokens = 0
        self.first_token = 0.0  # perf_counter
        self.last_token = 0.0
        self.finish_reason: str | None = None
        self.timeline: RequestTimeline | None = None

    @property
    def decode_seconds(self) -> float | None:
        return self.last_token - self.first_token if self.num_tokens else None


class Call:
    """One HTTP request and its answer. Times are perf_counter seconds; None: not come to pass."""

    def __init__(
        self,
        observer: Observer,
        request_id: str,
        method: str = "",
        path: str = "",
        account: Account | None = None,
        wants_timings: bool = False,
    ) -> None:
        self.observer = observer
        self.request_id = request_id
        self.method = method
        self.path = path
        self.account = account
        self.wants_timings = wants_timings
        self.arrived_ns = time_ns()
        self.arrived = perf_counter()
        self.read: float | None = None
        self.prepared: float | None = None
        self.first_token: float | None = None
        self.ended: float | None = None
        self.num_prompt_tokens = 0
        self.choices: list[ChoiceLife] = []
        self.answer_id: str | None = None  # `id` of the answer
        self.error: str | None = None  # code or type of the error that it was answered with
        self.status: int | None = None
        self.route = ""
        self.trace: Any = None  # what the tracer keeps with it

    @property
    def key_name(self) -> str | None:
        return None if self.account is None else self.account.key.name

    def prepare(self, num_prompt_tokens: int, num_choices: int, answer_id: str = "") -> None:
        """Its prompts, this many tokens, go to the engine now. Raises ApiError 429 if its key has
        not that many left."""
        now = perf_counter()
        if self.account is not None:
            self.account.take_prompt(num_prompt_tokens, now)
        self.prepared = now
        self.num_prompt_tokens = num_prompt_tokens
        self.choices = [ChoiceLife() for _ in range(num_choices)]
        self.answer_id = answer_id
        self.observer.prepared(self)

    def output(self, index: int, output: TokenOutput) -> None:
        """The engine emitted this for one of its choices."""
        now = perf_counter()
        life = self.choices[index]
        num_tokens = len(output.token_ids)
        if num_tokens:
            self.observer.tokens(self, life, num_tokens, now)
        if output.timeline is not None:
            life.timeline = output.timeline
            life.num_cached_tokens = max(life.num_cached_tokens, output.num_cached_tokens)

    def finish(self, index: int, reason: str) -> None:
        """One of its choices has come to its end."""
        self.choices[index].finish_reason = reason

    def timings(self) -> Timings:
        """As far as it has come."""
        end = perf_counter() if self.ended is None else self.ended
        read = self.arrived if self.read is None else self.read
        first = self.first_token
        prepared = None if self.prepared is None else self.prepared - read
        return Timings(
            read_ms=_ms(read - self.arrived),
            tokenize_ms=_ms(prepared),
            first_token_ms=_ms(None if first is None else first - self.arrived),
            total_ms=round((end - self.arrived) * 1000, 3),
            prompt_tokens=self.num_prompt_tokens,
            choices=[_choice_timings(i, life) for i, life in enumerate(self.choices)],
        )


class Observer:
    """What all calls of a server add up to. `on_end` functions see each call when it is over."""

    def __init__(self) -> None:
        self.started = perf_counter()
        self.totals = Totals()
        self.recent = Recent(self.totals, self.started)
        self.num_open = 0  # HTTP requests
        self.http: Counter[tuple[str, str, int]] = Counter()  # by method, route, status
        self.refused: Counter[str] = Counter()  # by code of the error
        self.finished: Counter[str] = Counter()  # choices, by finish reason
        self.latency = Distribution(REQUEST_BOUNDS)
        self.queue = Distribution(REQUEST_BOUNDS)
        self.prefill = Distribution(REQUEST_BOUNDS)
        self.decode = Distribution(REQUEST_BOUNDS)
        self.inference = Distribution(REQUEST_BOUNDS)
        self.per_token = Distribution(self.totals.token.bounds)  # one mean a choice
        self.prompt_tokens = Distribution(COUNT_BOUNDS)
        self.completion_tokens = Distribution(COUNT_BOUNDS)
        self.num_choices = Distribution(CHOICES_BOUNDS)
        self.on_end: list[Callable[[Call], None]] = []

    def begin(self, call: Call) -> None:
        self.num_open += 1

    def prepared(self, call: Call) -> None:
        now = perf_counter()
        if now >= self.recent.ends:
            self.recent.turn(now)
        self.totals.num_prompt_tokens += call.num_prompt_tokens
        self.prompt_tokens.add(call.num_prompt_tokens)
        self.num_choices.add(len(call.choices))

    def tokens(self, call: Call, life: ChoiceLife, num_tokens: int, now: float) -> None:
        """A choice has `num_tokens` more. This is the hot path: well under a microsecond."""
        if now >= self.recent.ends:
            self.recent.turn(now)
        totals = self.totals
        totals.num_generated_tokens += num_tokens
        if life.num_tokens:
            latency = totals.token  # its `add`, written out
            seconds = now - life.last_token
            latency.counts[bisect_left(latency.bounds, seconds / num_tokens)] += num_tokens
            latency.sum += seconds
        else:
            life.first_token = now
            if num_tokens > 1:  # they came together
                totals.token.add(0.0, num_tokens - 1)
            if call.first_token is None:
                call.first_token = now
                totals.first_token.add(now - call.arrived)
        life.num_tokens += num_tokens
        life.last_token = now
        if call.account is not None:
            call.account.take_completion(num_tokens, now)

    def end(self, call: Call, route: str, status: int, complete: bool) -> None:
        """The answer is out (`complete`), or its client has gone."""
        now = call.ended = perf_counter()
        self.num_open -= 1
        call.route, call.status = route, status
        self.http[(call.method, route, status)] += 1
        if call.error is not None and status >= 400:
            self.refused[call.error] += 1
        if call.prepared is not None:
            if now >= self.recent.ends:
                self.recent.turn(now)
            self.totals.num_finished += 1
            self.latency.add(now - call.arrived)
            for life in call.choices:
                if life.finish_reason is None:
                    life.finish_reason = "error" if complete and call.error else "abort"
                self._choice_ended(life)
        for function in self.on_end:
            function(call)

    def _choice_ended(self, life: ChoiceLife) -> None:
        self.finished[life.finish_reason or "abort"] += 1
        self.completion_tokens.add(life.num_tokens)
        timeline, decode = life.timeline, life.decode_seconds
        if timeline is not None:
            self.queue.add(timeline.queued)
            if timeline.first_token is not None and decode is not None:
                prefill = timeline.first_token - timeline.queued
                self.prefill.add(prefill)
                self.decode.add(decode)
                self.inference.add(prefill + decode)
        if decode is not None and life.num_tokens > 1:
            self.per_token.add(decode / (life.num_tokens - 1))


def _choice_timings(index: int, life: ChoiceLife) -> ChoiceTimings:
    timeline = life.timeline
    chunks = [] if timeline is None else timeline.prefill
    return ChoiceTimings(
        index=index,
        queue_ms=_ms(timeline.queued if timeline else None),
        prefill=[
            ChunkTiming(_ms(one.start) or 0.0, _ms(one.seconds) or 0.0, one.num_tokens)
            for one in chunks
        ],
        first_token_ms=_ms(timeline.first_token if timeline else None),
        decode_ms=_ms(life.decode_seconds),
        cached_tokens=life.num_cached_tokens,
        completion_tokens=life.num_tokens,
        preemptions=timeline.num_preemptions if timeline else 0,
        drafts=timeline.num_drafts if timeline else 0,
        accepted_drafts=timeline.num_accepted_drafts if timeline else 0,
    )


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)
