"""Whether the cores that compute lie where they lay before.

A virtual machine's cores are moved by its host, and threads by the system. While those of one
engine share no cache, its steps take up to 1.4 times as long (and those of a model that is read
from memory may be shorter: two paths to memory instead of one). That lasts for seconds, so that one
thing that is measured meets it and the next does not. How long a cache line takes from core to core
tells: 30 ns or 170 ns, where this was found. What is measured meanwhile is measured again, as long
as patience lasts.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

FAR = 2.5  # times the shortest hand-off
BUSY = 10.0  # times it, and more: somebody else had a core, which says nothing about where it lies
POLL_SECONDS = 0.25
WAIT_SECONDS = 2.0  # at once
MOST_THREADS = 8
MOST_APART = 0.2  # share of the time: with less, cores count as near

T = TypeVar("T")


def measure_handoff(threads: int, repeats: int = 5) -> float:
    """Seconds that a cache line takes from one of at least two threads to the next, at best. A
    millisecond's work."""
    from trimtab import _native

    return min(_native.probe_handoff(threads, repeats))


class Placement:
    """Asks before, during and behind whatever is measured."""

    def __init__(
        self,
        handoff: Callable[[], float],
        patience: float,
        progress: Callable[[str], None] = lambda text: None,
        shortest: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`patience`: seconds in all, for waiting and for what is done again. `shortest`: hand-off
        that is known from before."""
        self.patience = patience
        self._handoff = handoff
        self._progress = progress
        self._clock = clock
        self._sleep = sleep
        self.shortest = min(shortest, handoff())
        self._num_telling = self._num_apart = 0

    def is_near(self) -> bool:
        """Where nothing else runs."""
        seconds = self._handoff()
        self.shortest = min(self.shortest, seconds)
        return seconds <= FAR * self.shortest

    def wait(self) -> bool:
        """Until they are near; WAIT_SECONDS at most, and no longer than patience lasts. Whether
        they are."""
        start = self._clock()
        most = min(self.patience, WAIT_SECONDS)
        near = self.is_near()
        if near or most <= 0:
            return near
        self._progress("  waiting: this machine's cores lie apart for now")
        while not near and self._clock() - start < most:
            self._sleep(POLL_SECONDS)
            near = self.is_near()
        self.patience -= self._clock() - start
        return near

    def watched(self, trial: Callable[[], T]) -> tuple[T, float]:
        """What it gives, and in which share of the time the cores lay apart: before, meanwhile and
        behind it, as far as readings tell."""
        readings = [self._handoff()]
        is_over = threading.Event()

        def read() -> None:
            while not is_over.wait(POLL_SECONDS):
                readings.append(self._handoff())

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        try:
            result = trial()
        finally:
            is_over.set()
            reader.join()
        readings.append(self._handoff())
        self.shortest = min(self.shortest, *readings)
        telling = [one for one in readings if one < BUSY * self.shortest]
        num_apart = sum(one > FAR * self.shortest for one in telling)
        self._num_telling += len(telling)
        self._num_apart += num_apart
        return result, num_apart / max(1, len(telling))

    def measured(self, trial: Callable[[], T]) -> tuple[T, float]:
        """As `watched`, again until the cores hardly lay apart; once patience is spent, whatever it
        gives."""
        while True:
            self.wait()
            start = self._clock()
            result, apart = self.watched(trial)
            if apart <= MOST_APART or self.patience <= 0:
                return result, apart
            self._progress("  the cores lay apart meanwhile: once more")
            self.patience -= self._clock() - start

    @property
    def mean_apart(self) -> float:
        """The share of all readings, of whatever was watched."""
        return self._num_apart / max(1, self._num_telling)


def placement_of(
    threads: int,
    patience: float,
    progress: Callable[[str], None] = lambda text: None,
    shortest: float = math.inf,
) -> Placement:
    """For engines with so many threads. One is always near itself; of many, a line that is passed
    between wherever the system puts them says little, and takes their time. `shortest`: 0 if it is
    not known."""
    if not 2 <= threads <= MOST_THREADS:
        return Placement(lambda: 0.0, 0.0, progress)
    return Placement(partial(measure_handoff, threads), patience, progress, shortest or math.inf)
