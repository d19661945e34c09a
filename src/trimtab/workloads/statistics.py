"""What can be said of shares and percentiles from few samples: exact binomial statistics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_BATCHES = 20  # of requests in a row
CONFIDENCE = 0.95  # of one-sided bounds, and of two-sided intervals


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % confidence interval, infinite where the samples say nothing of it."""

    value: float
    low: float
    high: float

    def scaled(self, factor: float) -> Estimate:
        return Estimate(self.value * factor, self.low * factor, self.high * factor)

    def as_json(self) -> dict[str, Any]:
        """What is not finite is null: JSON has neither infinity nor not-a-number."""
        return {name: finite(getattr(self, name)) for name in ("value", "low", "high")}


def finite(value: float | None) -> float | None:
    """The value for JSON: None where it is infinite or not a number."""
    return value if value is not None and math.isfinite(value) else None


def _beta_fraction(a: float, b: float, x: float) -> float:
    """The continued fraction of the incomplete beta function (DLMF 8.17.22), by Lentz's method."""
    tiny = 1e-300
    c, d = 1.0, 1.0 - (a + b) * x / (a + 1)
    d = 1 / (d if abs(d) > tiny else tiny)
    result = d
    for m in range(1, 10_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        step = 1.0
        for factor in (even, odd):
            d = 1 + factor * d
            c = 1 + factor / c
            d = 1 / (d if abs(d) > tiny else tiny)
            c = c if abs(c) > tiny else tiny
            step = c * d
            result *= step
        if abs(step - 1) < 1e-14:
            break
    return result


def beta_cdf(x: float, a: float, b: float) -> float:
    """The regularized incomplete beta function I_x(a, b), for positive a and b."""
    if x <= 0 or x >= 1:
        return 0.0 if x <= 0 else 1.0
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front = math.exp(log_front + a * math.log(x) + b * math.log1p(-x))
    if x < (a + 1) / (a + b + 2):
        return front * _beta_fraction(a, b, x) / a
    return 1 - front * _beta_fraction(b, a, 1 - x) / b


def beta_quantile(probability: float, a: float, b: float) -> float:
    """x with I_x(a, b) = probability, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if beta_cdf(middle, a, b) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def binomial_cdf(successes: int, trials: int, share: float) -> float:
    """P(X <= successes) of X ~ Binomial(trials, share)."""
    if successes < 0:
        return 0.0
    if successes >= trials:
        return 1.0
    return 1 - beta_cdf(share, successes + 1, trials - successes)


def share_at_least(successes: float, trials: float, confidence: float = CONFIDENCE) -> float:
    """One-sided lower bound of a share (Clopper and Pearson, Biometrika 26, 1934).

    Counts need not be whole: effective numbers of samples that are not independent are fine.
    0 without trials.
    """
    if successes <= 0 or trials <= 0:
        return 0.0
    return beta_quantile(1 - confidence, successes, max(0.0, trials - successes) + 1)


def share_at_most(successes: float, trials: float, confidence: float = CONFIDENCE) -> float:
    """The upper bound that belongs to `share_at_least`; 1 without trials."""
    return 1 - share_at_least(trials - successes, trials, confidence)


def share_estimate(successes: float, trials: float) -> Estimate:
    """A share with its two-sided interval. Not a number without trials."""
    one_sided = (1 + CONFIDENCE) / 2
    return Estimate(
        successes / trials if trials else math.nan,
        share_at_least(successes, trials, one_sided),
        share_at_most(successes, trials, one_sided),
    )


def samples_needed(quantile: float, confidence: float = CONFIDENCE) -> int:
    """How many samples it takes before all of them below a limit show, with this confidence, that
    the quantile is: 299 for p99, 59 for p95. 0 of a quantile of 0; raises ValueError for 1."""
    if not 0 <= quantile < 1:
        raise ValueError("no number of samples shows a maximum")
    return math.ceil(math.log(1 - confidence) / math.log(quantile)) if quantile else 0


def rank(quantile: float, count: int) -> int:
    """Index of the quantile among `count` sorted samples: the smallest sample that at least this
    share of all does not exceed (nearest rank)."""
    return min(count - 1, max(0, math.ceil(quantile * count - 1e-9) - 1))


def percentile(
    ordered: Sequence[float] | np.ndarray, quantile: float, effective: float | None = None
) -> Estimate:
    """A percentile of sorted samples with its distribution-free interval by order statistics
    (David and Nagaraja, Order Statistics, section 7.1).

    `effective` is the number of independent samples that these are worth, at most their number.
    An end that so few samples cannot give is infinite. Not a number without samples.
    """
    count = len(ordered)
    if not count:
        return Estimate(math.nan, -math.inf, math.inf)
    trials = max(1, min(count, round(effective if effective is not None else count)))
    tail = (1 - CONFIDENCE) / 2
    below = _largest_rank(trials, quantile, tail)
    above = trials - _largest_rank(trials, 1 - quantile, tail) + 1
    return Estimate(
        float(ordered[rank(quantile, count)]),
        float(ordered[_stretch(below, trials, count)]) if below >= 1 else -math.inf,
        float(ordered[_stretch(above, trials, count)]) if above <= trials else math.inf,
    )


def _largest_rank(trials: int, quantile: float, tail: float) -> int:
    """The largest 1-based rank r with P(X < r) <= tail of X ~ Binomial(trials, quantile); 0 if
    there is none. The chance that the r-th sample lies above the quantile is at most `tail`."""
    low, high = 0, trials + 1
    while high - low > 1:
        middle = (low + high) // 2
        if binomial_cdf(middle - 1, trials, quantile) <= tail:
            low = middle
        else:
            high = middle
    return low


def _stretch(position: int, trials: int, count: int) -> int:
    """Index among `count` samples of the 1-based rank among `trials` evenly thinned ones."""
    return min(count - 1, max(0, round((position - 0.5) * count / trials - 0.5)))


def effective_samples(below: Sequence[float], totals: Sequence[float]) -> float:
    """How many independent samples pooled ones are worth, that come in groups (the gaps of one
    request): total / design effect (Kish, Survey Sampling, 1965), at most the total.

    below: of each group, how many of its samples are below a limit; totals: how many it has.
    Where none or all are, nothing shows how alike a group's samples are, and all count.
    """
    total, hits, groups = math.fsum(totals), math.fsum(below), len(totals)
    if groups < 2 or not 0 < hits < total:
        return total
    share = hits / total
    between = math.fsum((hit - share * size) ** 2 for hit, size in zip(below, totals, strict=True))
    variance = between * groups / (groups - 1) / total**2
    return min(total, share * (1 - share) / variance) if variance else total


def worth(below: Sequence[float], sizes: Sequence[float]) -> float:
    """How many independent samples those of requests, in the order of their schedule, are worth:
    the gaps of a request are alike, and so are requests that waited in one queue. The smaller of
    what requests and what batches of them in a row tell (Law and Carson, Operations Research 27,
    1979: batch means)."""
    starts = range(0, len(sizes), max(1, math.ceil(len(sizes) / _BATCHES)))
    step = starts.step
    batches = [math.fsum(below[start : start + step]) for start in starts]
    totals = [math.fsum(sizes[start : start + step]) for start in starts]
    return min(effective_samples(below, sizes), effective_samples(batches, totals))
