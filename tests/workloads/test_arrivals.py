import numpy as np
import pytest

from trimtab.workloads.arrivals import (
    AZURE_CODE,
    AZURE_CONV,
    POISSON,
    Arrivals,
    OnOff,
    dispersion,
    interval_variation,
)


def times(arrivals, rate, seconds, seed=0):
    return arrivals.times(np.random.default_rng(seed), round(rate * seconds), seconds)


@pytest.mark.parametrize(
    "arrivals", [POISSON, AZURE_CODE, AZURE_CONV, *(Arrivals("", cv) for cv in (0, 0.3, 5, 100))]
)
@pytest.mark.parametrize("count", [0, 1, 2, 300])
def test_times_are_sorted_within_the_duration_and_as_many_as_asked(arrivals, count):
    found = arrivals.times(np.random.default_rng(1), count, 30.0)
    assert len(found) == count
    assert found == sorted(found)
    assert all(0 <= time < 30 for time in found)
    assert found == arrivals.times(np.random.default_rng(1), count, 30.0)


@pytest.mark.parametrize("variation", [0.0, 0.5, 1.0, 3.0])
def test_gaps_vary_as_asked(variation):
    found = interval_variation(times(Arrivals("", variation), 5, 6000))
    assert found == pytest.approx(variation, rel=0.08, abs=1e-6)


def test_poisson_counts_are_dispersed_as_their_mean():
    found = times(POISSON, 5, 6000)
    for width in (1, 10):
        assert dispersion(found, 6000, width) == pytest.approx(1, abs=0.2)


def median_of_seeds(arrivals, rate, measure):
    """Of ten hours each: bursts make single runs differ."""
    return np.median([measure(times(arrivals, rate, 36_000, seed)) for seed in range(5)])


@pytest.mark.parametrize(
    ("arrivals", "rate", "variation", "dispersions"),
    [
        (AZURE_CODE, 2.57, 13.15, (13.2, 71, 161)),
        (AZURE_CONV, 5.53, 1.09, (1.39, 4.0, 20.6)),
    ],
)
def test_bursts_are_those_of_the_trace(arrivals, rate, variation, dispersions):
    """The trace's inter-arrival variation, and its index of dispersion at 1, 10 and 60 s."""
    assert median_of_seeds(arrivals, rate, interval_variation) == pytest.approx(variation, rel=0.15)
    for width, expected in zip((1, 10, 60), dispersions, strict=True):
        found = median_of_seeds(arrivals, rate, lambda one, w=width: dispersion(one, 36_000, w))
        assert found == pytest.approx(expected, rel=0.25), width


def test_a_load_that_is_quiet_throughout_still_arrives():
    rng = np.random.default_rng(0)
    arrivals = Arrivals("", 1.0, OnOff(1e-6, 1000.0))
    found = arrivals.times(rng, 50, 10.0)
    assert len(found) == 50
    assert found[-1] > 5


def test_too_little_to_measure_is_none():
    assert dispersion([1.0, 2.0], 10, 5) is None
    assert dispersion([], 100, 1) is None
    assert interval_variation([1.0, 2.0]) is None
    assert interval_variation([0.0, 0.0, 0.0, 0.0]) is None
