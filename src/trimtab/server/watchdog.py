"""When an engine process counts as lost, how soon another starts, and when that is given up."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from trimtab.engine.client import EngineStats


@dataclass(frozen=True)
class SupervisionPolicy:
    """Times of the supervision of engine processes, in seconds."""

    poll_seconds: float = 1.0  # the end of a process is noticed at once
    fresh_seconds: float = 5.0  # a heartbeat or step older than this makes /ready fail
    silent_seconds: float = 10.0  # without any message for so long, the process is killed
    silent_loading_seconds: float = 300.0  # the same in a first load: packing may hold it up
    stalled_seconds: float = 30.0  # with work but without progress for so long, too
    min_reload_seconds: float = 60.0  # a restart may take so long, or RELOAD_FACTOR times
    stable_seconds: float = 60.0  # a process that served for so long was a good one
    first_backoff_seconds: float = 0.5
    max_backoff_seconds: float = 30.0
    max_fruitless: int = 6  # processes in a row that did nothing: then nobody waits any longer
    last_words_seconds: float = 0.5  # for what a process said before it ended
    stop_seconds: float = 5.0


RELOAD_FACTOR = 5.0  # times the first start


class Watchdog:
    """Watches one engine process.

    Two clocks. *Silence*: since its last message; heartbeats come from another thread than steps,
    so this tells a process that is stopped or holds its interpreter. *Stall*: since the executor
    last got further, in time during which the process had work; this tells a step that hangs. Both
    count only time in which this process itself ran: after a suspension of both nothing is wrong.
    """

    MAX_TICK_SECONDS = 1.5

    def __init__(
        self, policy: SupervisionPolicy, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._policy = policy
        self._clock = clock
        self._last_tick = clock()
        self._silence = 0.0
        self._stall = 0.0
        self._age = 0.0  # of the process
        self._progress: tuple[int, int] | None = None

    @property
    def fresh(self) -> bool:
        """It said something lately and, if it has work, got on with it."""
        return max(self._silence, self._stall) < self._policy.fresh_seconds

    def heard(self) -> None:
        """Any message came."""
        self._silence = 0.0

    def note(self, stats: EngineStats) -> None:
        """Its counters at some moment. `executor_progress` grows within a step."""
        progress = (stats.num_steps, stats.executor_progress)
        if progress != self._progress:
            self._progress = progress
            self._stall = 0.0

    def refused(self) -> None:
        """It refused a request, which may have been all the work it had: compiling its grammar."""
        self._stall = 0.0

    def tick(self, *, busy: bool) -> str | None:
        """To be called every `poll_seconds` while it is ready; `busy`: it was given work that is
        not done. What is wrong with it, for people, or None."""
        self._advance()
        if not busy:
            self._stall = 0.0
        if self._silence > self._policy.silent_seconds:
            return f"has been silent for {self._policy.silent_seconds:g} s"
        if self._stall > self._policy.stalled_seconds:
            return f"has not got on with its work for {self._policy.stalled_seconds:g} s"
        return None

    def tick_loading(self, first_load_seconds: float | None) -> str | None:
        """The same while it loads. None: no process was ever ready."""
        self._advance()
        self._stall = 0.0
        silent = self._policy.silent_loading_seconds
        if first_load_seconds is not None:
            longest = max(self._policy.min_reload_seconds, RELOAD_FACTOR * first_load_seconds)
            silent = min(silent, longest)
            if self._age > longest:
                return f"has not been ready after {longest:g} s"
        if self._silence > silent:
            return f"has been silent for {silent:g} s while it loaded"
        return None

    def _advance(self) -> None:
        now = self._clock()
        elapsed = min(now - self._last_tick, self.MAX_TICK_SECONDS)
        self._last_tick = now
        self._silence += elapsed
        self._stall += elapsed
        self._age += elapsed


class Restarts:
    """How long to wait before the next process.

    Not at all after one that did something (emitted a token, or served for a while); after
    fruitless ones longer and longer, but for the first of them.
    """

    def __init__(self, policy: SupervisionPolicy) -> None:
        self._policy = policy
        self._fruitless = 0

    def ended(self, *, fruitful: bool) -> float:
        """A process is gone; seconds until the next one should start."""
        self._fruitless = 0 if fruitful else self._fruitless + 1
        if self._fruitless <= 1:
            return 0.0
        backoff = self._policy.first_backoff_seconds * 2.0 ** min(self._fruitless - 2, 32)
        return min(backoff, self._policy.max_backoff_seconds)

    @property
    def hopeless(self) -> bool:
        """So many did nothing that requests should no longer wait for the next one."""
        return self._fruitless >= self._policy.max_fruitless
