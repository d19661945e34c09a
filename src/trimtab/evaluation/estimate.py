"""Means with their uncertainty."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Z95 = 1.959963984540054  # the normal quantile of a two-sided 95 % interval


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % confidence interval, infinite where one sample says nothing of it."""

    value: float
    low: float
    high: float

    def map(self, function: Callable[[float], float]) -> Estimate:
        """Of an increasing function of the value: exact for the ends of the interval, too."""
        return Estimate(function(self.value), function(self.low), function(self.high))

    def as_json(self) -> dict[str, Any]:
        """Infinite ends are null: JSON has no infinity."""
        ends = [end if math.isfinite(end) else None for end in (self.low, self.high)]
        return {"value": self.value, "low": ends[0], "high": ends[1]}


def ratio(sums: Sequence[float], counts: Sequence[float]) -> Estimate:
    """sum(sums) / sum(counts), where the pairs are independent samples (windows of a text) but what
    was summed within one is not: the variance of a ratio estimator (Cochran, Sampling Techniques,
    section 6.4). Raises ValueError if nothing was counted."""
    values, weights = np.asarray(sums, np.float64), np.asarray(counts, np.float64)
    total = float(weights.sum())
    if total <= 0:
        raise ValueError("nothing to take a mean of")
    mean = float(values.sum()) / total
    samples = len(values)
    if samples < 2:
        return Estimate(mean, -math.inf, math.inf)
    residuals = values - mean * weights
    error = math.sqrt(float((residuals**2).sum()) * samples / (samples - 1)) / total
    return Estimate(mean, mean - Z95 * error, mean + Z95 * error)


def share(successes: int, trials: int) -> Estimate:
    """successes / trials with Wilson's interval (J. Am. Stat. Assoc. 22, 1927), which holds for
    few trials and near 0 and 1, too. Raises ValueError without trials."""
    if trials < 1:
        raise ValueError("nothing to take a share of")
    p, z2 = successes / trials, Z95 * Z95
    middle = (p + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z95 * math.sqrt(p * (1 - p) / trials + z2 / (4 * trials * trials)) / (1 + z2 / trials)
    return Estimate(p, max(0.0, min(p, middle - half)), min(1.0, max(p, middle + half)))
