import json
import math
from dataclasses import dataclass

import numpy as np
import pytest

from trimtab.workloads.capacity import falling, highest_rate
from trimtab.workloads.records import RequestRecord
from trimtab.workloads.slo import parse_slo

SERVICE = 0.1  # seconds: an M/D/1 queue that can do ten requests a second


def waits_within(rate, limit):
    """P(wait <= limit) of M/D/1 (Erlang 1909): the exact answer."""
    load = rate * SERVICE
    total = 0.0
    for k in range(math.floor(limit / SERVICE + 1e-9) + 1):
        x = rate * (k * SERVICE - limit)
        total += x**k / math.factorial(k) * math.exp(-x)
    return (1 - load) * total


def true_rate(quantile, limit):
    low, high = 0.01, 9.99
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if waits_within(middle, limit) >= quantile else (low, middle)
    return low


class Queue:
    """Measures M/D/1 with fresh random numbers at each probe."""

    def __init__(self, slo, requests, seed):
        self.slo, self.requests = parse_slo(slo), requests
        self.rng = np.random.default_rng(seed)
        self.rates = []

    def __call__(self, rate):
        self.rates.append(rate)
        gaps = self.rng.exponential(1 / rate, self.requests)
        arrivals = np.cumsum(gaps)
        wait, records = 0.0, []
        for index, (time, gap) in enumerate(zip(arrivals, gaps, strict=True)):
            wait = max(0.0, wait + SERVICE * (index > 0) - gap)
            first = float(time) + wait
            records.append(RequestRecord(index, float(time), float(time), first, [first], [1]))
        return self.slo.evaluate(records)


@pytest.mark.parametrize(("quantile", "limit"), [(0.5, 0.15), (0.95, 0.5), (0.99, 0.8)])
def test_the_capacity_of_a_queue_is_the_analytic_one(quantile, limit):
    expected = true_rate(quantile, limit)
    found = []
    for seed in range(5):
        queue = Queue(f"ttft:p{100 * quantile:g}<{limit}s", 4000, seed)
        capacity = highest_rate(queue, 0.1, 100.0, width=0.03, max_probes=14)
        assert capacity.status == "found"
        assert capacity.rate == pytest.approx(expected, rel=0.12)
        found.append(capacity.rate)
    assert np.median(found) == pytest.approx(expected, rel=0.04)


def test_the_interval_holds_the_capacity():
    """Although waits that follow one another are alike."""
    expected = true_rate(0.95, 0.5)
    covered = 0
    for seed in range(20):
        estimate = highest_rate(Queue("ttft:p95<500ms", 1500, seed), 2, 20, width=0.05).estimate
        covered += estimate.low <= expected <= estimate.high
    assert covered >= 16


@dataclass
class Exactly:
    met: bool
    margin: float
    margin_error: float = 0.0


def knee(capacity, slope=1.0):
    return lambda rate: Exactly(rate <= capacity, slope * math.log(capacity / rate))


def test_it_takes_fewer_probes_than_bisection():
    probes = [len(highest_rate(knee(c, 3.0), 0.1, 100, width=0.02).probes) for c in (0.5, 7.3, 60)]
    bisection = math.log2(math.log(1000) / math.log(1.02))
    assert max(probes) < bisection


@pytest.mark.parametrize("capacity", [0.11, 0.9, 3.0, 42.0, 99.0])
@pytest.mark.parametrize("slope", [0.01, 1.0, 50.0])
def test_a_sharp_and_a_flat_knee_are_found(capacity, slope):
    found = highest_rate(knee(capacity, slope), 0.1, 100, width=0.05, max_probes=30)
    assert found.status == "found"
    assert found.rate <= capacity < found.missed <= found.rate * 1.05
    assert found.rate <= found.estimate.value <= found.missed


@pytest.mark.parametrize("margin", [0.001, 5.0])
def test_a_step_without_any_slope_is_bisected(margin):
    def step(rate):
        return Exactly(rate <= 6.6, margin if rate <= 6.6 else -margin)

    found = highest_rate(step, 0.5, 64, width=0.05, max_probes=20)
    assert found.status == "found"
    assert found.rate <= 6.6 < found.missed


def test_what_cannot_be_met_at_the_lowest_rate_says_so():
    found = highest_rate(knee(0.01), 0.5, 8)
    assert found.status == "missed at the lowest rate"
    assert found.rate is None
    assert found.estimate is None
    assert min(probe.rate for probe in found.probes) == 0.5
    assert "not even 0.5 requests/s" in found.line()


def test_a_close_call_at_the_lowest_rate_gets_another_chance():
    verdicts = iter([Exactly(False, -0.1, 0.2), Exactly(True, 0.3, 0.2), Exactly(False, -2, 0.1)])
    found = highest_rate(lambda rate: next(verdicts), 1.0, 4.0, start=1.0, max_probes=3)
    assert [probe.rate for probe in found.probes] == [1.0, 1.0, 2.0]
    assert found.rate == 1.0


def test_what_is_met_at_the_highest_rate_says_so():
    found = highest_rate(knee(1000), 0.5, 9)
    assert (found.status, found.rate, found.missed) == ("met at the highest rate", 9, None)
    assert "at least 9 requests/s" in found.line()


@pytest.mark.parametrize("limit", [1, 2, 3, 5])
def test_there_are_never_more_probes_than_allowed(limit):
    calls = []

    def attained(rate):
        calls.append(rate)
        return Exactly(rate <= 3.3, 1.0 if rate <= 3.3 else -1.0)

    found = highest_rate(attained, 0.1, 100, width=1e-6, max_probes=limit)
    assert len(calls) == len(found.probes) == limit
    assert found.status == "out of probes"
    assert all(0.1 <= rate <= 100 for rate in calls)
    assert found.line()


def test_one_unlucky_probe_does_not_decide():
    """A miss well below the capacity, within its noise, is outvoted by successes above it."""
    unlucky = iter([True])

    def attained(rate):
        if rate < 3 and next(unlucky, False):
            return Exactly(False, -0.05, 0.5)
        return Exactly(rate <= 8, math.log(8 / rate), 0.1)

    found = highest_rate(attained, 1, 30, start=2.0, width=0.05, max_probes=20)
    assert found.status == "found"
    assert 7 <= found.rate <= 8.2
    assert any(not probe.verdict.met and probe.rate < 3 for probe in found.probes)


def test_errors_and_infinite_margins_are_read():
    def attained(rate):
        return Exactly(rate < 5, math.inf if rate < 5 else -math.inf, math.inf)

    found = highest_rate(attained, 1, 20, width=0.1, max_probes=20)
    assert found.rate < 5 <= found.missed
    json.dumps(found.as_json(), allow_nan=False)


def test_wrong_ranges_are_refused():
    for arguments in ({"low": 0, "high": 1}, {"low": 2, "high": 1}, {"low": 1, "high": math.inf}):
        with pytest.raises(ValueError, match="low <= high"):
            highest_rate(knee(1), **arguments)
    with pytest.raises(ValueError, match="width"):
        highest_rate(knee(1), 1, 2, width=0)


def test_pooling_gives_the_closest_falling_sequence():
    assert falling([3, 2, 1], [1, 1, 1]) == [3, 2, 1]
    assert falling([1, 3], [1, 3]) == [2.5, 2.5]
    assert falling([3, 1, 2, 0], [1, 1, 1, 1]) == [3, 1.5, 1.5, 0]
    assert falling([1, 2, 3], [1, 1, 1]) == [2, 2, 2]


def test_a_line_that_hardly_falls_crosses_nowhere():
    """Its zero is beyond what a float can hold."""
    margins = {10.0: 0.2, 15.0: -5.0, 12.0: 0.2 - 1e-6}
    verdicts = iter(Exactly(margin > 0, margin, 1e-9) for margin in margins.values())
    found = highest_rate(
        lambda rate: next(verdicts), 1.0, 100.0, start=10.0, max_probes=3, step=1.5
    )
    assert found.estimate is not None
    assert found.rate <= found.estimate.value <= found.missed
