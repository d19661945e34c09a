"""Counters that go on over engine processes, and the pace at which requests finish."""

from __future__ import annotations

import math
import time
from dataclasses import replace
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
    cleared: dict[str, Any] = {}
    for name in _COUNTERS:
        value = getattr(stats, name)
        cleared[name] = [0] * len(value) if isinstance(value, list) else type(value)()
    return replace(stats, **cleared)


def _sum(first: Any, second: Any) -> Any:
    """Of two numbers, or element by element."""
    if isinstance(first, list):
        return (
            [a + b for a, b in zip(first, second, strict=True)]
            if first and second
            else first or second
        )
    return first + second
