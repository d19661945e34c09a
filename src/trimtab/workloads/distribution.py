"""Latencies of a load: mean and percentiles, each with what its samples can show."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from trimtab.workloads.grouped import Grouped
from trimtab.workloads.statistics import Estimate, finite, percentile, rank

QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}


@dataclass(frozen=True)
class Distribution:
    """Of pooled samples, seconds; not-a-number without any."""

    count: int
    mean: float
    deviation: float  # standard deviation
    least: float
    greatest: float
    percentiles: dict[str, Estimate]  # of QUANTILES

    def is_claimed(self, name: str) -> bool:
        """Whether there are enough samples to bound the percentile from above: 368 independent ones
        for p99. Without, its value is what was seen and says little of the next load."""
        return math.isfinite(self.percentiles[name].high)

    @property
    def has_weak_percentile(self) -> bool:
        return self.count > 0 and not all(self.is_claimed(name) for name in self.percentiles)

    def as_json(self) -> dict[str, Any]:
        return {
            "count": self.count,
            "mean": finite(self.mean),
            "deviation": finite(self.deviation),
            "min": finite(self.least),
            "max": finite(self.greatest),
            **{
                name: {**estimate.as_json(), "claimed": self.is_claimed(name)}
                for name, estimate in self.percentiles.items()
            },
        }

    def row(self) -> str:
        """mean, p50, p95, p99 in milliseconds; `~` before a percentile that is not claimed."""
        if not self.count:
            return f"{'-':>10}" * 4
        cells = [f"{1e3 * self.mean:.4g}"]
        for name in ("p50", "p95", "p99"):
            mark = "" if self.is_claimed(name) else "~"
            cells.append(f"{mark}{1e3 * self.percentiles[name].value:.4g}")
        return "".join(f"{cell:>10}" for cell in cells)


def distribution(groups: Iterable[Iterable[float]]) -> Distribution:
    """Of the samples of all groups (requests), in the order of their schedule; not-a-number is left
    out. Samples of a group may be alike, and those of groups in a row that waited in one queue:
    intervals are as wide as that makes them."""
    samples = Grouped.of(groups).without_nan()
    ordered = np.sort(samples.values)
    count = len(ordered)
    if not count:
        undefined, nothing = math.nan, percentile([], 0.5)
        return Distribution(
            0, undefined, undefined, undefined, undefined, dict.fromkeys(QUANTILES, nothing)
        )
    percentiles = {}
    for name, quantile in QUANTILES.items():
        value = ordered[rank(quantile, count)]
        effective = samples.worth(samples.values <= value)
        percentiles[name] = percentile(ordered, quantile, effective)
    return Distribution(
        count=count,
        mean=float(ordered.mean()),
        deviation=float(ordered.std(ddof=1)) if count > 1 else 0.0,
        least=float(ordered[0]),
        greatest=float(ordered[-1]),
        percentiles=percentiles,
    )
