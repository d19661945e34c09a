"""The rate that nearly every load holds, out of a few that were measured.

The search finds the highest rate that held for the requests that it drew. Other requests, with
other lengths and other bursts, hold more or less, and in loads of a minute that is a factor, not
a few percent. How much it scatters is known without loading anything: the simulator plays the load
with many seeds. Where it is wrong on the whole, the measured loads tell: each is replayed, and what
its margin was beyond the simulated one is added to all. How much those gaps spread is what the
machine and the model of it do from load to load: of all candidates together, since each has but
a few.

    margin(rate, seed) = simulated(rate, seed) + mean(measured - simulated)  +- their spread

A load of a few seconds is over before a queue has grown: what it holds, nobody may hold for long.
So loads of many requests are simulated first, and the rate is one that both hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from trimtab.optimizer.points import LoadPoint

ROUNDS = 6
LOWEST = 0.25  # times the highest rate that is looked at
FAR = 1.0  # |margin| of a load that says nothing about the limit
NEAR = 0.3  # and of one that says half as much as one at the limit
SPREAD, SPREAD_LOADS = 0.12, 4  # of gaps, until loads say otherwise; that counts as so many


class Loads(NamedTuple):
    """Simulated ones, as long as each other."""

    margin: Callable[[float, int], float]  # rate, number of a seed ->
    num_loads: int
    confidence: float  # that a load holds the rate


class Gap(NamedTuple):
    """Of a load's margins, measured less simulated."""

    value: float
    weight: float  # 1 at the limit, where rates are decided; far from it gaps are others


def gaps_of(pairs: Sequence[tuple[LoadPoint, LoadPoint]]) -> list[Gap]:
    """`pairs`: measured loads and the same simulated. Those far from the limit say nothing."""
    found = []
    for real, simulated in pairs:
        if real.valid and abs(real.margin) < FAR and abs(simulated.margin) < 2 * FAR:
            middle = (real.margin + simulated.margin) / 2
            found.append(Gap(real.margin - simulated.margin, 1 / (1 + (middle / NEAR) ** 2)))
    return found


def offset_of(gaps: Sequence[Gap]) -> tuple[float, float]:
    """Their mean, drawn to 0 by as much as one load at the limit, and the weight behind it."""
    weight = 1 + math.fsum(gap.weight for gap in gaps)
    return math.fsum(gap.weight * gap.value for gap in gaps) / weight, weight


def spread_of(groups: Iterable[Sequence[Gap]]) -> float:
    """Standard deviation of gaps within the groups, one a candidate."""
    squares, count = SPREAD_LOADS * SPREAD**2, float(SPREAD_LOADS)
    for gaps in groups:
        offset, weight = offset_of(gaps)
        squares += math.fsum(gap.weight * (gap.value - offset) ** 2 for gap in gaps)
        count += weight - 1
    return math.sqrt(squares / count)


def reliable_rate(
    highest: float,
    gaps: Sequence[Gap],
    spread: float,
    lengths: Sequence[Loads],
    stop: Callable[[], bool],
) -> float | None:
    """The highest rate up to `highest` that loads of each length hold as surely as they ask, the
    first of them first; when time is up, the highest that is known to be held. None if nothing can
    be said: no gaps, or no time."""
    if not gaps:
        return None
    offset, weight = offset_of(gaps)
    spread *= math.sqrt(1 + 1 / weight)  # the mean of a few is not certain, either

    def holds(loads: Loads, rate: float) -> bool:
        misses = 0.0
        for number in range(loads.num_loads):
            above = (loads.margin(rate, number) + offset) / spread
            misses += 0.5 * math.erfc(above / math.sqrt(2))
            if misses > (1 - loads.confidence) * loads.num_loads:
                return False
        return True

    rate = None
    for loads in lengths:
        if rate is not None and (stop() or holds(loads, rate)):
            continue
        low, high = LOWEST * highest, rate or highest
        for _ in range(ROUNDS):
            if stop():
                rate = rate and min(rate, high)
                break
            middle = math.sqrt(low * high)
            if holds(loads, middle):
                rate = low = middle
            else:
                high = middle
        else:
            rate = low
    return rate
