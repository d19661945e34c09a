"""Where time goes: the parts of a step, and the life of a request.

Measured on every step of every request, so it costs a clock reading for each part of a step, and
nothing for a request that decodes.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

from trimtab.engine.client import PrefillChunk, RequestTimeline

if TYPE_CHECKING:
    from trimtab.engine.request import Request

MAX_CHUNKS = 256  # in one timeline; what comes later is counted with the last of them


# Steps are counted by their rows: those of at most 1, of at most 8 ..., of more than the last.
STEP_SIZES = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


class StepPart:
    """Indices of `StepClock.seconds`. No Enum: those cost as much as the clock."""

    SCHEDULE = 0
    BUILD = 1
    EXECUTE = 2
    COMMIT = 3
    DRAFT = 4
    BETWEEN = 5  # from the end of a step to the next one, while somebody waits for it


class StepClock:
    """Adds up the seconds of each part over all steps. `lap` ends a part that began at `start`, or
    at the last `lap`."""

    def __init__(self) -> None:
        self.seconds = [0.0] * 6
        self.latest = [0.0] * 6  # of the latest step, as far as it has got
        self.started = self.last = perf_counter()  # of the step; of the last part that ended

    def start(self, goes_on: bool) -> None:
        """`goes_on`: the step before left requests that are not complete."""
        if goes_on:
            self.lap(StepPart.BETWEEN)
        self.started = self.last = perf_counter()
        self.latest[StepPart.DRAFT] = 0.0

    def lap(self, part: int) -> None:
        now = perf_counter()
        self.latest[part] = now - self.last
        self.seconds[part] += now - self.last
        self.last = now


class RequestTimer:
    """What a request's timeline is made of; it starts when it is made."""

    __slots__ = ("_arrival", "_chunks", "_first_token")

    def __init__(self) -> None:
        self._arrival = perf_counter()
        self._chunks: list[PrefillChunk] = []
        self._first_token: float | None = None

    def prefilled(self, clock: StepClock, num_tokens: int, emits: bool) -> None:
        """The step that the clock shows, which has run, prefilled so many tokens of it."""
        start = clock.started - self._arrival
        end = clock.last - self._arrival
        if len(self._chunks) == MAX_CHUNKS:
            last = self._chunks.pop()
            num_tokens += last.num_tokens
            start = last.start
        self._chunks.append(PrefillChunk(start, end - start, num_tokens))
        if emits and self._first_token is None:
            self._first_token = end

    def timeline(self, request: Request) -> RequestTimeline:
        total = perf_counter() - self._arrival
        return RequestTimeline(
            queued=self._chunks[0].start if self._chunks else total,
            prefill=list(self._chunks),
            first_token=self._first_token,
            total=total,
            num_preemptions=request.num_preemptions,
            num_drafts=request.num_drafts,
            num_accepted_drafts=request.num_accepted_drafts,
        )
