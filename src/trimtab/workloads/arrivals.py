"""When requests arrive: renewal processes (constant, Poisson, Gamma) under a rate that may change.

All are conditioned on their count: `count` arrivals within the duration, so that the offered rate
is exactly what was asked and repeats differ in their pattern only. A Poisson process conditioned on
its count is uniform draws; of the others this trims the variation of the count over the whole load
and leaves that within it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class OnOff:
    """A Markov-modulated Poisson process of two states (MMPP2)."""

    busy_share: float  # of time
    relaxation: float  # seconds: 1 / (rate into bursts + rate out of them)
    quiet_rate: float = 0.0  # between bursts, as a share of the rate within them

    def path(self, rng: np.random.Generator, duration: float) -> tuple[np.ndarray, np.ndarray]:
        mean_lengths = {
            True: self.relaxation / (1 - self.busy_share),
            False: self.relaxation / self.busy_share,
        }
        busy = bool(rng.random() < self.busy_share)
        edges, rates = [0.0], []
        while edges[-1] < duration:
            rates.append(1.0 if busy else self.quiet_rate)
            edges.append(edges[-1] + mean_lengths[busy] * float(rng.standard_exponential()))
            busy = not busy
        edges[-1] = duration
        return np.array(edges), np.array(rates)

    @property
    def text(self) -> str:
        return (
            f"MMPP2: busy {100 * self.busy_share:g} % of the time, relaxation {self.relaxation:g} s"
        )


@dataclass(frozen=True)
class Drift:
    """A rate that wanders: lognormal, first-order autoregressive over steps of ten seconds."""

    sigma: float
    correlation: float  # seconds until it has forgotten all but 1/e

    def path(self, rng: np.random.Generator, duration: float) -> tuple[np.ndarray, np.ndarray]:
        step = 10.0
        edges = np.append(np.arange(0.0, duration, step), duration)
        keep = math.exp(-step / self.correlation)
        level = float(rng.standard_normal())
        levels = []
        for _ in range(len(edges) - 1):
            levels.append(level)
            level = keep * level + math.sqrt(1 - keep * keep) * float(rng.standard_normal())
        return edges, np.exp(self.sigma * np.array(levels))

    @property
    def text(self) -> str:
        return f"rate wanders by {100 * self.sigma:g} %, correlated over {self.correlation:g} s"


@dataclass(frozen=True)
class Arrivals:
    """variation: coefficient of variation of inter-arrival times at a steady rate (0 constant,
    1 Poisson, else Gamma); modulation: what the rate does besides."""

    source: str
    variation: float = 1.0
    modulation: OnOff | Drift | None = None

    def times(self, rng: np.random.Generator, count: int, duration: float) -> list[float]:
        """Sorted seconds in [0, duration)."""
        if self.variation == 1:
            places = np.sort(rng.random(count))
        elif self.variation == 0:
            places = np.arange(count) / count
        else:
            shape = 1 / self.variation**2
            gaps = rng.standard_gamma(shape, count + 1)
            # A tiny shape gives gaps that are all 0 in floating point.
            total = float(gaps.sum()) or 1.0
            places = np.cumsum(gaps)[:-1] / total
        last = np.nextafter(duration, 0)
        if self.modulation is None:
            return [float(time) for time in np.minimum(places * duration, last)]
        edges, rates = self.modulation.path(rng, duration)
        expected = np.append(0.0, np.cumsum(np.diff(edges) * rates))
        if expected[-1] <= 0:  # quiet throughout: whatever comes, comes evenly
            expected = edges
        times = np.interp(places * expected[-1], expected, edges)
        return [float(time) for time in np.minimum(times, last)]

    @property
    def text(self) -> str:
        names = {0.0: "constant", 1.0: "Poisson"}
        kind = names.get(self.variation, f"Gamma, CV {self.variation:g}")
        return ", ".join([kind, *([self.modulation.text] if self.modulation else [])])


POISSON = Arrivals("Poisson")
# Fitted to the trace's figures by the formulas of an interrupted Poisson process: inter-arrival CV
# 13.9 (the trace 13.2), index of dispersion 10 / 71 / 161 at 1 / 10 / 60 s (13 / 71 / 161).
AZURE_CODE = Arrivals("azure-code, 2023", 1.0, OnOff(0.211, 10.0))
# CV 1.09 with the drift and index of dispersion 1.4 / 4 / 18 at 1 / 10 / 60 s (1.39 / 4.0 / 20.6).
AZURE_CONV = Arrivals("azure-conv, 2023", 1.03, Drift(0.24, 300.0))


def dispersion(times: list[float], duration: float, width: float) -> float | None:
    """Index of dispersion: variance / mean of the counts in windows of `width` seconds. 1 of a
    Poisson process; None with fewer than five windows."""
    windows = int(duration // width)
    if windows < 5 or not times:
        return None
    counts = np.bincount((np.asarray(times) // width).astype(int), minlength=windows)[:windows]
    return float(counts.var(ddof=1) / counts.mean()) if counts.any() else None


def interval_variation(times: list[float]) -> float | None:
    """Coefficient of variation of the inter-arrival times; None of fewer than three arrivals."""
    gaps = np.diff(times)
    if len(gaps) < 2 or gaps.mean() <= 0:
        return None
    return float(gaps.std(ddof=1) / gaps.mean())
