"""The steady part of a load: between its warm-up and its tail."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trimtab.workloads.records import RequestRecord

_POINTS = 400  # at which the requests in flight are looked at
_LEAST_SHARE = 0.25  # of the whole load, with requests still coming
_LONGEST_WARM_UP = 0.3  # of the time in which requests come


@dataclass(frozen=True)
class Window:
    start: float  # seconds on the load's clock
    end: float
    is_steady: bool = True  # False: no steady part was found, and this is the whole load

    @property
    def length(self) -> float:
        return self.end - self.start

    def holds(self, time: float) -> bool:
        return self.start <= time < self.end


def last_event(record: RequestRecord) -> float:
    """When the last thing is known of it: its end, its last token, or when it was sent."""
    times = [record.scheduled, record.sent, record.ended, *record.token_times[-1:]]
    return max(time for time in times if time == time)


def requests_in_flight(records: Sequence[RequestRecord], times: np.ndarray) -> np.ndarray:
    """How many requests are scheduled and not ended at each of the times (sorted or not)."""
    starts = np.sort([record.scheduled for record in records])
    ends = np.sort([last_event(record) for record in records])
    return np.searchsorted(starts, times, "right") - np.searchsorted(ends, times, "right")


def mean_in_flight(records: Sequence[RequestRecord], window: Window) -> float:
    """Time average of the requests in flight, exactly."""
    if window.length <= 0:
        return 0.0
    total = sum(
        max(0.0, min(window.end, last_event(record)) - max(window.start, record.scheduled))
        for record in records
    )
    return total / window.length


def whole_load(records: Sequence[RequestRecord]) -> Window:
    start = min((record.scheduled for record in records), default=0.0)
    end = max((last_event(record) for record in records), default=0.0)
    return Window(start, float(np.nextafter(end, np.inf)), False)


def steady_window(records: Sequence[RequestRecord]) -> Window:
    """Starts when the requests in flight first reach their median over the second half, at the
    latest after `_LONGEST_WARM_UP`; no stall that comes later can be taken for warm-up. Ends with
    the last request that is scheduled, since from then on the load only drains.

    The whole load, marked, if requests are scheduled in a small part of it only: all at once, or so
    few that they are mostly waited for.
    """
    whole = whole_load(records)
    first, last = whole.start, max((record.scheduled for record in records), default=0.0)
    if not records or last - first < _LEAST_SHARE * whole.length:
        return whole
    times = np.linspace(first, last, _POINTS)
    levels = requests_in_flight(records, times)
    reached = times[levels >= np.median(levels[_POINTS // 2 :])]
    return Window(min(float(reached[0]), first + _LONGEST_WARM_UP * (last - first)), last)
