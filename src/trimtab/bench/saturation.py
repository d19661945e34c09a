"""Whether a server falls behind an open loop without end: then more load only costs time.

Requests in flight grow by what comes and is not served. Their number is averaged over blocks of
time; its slope by least squares, less what chance may have added to it (Student's t, one-sided 99
%), is the unserved part of the offered rate. Near its limit a server's queue wanders far by itself,
and long answers fill the flight at first: hence the conditions below.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

NUM_BLOCKS = 8
T_99 = 3.143  # Student's t of 6 degrees of freedom, one-sided 99 %
MIN_SECONDS = 10.0  # of the window
MIN_ARRIVALS = 60  # within it
MIN_UNSERVED = 0.1  # share of the offered rate
NUM_FIRST = 20
UNLOADED_LATENCIES = 5  # so many of the first answers' latencies must have passed


@dataclass(frozen=True)
class Saturation:
    at: float  # seconds from the start of the load
    offered: float  # requests a second, in the window
    served: float
    in_flight: int

    def line(self) -> str:
        return (
            f"over-saturated: {self.offered:.3g} requests/s came, {self.served:.3g} were served, "
            f"{self.in_flight} in flight after {self.at:.0f} s; the rest was cut"
        )


def find_saturation(
    arrivals: Sequence[int],
    ends: Sequence[int],
    spacing: float,
    first_latencies: Sequence[float],
) -> Saturation | None:
    """`arrivals` and `ends`: how many requests had come and gone at times `spacing` seconds apart,
    from the start on; `first_latencies` of the answers that ended first: what the server takes
    while it is not loaded. The window is the later half."""
    if not first_latencies:
        return None
    unloaded = statistics.median(first_latencies[:NUM_FIRST])
    per_block = len(arrivals) // 2 // NUM_BLOCKS
    first = len(arrivals) - per_block * NUM_BLOCKS
    window = per_block * NUM_BLOCKS * spacing
    if window < MIN_SECONDS or first * spacing < UNLOADED_LATENCIES * unloaded:
        return None
    arrived = arrivals[-1] - arrivals[first]
    if arrived < MIN_ARRIVALS:
        return None
    means = []
    for start in range(first, len(arrivals), per_block):
        end = start + per_block
        means.append((sum(arrivals[start:end]) - sum(ends[start:end])) / per_block)
    slope, error = slope_of(means, per_block * spacing)
    offered = arrived / window
    if slope - T_99 * error < MIN_UNSERVED * offered:
        return None
    served = (ends[-1] - ends[first]) / window
    return Saturation(len(arrivals) * spacing, offered, served, arrivals[-1] - ends[-1])


def slope_of(values: Sequence[float], spacing: float) -> tuple[float, float]:
    """Least-squares slope of equidistant values, and its standard error."""
    count = len(values)
    center = (count - 1) / 2
    mean = math.fsum(values) / count
    squares = math.fsum((n - center) ** 2 for n in range(count))
    slope = math.fsum((n - center) * (v - mean) for n, v in enumerate(values)) / squares
    residuals = math.fsum((v - mean - slope * (n - center)) ** 2 for n, v in enumerate(values))
    error = math.sqrt(residuals / (count - 2) / squares)
    return slope / spacing, error / spacing
