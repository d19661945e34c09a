"""Confidence sequences: how often they ever miss, against draws whose truth is known."""

from __future__ import annotations

import math

import numpy as np

from trimtab.optimizer.confidence import (
    half_width,
    quantile_sequence,
    ratio_sequence,
    remaining_bounds,
    share_sequence,
)

FLOOR, CEILING = 16, 96


def test_a_mean_is_hardly_ever_missed_at_any_look() -> None:
    """Heavy tails as KL divergences have them: log-normal within windows of uneven sizes, and
    windows that differ."""
    random = np.random.default_rng(1)
    truth = math.exp(0.5 * 1.5**2 + 0.5 * 0.4**2)
    missed = 0
    runs = 300
    for _ in range(runs):
        tokens = random.integers(100, 256, CEILING)
        level = np.exp(0.4 * random.standard_normal(CEILING))
        sums = np.array(
            [
                (np.exp(1.5 * random.standard_normal(count)) * scale).sum()
                for count, scale in zip(tokens, level, strict=True)
            ]
        )
        for looked in range(FLOOR, CEILING + 1, 8):
            found = ratio_sequence(sums[:looked], tokens[:looked])
            if not found.low <= truth <= found.high:
                missed += 1
                break
    assert missed <= 0.08 * runs  # 5 % are allowed, in the limit of many windows


def test_a_share_near_one_is_not_claimed_too_early() -> None:
    random = np.random.default_rng(2)
    truth, missed, runs = 0.985, 0, 300
    for _ in range(runs):
        hits = random.binomial(255, truth, CEILING)
        for looked in range(FLOOR, CEILING + 1, 8):
            found = share_sequence(hits[:looked], np.full(looked, 255))
            if not found.low <= truth <= found.high:
                missed += 1
                break
    assert missed <= 0.05 * runs
    assert share_sequence(np.full(16, 255), np.full(16, 255)).low < 1


def test_a_quantile_is_hardly_ever_missed() -> None:
    random = np.random.default_rng(3)
    truth, missed, runs = math.exp(2.3263478740408408), 0, 60  # of a log-normal, at 99 %
    for _ in range(runs):
        samples = [np.exp(random.standard_normal(255)) for _ in range(64)]
        for looked in (16, 32, 64):
            found = quantile_sequence(samples[:looked], 0.99)
            assert found.low <= found.value <= found.high
            if not found.low <= truth <= found.high:
                missed += 1
                break
    assert missed <= 0.08 * runs


def test_widths_shrink_and_two_samples_are_needed() -> None:
    assert half_width(1, 1.0) == math.inf
    widths = [half_width(count, 1.0) for count in (8, 16, 32, 64, 128, 1024)]
    assert widths == sorted(widths, reverse=True)
    assert half_width(24, 1.0) < 1.6 * 1.96 / math.sqrt(24)
    assert ratio_sequence([1.0], [2.0]).high == math.inf


def test_what_the_rest_can_change() -> None:
    assert remaining_bounds([0, -1, 1, 0], 4) == (0.0, 0.0)
    assert remaining_bounds([0, 0], 4) == (-0.5, 0.5)
