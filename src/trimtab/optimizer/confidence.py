"""Intervals that hold at every look: a test may stop as soon as one of them decides.

The mean of windows that come one after the other has the asymptotic confidence sequence of
Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, "Time-uniform central limit theory and asymptotic
confidence sequences" (Annals of Statistics 52, 2024), theorem 2.2: the central limit theorem, held
at all sizes at once. It needs some windows before the first look, and that windows are exchangeable
(they come in random order).
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from trimtab.evaluation.estimate import Estimate

Float64Array = npt.NDArray[np.float64]
ALPHA = 0.05  # that one of a sequence's intervals, ever, misses the truth
# Of percentiles: the share beyond one is small and comes in clumps, so that the intervals of few
# windows miss more often than they should: docs/log.md, 2026-11-22.
TAIL_ALPHA = 0.01
TIGHTEST_AT = 24  # windows where the sequence is as narrow as it can be


def half_width(
    count: int, deviation: float, tightest_at: int = TIGHTEST_AT, alpha: float = ALPHA
) -> float:
    """Of the interval after `count` samples with this standard deviation."""
    if count < 2:
        return math.inf
    log = -2 * math.log(alpha)
    spread = (log + math.log(log) + 1) / tightest_at  # rho squared
    scaled = count * spread
    return deviation * math.sqrt(
        2 * (scaled + 1) / (count * scaled) * math.log(math.sqrt(scaled + 1) / alpha)
    )


def ratio_sequence(
    sums: npt.ArrayLike,
    weights: npt.ArrayLike,
    least_deviation: float = 0.0,
    tightest_at: int = TIGHTEST_AT,
    alpha: float = ALPHA,
) -> Estimate:
    """sum(sums) / sum(weights), of samples that are pairs (a window's sum and its tokens): after
    linearizing, as `trimtab.evaluation.estimate.ratio` does. The samples' standard deviation counts
    as at least `least_deviation`."""
    values, counts = np.asarray(sums, np.float64), np.asarray(weights, np.float64)
    mean = float(values.sum() / counts.sum())
    number = len(values)
    if number < 2:
        return Estimate(mean, -math.inf, math.inf)
    residuals = (values - mean * counts) / counts.mean()
    deviation = math.sqrt(float((residuals**2).sum()) / (number - 1))
    # Few samples say too little of their own deviation: the excess of Student's t over the normal.
    deviation *= math.sqrt((number - 1) / max(number - 3, 1))
    half = half_width(number, max(deviation, least_deviation), tightest_at, alpha)
    return Estimate(mean, mean - half, mean + half)


def share_sequence(hits: npt.ArrayLike, weights: npt.ArrayLike, alpha: float = ALPHA) -> Estimate:
    """The share of hits among tokens, of windows. Windows that all agree do not prove that all
    others would: the deviation is at least that of independent tokens, two of which went each
    way beyond what was seen (Agresti and Coull)."""
    values, counts = np.asarray(hits, np.float64), np.asarray(weights, np.float64)
    guess = (float(values.sum()) + 2) / (float(counts.sum()) + 4)
    least = math.sqrt(guess * (1 - guess) / float(counts.mean()))
    found = ratio_sequence(values, counts, least, alpha=alpha)
    return Estimate(found.value, max(0.0, found.low), min(1.0, found.high))


def quantile_sequence(samples: list[Float64Array], share: float) -> Estimate:
    """The quantile at `share` of values that come in windows: those x that cannot be told from it,
    by the sequence for the share of values above x."""
    values = np.concatenate(samples)
    order = np.sort(values)
    value = float(np.quantile(values, share))
    counts = np.array([len(one) for one in samples], np.float64)
    above = 1 - share

    def exceeding(x: float) -> Estimate:
        hits = [float((one > x).sum()) for one in samples]
        return share_sequence(hits, counts, TAIL_ALPHA)

    # The share above x falls with x, so that the ends can be found by halving.
    low, high = 0, len(order)  # first index whose lower bound is at most `above`
    while low < high:
        middle = (low + high) // 2
        if exceeding(float(order[middle])).low > above:
            low = middle + 1
        else:
            high = middle
    lower = float(order[low - 1]) if low > 0 else 0.0
    left, right = 0, len(order)  # first index whose upper bound is below `above`
    while left < right:
        middle = (left + right) // 2
        if exceeding(float(order[middle])).high >= above:
            left = middle + 1
        else:
            right = middle
    upper = float(order[left]) if left < len(order) else math.inf
    return Estimate(value, min(lower, value), max(upper, value))


def remaining_bounds(differences: npt.ArrayLike, total: int) -> tuple[float, float]:
    """The least and the most that the mean of `total` values in [-1, 1] can still be, when some of
    them are known."""
    known = np.asarray(differences, np.float64)
    rest = total - len(known)
    return (float(known.sum()) - rest) / total, (float(known.sum()) + rest) / total
