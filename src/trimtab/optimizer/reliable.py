"""The rate that nearly every load holds, out of a few that were measured.

The search finds the highest rate that held for the requests that it drew. Other requests, with
other lengths and other bursts, hold more or less, and in loads of a minute that is a factor, not
a few percent. How much it scatters is known without loading anything: the simulator plays the load
with many seeds. Where it is wrong on the whole, the measured loads tell: each is replayed, and what
its margin was beyond the simulated one is added to all. How much those gaps spread is what the
machine and the model of it do from load to load: of all candidates together, since each has but
a few.

    margin(rate, seed) = simulated(rate, seed) + mean(measured - simulated)  +- their spread
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence

from trimtab.optimizer.points import LoadPoint

CONFIDENCE = 0.95  # of loads hold the rate
SEEDS = 20
ROUNDS = 6
LOWEST, HIGHEST = 0.25, 0.8  # times the rate that was found: its requests were kind, others are not
NEAR = 1.0  # |margin| of a load that says something about the limit
SPREAD, SPREAD_LOADS = 0.2, 4  # of gaps, until loads say otherwise; that counts as so many

Margin = Callable[[float, int], float]  # rate, number of a seed -> simulated margin


def gaps_of(pairs: Sequence[tuple[LoadPoint, LoadPoint]]) -> list[float]:
    """Of margins; `pairs`: measured loads and the same simulated. Those far from the limit say
    nothing."""
    return [
        real.margin - simulated.margin
        for real, simulated in pairs
        if real.valid and abs(real.margin) < NEAR and abs(simulated.margin) < 2 * NEAR
    ]


def spread_of(groups: Iterable[Sequence[float]]) -> float:
    """Standard deviation of gaps within the groups, one a candidate."""
    squares, count = SPREAD_LOADS * SPREAD**2, float(SPREAD_LOADS)
    for gaps in groups:
        if gaps:
            mean = statistics.fmean(gaps)
            squares += math.fsum((gap - mean) ** 2 for gap in gaps)
            count += len(gaps) - 1
    return math.sqrt(squares / count)


def reliable_rate(
    found: float,
    gaps: Sequence[float],
    spread: float,
    margin: Margin,
    stop: Callable[[], bool],
) -> float | None:
    """The highest rate around `found` that CONFIDENCE of loads hold. None if nothing can be said:
    no gaps, or no time."""
    if not gaps:
        return None
    offset = statistics.fmean(gaps)
    spread *= math.sqrt(1 + 1 / len(gaps))  # the mean of a few is not certain, either

    def holds(rate: float) -> bool:
        misses = 0.0
        for number in range(SEEDS):
            above = (margin(rate, number) + offset) / spread
            misses += 0.5 * math.erfc(above / math.sqrt(2))
            if misses > (1 - CONFIDENCE) * SEEDS:
                return False
        return True

    low, high = LOWEST, HIGHEST
    for _ in range(ROUNDS):
        if stop():
            return None
        middle = math.sqrt(low * high)
        if holds(middle * found):
            low = middle
        else:
            high = middle
    return low * found
