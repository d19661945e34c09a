"""Means with their intervals, against figures from textbooks and against simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from trimtab.evaluation.estimate import Z95, Estimate, ratio, share


def test_equal_weights_give_the_mean_and_its_standard_error() -> None:
    values = [1.0, 4.0, 2.5, 0.5]
    found = ratio(values, [1] * 4)
    error = np.std(values, ddof=1) / 2
    assert found.value == pytest.approx(2.0)
    assert found.high - found.value == pytest.approx(Z95 * error)
    assert found.value - found.low == pytest.approx(Z95 * error)


def test_windows_of_different_lengths_count_by_their_tokens() -> None:
    found = ratio([10.0, 1.0], [100, 1])
    assert found.value == pytest.approx(11 / 101)
    assert ratio([30.0, 60.0, 90.0], [10, 20, 30]) == Estimate(3.0, 3.0, 3.0)  # nothing varies


def test_nineteen_of_twenty_intervals_hold_the_truth() -> None:
    random = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        counts = random.integers(20, 200, 60)
        levels = random.normal(2.0, 0.5, 60)  # what the tokens of a window have in common
        sums = [
            float(random.normal(level, 1, n).sum()) for level, n in zip(levels, counts, strict=True)
        ]
        found = ratio(sums, counts.tolist())
        held += found.low <= 2.0 <= found.high
    assert 0.91 < held / 400 < 0.98


def test_one_window_has_no_interval() -> None:
    found = ratio([3.0], [2])
    assert found == Estimate(1.5, -math.inf, math.inf)
    assert found.as_json() == {"value": 1.5, "low": None, "high": None}


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [(0, 10, 0.0, 0.2775), (8, 10, 0.4902, 0.9433), (10, 10, 0.7225, 1.0), (1, 1, 0.2065, 1.0)],
)
def test_shares_have_the_interval_of_wilson(
    right: int, count: int, low: float, high: float
) -> None:
    found = share(right, count)
    assert found.value == right / count
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


def test_nothing_measured_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing"):
        ratio([], [])
    with pytest.raises(ValueError, match="nothing"):
        share(0, 0)
