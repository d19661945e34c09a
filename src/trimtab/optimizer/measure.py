"""The survivors under load on the real server: the highest rate that each one holds."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from trimtab.optimizer.points import LoadPoint
from trimtab.optimizer.served import Server, TrialFailedError
from trimtab.workloads.capacity import highest_rate

MAX_PROBES = 6
STEP = 1.5  # from rate to rate until it is enclosed: predictions are better than that
RESOLUTION = 0.06  # relative width of a measured rate
REACH = 64.0  # times what was predicted, up and down
LEAST_BACK_OFF, MOST_BACK_OFF = 0.88, 0.65  # of a rate that a repeat did not hold
T_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}


@dataclass
class Measured:
    """Of one candidate. Rates in requests a second."""

    rate: float  # that meets the SLO, as far as it was verified; 0: none does
    expected: float = 0.0  # that nearly every load should hold: before repeats
    missed: float | None = None  # the next one above `rate` that was measured; it did not hold
    points: list[LoadPoint] = field(default_factory=list)
    repeats: list[LoadPoint] = field(default_factory=list)  # at the chosen rate, fresh seeds
    usage: dict[str, Any] | None = None
    peak_memory_bytes: int | None = None
    failed: str | None = None
    censored_at: float | None = None  # it did not hold this rate, and was not looked at further

    @property
    def interval(self) -> dict[str, float]:
        """Of the goodput over the repeats, Student's t, 95 %; of the rate alone without repeats."""
        values = [point.goodput for point in self.repeats if point.valid]
        if len(values) < 2:
            return {"value": self.rate, "low": self.rate, "high": self.rate}
        mean = math.fsum(values) / len(values)
        spread = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))
        half = T_95.get(len(values), 2.0) * spread / math.sqrt(len(values))
        return {"value": mean, "low": max(0.0, mean - half), "high": mean + half}


class LazyServer:
    """Starts when it is first needed: trials that are in the journal need none."""

    def __init__(self, start: Callable[[], contextlib.AbstractContextManager[Server]]) -> None:
        self._start = start
        self._stack = contextlib.ExitStack()
        self._server: Server | None = None

    def __enter__(self) -> LazyServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._server = None
        self._stack.close()

    @property
    def is_started(self) -> bool:
        return self._server is not None

    def get(self) -> Server:
        """TrialFailedError if it does not come up, or has died."""
        if self._server is None:
            self._server = self._stack.enter_context(self._start())
        if not self._server.is_alive:
            raise TrialFailedError("the server died under load")
        return self._server


Load = Callable[[LazyServer, float, int], LoadPoint]  # rate, seed


def measure_rate(
    server: LazyServer,
    load: Load,
    seeds: Iterator[int],
    start: float,
    floor: float,
    limit: float = math.inf,
    max_probes: int = MAX_PROBES,
    width: float = RESOLUTION,
) -> Measured:
    """The highest rate around `start` that the server holds. One that does not hold `floor` (what
    the best one so far holds) is asked no further: its rate is censored there. `limit`: what no run
    of it can exceed; `width`: relative, of the rate's bracket."""
    points: list[LoadPoint] = []

    def probe(rate: float) -> LoadPoint:
        points.append(load(server, rate, next(seeds)))
        return points[-1]

    try:
        if floor:
            first = probe(floor)
            if not first.met and first.margin < -2 * first.margin_error:
                return Measured(0.0, points=points, censored_at=floor)
            start = max(start, floor)
        found = highest_rate(
            probe,
            low=start / REACH,
            high=max(start, min(start * REACH, limit)),
            start=start,
            width=width,
            max_probes=max_probes,
            step=STEP,
        )
    except TrialFailedError as error:
        return Measured(0.0, points=points, failed=str(error))
    return Measured(found.rate or 0.0, found.rate or 0.0, found.missed, points)


def lowered(margin: float) -> float:
    """The factor by which a rate is lowered that missed by `margin` (log(limit / observed), below
    0): latencies near the limit rise much faster than the rate, so half of it in logs, within
    bounds."""
    return min(LEAST_BACK_OFF, max(MOST_BACK_OFF, math.exp(margin / 2)))
