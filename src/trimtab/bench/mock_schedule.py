"""When a mock server gives which token: exact, so that waiting times can be computed by hand.

Two servers. *Service*: one request after another, each takes `service_ms` whatever it asks for (the
D and the 1 of M/D/1). *Steps*: up to `max_batch` requests at once, each step takes `step_ms` and
`prefill_ms_per_token` of prompts that join it, and gives one token to each.

Both run on a service clock that stands still during a stall.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class MockConfig:
    service_ms: float = 0.0  # more than 0: one request after another
    step_ms: float = 10.0
    max_batch: int = 64
    prefill_ms_per_token: float = 0.0
    tokens_per_chunk: int = 1
    stall_at: float = -1.0  # seconds after the first request; negative: never
    stall_seconds: float = 0.0
    error_every: int = 0  # each so-manieth request fails; 0: none
    error_kind: str = "500"  # 400, 429, 500, disconnect, event
    refuses_extras: bool = False  # answers 400 to ignore_eos and min_tokens
    refuses_stream_options: bool = False
    eos_after: int = 0  # tokens of an answer without ignore_eos; 0: as many as asked for
    gives_usage: bool = True
    gives_token_ids: bool = False
    streams: bool = True  # false: whole documents, whatever was asked for

    def __post_init__(self) -> None:
        kinds = ("400", "429", "500", "disconnect", "event")
        if self.error_kind not in kinds:
            raise ValueError(f"error_kind {self.error_kind!r}: one of {', '.join(kinds)}")
        if min(self.max_batch, self.tokens_per_chunk) < 1:
            raise ValueError("max_batch and tokens_per_chunk must be 1 or more")


@dataclass(eq=False, slots=True)
class Job:
    num_prompt_tokens: int
    num_tokens: int  # to be given
    give: Callable[[int, bool], None]  # (tokens of this chunk, is the last)
    given: int = 0
    held: int = 0  # tokens of a chunk that is not full
    cancelled: bool = False


class Schedule(Protocol):
    def submit(self, job: Job) -> None: ...


class Clock:
    """Service time, which stands still during the stall, over a pacer's time."""

    def __init__(
        self,
        config: MockConfig,
        at: Callable[[float, Callable[[], None]], None],
        now: Callable[[], float],
    ) -> None:
        self._stall_at = config.stall_at if config.stall_at >= 0 else float("inf")
        self._stall_seconds = config.stall_seconds
        self._at = at
        self._now = now
        self._start = -1.0

    def now(self) -> float:
        """Seconds of service since the first request."""
        if self._start < 0:
            self._start = self._now()
        elapsed = self._now() - self._start
        if elapsed <= self._stall_at:
            return elapsed
        return max(self._stall_at, elapsed - self._stall_seconds)

    def at(self, when: float, call: Callable[[], None]) -> None:
        if when > self._stall_at:
            when += self._stall_seconds
        self._at(self._start + when, call)


def give_tokens(job: Job, count: int, per_chunk: int) -> None:
    """`count` more tokens; full chunks go out."""
    job.given += count
    job.held += count
    last = job.given >= job.num_tokens
    while job.held >= per_chunk or (last and job.held):
        chunk = min(job.held, per_chunk)
        job.held -= chunk
        job.give(chunk, last and not job.held)


class ServiceQueue:
    """First come, first served, one at a time; tokens evenly over the service time."""

    def __init__(self, config: MockConfig, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._free_at = 0.0

    def submit(self, job: Job) -> None:
        seconds = self._config.service_ms / 1e3
        start = max(self._clock.now(), self._free_at)
        self._free_at = start + seconds
        for number in range(1, job.num_tokens + 1):
            self._clock.at(start + seconds * number / job.num_tokens, lambda: self._give(job))

    def _give(self, job: Job) -> None:
        if not job.cancelled:
            give_tokens(job, 1, self._config.tokens_per_chunk)


class StepBatch:
    """Continuous batching: who waits joins at the next step, as far as there is room."""

    def __init__(self, config: MockConfig, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []
        self._in_step = False

    def submit(self, job: Job) -> None:
        self._waiting.append(job)
        if not self._in_step:
            self._begin(self._clock.now())

    def _begin(self, now: float) -> None:
        self._running = [j for j in self._running if not j.cancelled and j.given < j.num_tokens]
        seconds = self._config.step_ms / 1e3
        while self._waiting and len(self._running) < self._config.max_batch:
            job = self._waiting.popleft()
            if job.cancelled:
                continue
            seconds += self._config.prefill_ms_per_token / 1e3 * job.num_prompt_tokens
            self._running.append(job)
        self._in_step = bool(self._running)
        if self._in_step:
            self._clock.at(now + seconds, lambda: self._end(now + seconds))

    def _end(self, now: float) -> None:
        for job in self._running:
            if not job.cancelled:
                give_tokens(job, 1, self._config.tokens_per_chunk)
        self._begin(now)


def make_schedule(config: MockConfig, clock: Clock) -> Schedule:
    return ServiceQueue(config, clock) if config.service_ms > 0 else StepBatch(config, clock)
