"""Counters that go on over engine processes, and the pace at which requests finish."""

from __future__ import annotations

import math
import time
from dataclasses import fields, is_dataclass, replace
from itertools import zip_longest
from typing import Any

from trimtab.engine.client import EngineStats

MAX_RETRY_AFTER_SECONDS = 60


class Pace:
    """How fast requests finish: a moving average of the seconds between two of them."""

    WEIGHT = 1 / 16
    LONGEST = 60.0  # nothing came in for some time: that is not the engine's pace

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._seconds: float | None = None

    def finished(self) -> None:
        now = time.monotonic()
        passed, self._last = min(now - self._last, self.LONGEST), now
        if self._seconds is None:
            self._seconds = passed
        else:
            self._seconds += (passed - self._seconds) * self.WEIGHT

    def retry_after(self, limit: int) -> int:
        """Seconds in which a tenth of `limit` requests will probably have finished, 1 to 60."""
        seconds = math.ceil((self._seconds or 0.0) * limit / 10)
        return min(max(seconds, 1), MAX_RETRY_AFTER_SECONDS)


_GAUGES = {"num_running", "num_waiting", "num_blocks", "num_free_blocks", "num_cached_blocks"}
_COUNTERS = tuple(name for name in EngineStats.__dataclass_fields__ if name not in _GAUGES)


def sum_stats(earlier: EngineStats | None, stats: EngineStats) -> EngineStats:
    """`stats`, with the counters of both."""
    if earlier is None:
        return stats
    sums = {name: _sum(getattr(earlier, name), getattr(stats, name)) for name in _COUNTERS}
    return replace(stats, **sums)


def without_counts(stats: EngineStats) -> EngineStats:
    """`stats`, with every counter at its beginning."""
    return replace(stats, **{name: _cleared(getattr(stats, name)) for name in _COUNTERS})


def _sum(first: Any, second: Any) -> Any:
    """Of two numbers; element by element of what holds some. None counts nothing."""
    if first is None or second is None:
        return second if first is None else first
    if isinstance(first, list):
        return [a + b for a, b in zip_longest(first, second, fillvalue=0)]
    if isinstance(first, dict):
        return {name: first.get(name, 0) + second.get(name, 0) for name in first | second}
    if is_dataclass(first):
        sums = {
            one.name: _sum(getattr(first, one.name), getattr(second, one.name))
            for one in fields(first)
        }
        return replace(first, **sums)  # type: ignore[type-var]
    return first + second


def _cleared(value: Any) -> Any:
    if isinstance(value, list):
        return [0] * len(value)
    if is_dataclass(value):
        zeros = {one.name: _cleared(getattr(value, one.name)) for one in fields(value)}
        return replace(value, **zeros)  # type: ignore[type-var]
    return None if value is None else type(value)()
