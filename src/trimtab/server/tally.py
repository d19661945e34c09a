"""Counters and distributions of bounded size, and what they were over the last minute.

Everything here lives on one event loop. Counting costs less than a microsecond; who reads pays.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

WINDOW_SECONDS = 60

# The bounds that vLLM's dashboards know, and smaller ones below, for models that are faster.
FIRST_TOKEN_BOUNDS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
TOKEN_BOUNDS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5,
    5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
REQUEST_BOUNDS = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0,
    30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip
CHOICES_BOUNDS = (1, 2, 5, 10, 20)
COUNT_BOUNDS = tuple(one * 10**power for power in range(7) for one in (1, 2, 5))


def fine_bounds(coarse: Sequence[float]) -> tuple[float, ...]:
    """Eight to each doubling from 10 us to an hour, and the coarse ones: percentiles out of these
    are at most 9 % off."""
    fine = {1e-5 * 2 ** (step / 8) for step in range(8 * 29)}
    return tuple(sorted(fine | set(coarse)))


class Distribution:
    """How often values fell between bounds: `counts[i]` of those in (bounds[i-1], bounds[i]]."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def cumulative(self, bounds: Sequence[float]) -> list[int]:
        """How many values were at most each of these, which must be among its own, and, last, how
        many there were at all."""
        running = list(accumulate(self.counts))
        return [running[bisect_left(self.bounds, bound)] for bound in bounds] + running[-1:]


def percentile(bounds: Sequence[float], counts: Sequence[int], share: float) -> float | None:
    """The value that `share` of all values do not exceed, interpolated between two bounds; None
    without values."""
    total = sum(counts)
    if not total:
        return None
    rank = share * total
    below = 0
    for index, count in enumerate(counts):
        if count and below + count >= rank:
            low = bounds[index - 1] if index else 0.0
            high = bounds[index] if index < len(bounds) else bounds[-1]
            return low + (high - low) * (rank - below) / count
        below += count
    return bounds[-1]


@dataclass
class Second:
    """What was counted in one second of the clock."""

    second: int
    num_prompt_tokens: int = 0
    num_generated_tokens: int = 0
    num_finished: int = 0
    first_token: list[int] = field(default_factory=list)  # counts of a Distribution
    token: list[int] = field(default_factory=list)


class Totals:
    """Since the start; `Recent` cuts them into seconds."""

    def __init__(self) -> None:
        self.num_prompt_tokens = 0
        self.num_generated_tokens = 0
        self.num_finished = 0
        self.first_token = Distribution(fine_bounds(FIRST_TOKEN_BOUNDS))
        self.token = Distribution(fine_bounds(TOKEN_BOUNDS))  # inter-token latency

    def snapshot(self, second: int) -> Second:
        return Second(
            second,
            self.num_prompt_tokens,
            self.num_generated_tokens,
            self.num_finished,
            list(self.first_token.counts),
            list(self.token.counts),
        )


class Recent:
    """The last minute, second by second. Whoever counts calls `turn` first, if `ends` has come."""

    def __init__(self, totals: Totals, now: float) -> None:
        self._totals = totals
        self._second = int(now)
        self.ends = self._second + 1.0  # of the second that is being counted
        self._before = totals.snapshot(self._second)
        self._seconds: deque[Second] = deque(maxlen=WINDOW_SECONDS + 1)

    def turn(self, now: float) -> None:
        """Close the second whose end has come; nothing was counted since."""
        current = self._current()
        if current.num_prompt_tokens or current.num_generated_tokens or current.num_finished:
            self._seconds.append(current)
            self._before = self._totals.snapshot(self._second)
        self._second = int(now)
        self.ends = self._second + 1.0

    def seconds(self, now: float) -> list[Second]:
        """Those of the last minute in which anything happened, the running one included."""
        if now >= self.ends:
            self.turn(now)
        oldest = int(now) - WINDOW_SECONDS
        return [one for one in (*self._seconds, self._current()) if one.second > oldest]

    def _current(self) -> Second:
        totals, before = self._totals, self._before
        return Second(
            self._second,
            totals.num_prompt_tokens - before.num_prompt_tokens,
            totals.num_generated_tokens - before.num_generated_tokens,
            totals.num_finished - before.num_finished,
            _difference(totals.first_token.counts, before.first_token),
            _difference(totals.token.counts, before.token),
        )


def _difference(after: Sequence[int], before: Sequence[int]) -> list[int]:
    return [a - b for a, b in zip(after, before, strict=True)]
