from __future__ import annotations

import random

import pytest

from trimtab.bench.saturation import find_saturation, slope_of

SPACING = 0.1


def simulated(
    rate: float, service: float, seconds: float, seed: int, delay: float = 0.0
) -> tuple[list[int], list[int], list[float]]:
    """One server with constant service times, after a fixed `delay`: counts, first latencies."""
    rng = random.Random(seed)
    now, free = 0.0, 0.0
    arrivals, ends = [], []
    while now < seconds:
        arrivals.append(now)
        free = max(free, now) + service
        ends.append(free + delay)
        now += rng.expovariate(rate)
    latencies = [end - at for at, end in zip(arrivals[:20], ends, strict=False) if end < seconds]
    times = [SPACING * (n + 1) for n in range(int(seconds / SPACING))]
    return (
        [sum(at <= time for at in arrivals) for time in times],
        [sum(at <= time for at in ends) for time in times],
        latencies,
    )


@pytest.mark.parametrize("seed", range(5))
def test_twice_the_capacity_is_found_and_the_rates_with_it(seed: int) -> None:
    arrivals, ends, first = simulated(20, 0.1, 40, seed)
    found = find_saturation(arrivals, ends, SPACING, first)
    assert found is not None
    assert found.served == pytest.approx(10, rel=0.15)
    assert found.offered == pytest.approx(20, rel=0.3)
    assert "over-saturated" in found.line()


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("load", [0.5, 0.9])
def test_a_busy_server_that_keeps_up_is_left_alone(load: float, seed: int) -> None:
    arrivals, ends, first = simulated(load * 20, 0.05, 60, seed)
    for until in range(200, 601, 50):
        assert find_saturation(arrivals[:until], ends[:until], SPACING, first) is None


def test_long_answers_that_fill_the_flight_at_first_are_no_saturation() -> None:
    arrivals, ends, first = simulated(10, 0.001, 60, 1, delay=15.0)
    for until in range(20, 601, 20):
        assert find_saturation(arrivals[:until], ends[:until], SPACING, first) is None


def test_nothing_is_said_before_anything_has_ended() -> None:
    assert find_saturation([100] * 400, [0] * 400, SPACING, []) is None


def test_slope_and_its_error() -> None:
    assert slope_of([1, 3, 5, 7], 0.5) == pytest.approx((4, 0))
    slope, error = slope_of([0, 1, 0, 1, 0, 1], 1.0)
    assert abs(slope) < 2 * error
