"""Who sends what, and when: sessions of a workload, open or closed loop."""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import replace

from trimtab.workloads.requests import PlannedRequest, Workload


class Timetable:
    """Requests in the order of their times. What follows on a turn is known when that has ended.

    Open loop: first turns come at their own times, whatever becomes of the others. Closed loop:
    `concurrency` sessions at once; when one is over, the next one begins.
    """

    def __init__(self, workload: Workload) -> None:
        self._followers: dict[int, list[PlannedRequest]] = {}
        firsts = []
        for planned in workload.requests:
            if planned.follows is None:
                firsts.append(planned)
            else:
                self._followers.setdefault(planned.follows, []).append(planned)
        self._heap: list[tuple[float, int, PlannedRequest]] = []
        self._waiting: deque[PlannedRequest] = deque()  # first turns, for a session to be over
        if workload.concurrency is None:
            self._heap = [(planned.at, planned.index, planned) for planned in firsts]
            heapq.heapify(self._heap)
        else:
            self._waiting.extend(firsts)
            for _ in range(workload.concurrency):
                self._begin(0.0)

    @property
    def next_time(self) -> float:
        """Infinity: nothing more is known."""
        return self._heap[0][0] if self._heap else math.inf

    def pop(self) -> tuple[float, PlannedRequest]:
        """The next one, and when it is scheduled."""
        time, _, planned = heapq.heappop(self._heap)
        return time, planned

    def ended(self, planned: PlannedRequest, time: float) -> None:
        """It is complete, and its client knows at `time`."""
        followers = self._followers.pop(planned.index, [])
        for follower in followers:
            heapq.heappush(self._heap, (time + follower.at, follower.index, follower))
        if not followers:
            self._begin(time)

    def failed(self, planned: PlannedRequest, time: float) -> list[tuple[float, PlannedRequest]]:
        """Its session is over. The turns that are never sent, and when they would have been."""
        dropped = []
        last = [(time, planned)]
        while last:
            when, one = last.pop()
            last += [(when + after.at, after) for after in self._followers.pop(one.index, [])]
            if one is not planned:
                dropped.append((when, one))
        self._begin(time)
        return dropped

    def _begin(self, time: float) -> None:
        if self._waiting:
            planned = self._waiting.popleft()
            at = time + planned.at
            heapq.heappush(self._heap, (at, planned.index, replace(planned, at=at)))
