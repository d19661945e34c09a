import math

import numpy as np
import pytest

from trimtab.workloads.statistics import (
    Estimate,
    beta_cdf,
    binomial_cdf,
    effective_samples,
    percentile,
    rank,
    samples_needed,
    share_at_least,
    share_at_most,
    share_estimate,
)


@pytest.mark.parametrize(("trials", "share"), [(1, 0.5), (7, 0.2), (40, 0.9), (300, 0.99)])
def test_the_binomial_distribution_is_its_sum(trials, share):
    total = 0.0
    for successes in range(trials):
        total += (
            math.comb(trials, successes) * share**successes * (1 - share) ** (trials - successes)
        )
        assert binomial_cdf(successes, trials, share) == pytest.approx(total, rel=1e-9, abs=1e-13)
    assert binomial_cdf(-1, trials, share) == 0
    assert binomial_cdf(trials, trials, share) == 1


def test_the_beta_distribution_has_its_symmetry_and_ends():
    for a, b, x in ((0.5, 3.0, 0.2), (120.0, 2.0, 0.97), (5000.0, 50.0, 0.99)):
        assert beta_cdf(x, a, b) == pytest.approx(1 - beta_cdf(1 - x, b, a), abs=1e-12)
    assert beta_cdf(0, 2, 3) == 0
    assert beta_cdf(1, 2, 3) == 1
    assert beta_cdf(0.3, 1, 1) == pytest.approx(0.3)


def test_bounds_of_a_share_have_their_closed_forms():
    assert share_at_least(20, 20) == pytest.approx(0.05 ** (1 / 20))
    assert share_at_least(0, 20) == 0
    assert share_at_least(0, 0) == 0
    assert share_at_most(0, 20) == pytest.approx(1 - 0.05 ** (1 / 20))
    assert share_at_most(20, 20) == 1
    # Clopper and Pearson's own definition: at the bound, so many successes have 5 %.
    bound = share_at_least(90, 100)
    assert 1 - binomial_cdf(89, 100, bound) == pytest.approx(0.05, abs=1e-9)


def test_an_interval_of_a_share_covers_it():
    rng = np.random.default_rng(2)
    for share in (0.5, 0.9, 0.99):
        covered = 0
        for successes in rng.binomial(80, share, 500):
            found = share_estimate(int(successes), 80)
            covered += found.low <= share <= found.high
        assert covered >= 0.95 * 500 - 3 * math.sqrt(500 * 0.05 * 0.95)


def test_samples_needed_is_where_the_bound_reaches_the_quantile():
    for quantile, needed in ((0.99, 299), (0.95, 59), (0.5, 5), (0.999, 2995)):
        assert samples_needed(quantile) == needed
        assert share_at_least(needed, needed) >= quantile
        assert share_at_least(needed - 1, needed - 1) < quantile
    with pytest.raises(ValueError, match="maximum"):
        samples_needed(1.0)


def test_rank_is_the_smallest_sample_that_the_share_does_not_exceed():
    assert [rank(q, 100) for q in (0.0, 0.01, 0.5, 0.99, 0.991, 1.0)] == [0, 0, 49, 98, 99, 99]
    assert rank(0.7, 10) == 6  # 0.7 * 10 is above 7 in floating point


@pytest.mark.parametrize(("quantile", "count"), [(0.5, 9), (0.5, 200), (0.9, 80), (0.99, 500)])
@pytest.mark.parametrize("draw", ["exponential", "standard_normal", "standard_cauchy"])
def test_an_interval_of_a_percentile_covers_it(quantile, count, draw):
    rng = np.random.default_rng(3)
    many = np.sort(getattr(rng, draw)(size=400_000))
    truth = many[rank(quantile, len(many))]
    covered = 0
    for _ in range(400):
        found = percentile(sorted(getattr(rng, draw)(size=count)), quantile)
        covered += found.low <= truth <= found.high
    assert covered >= 0.95 * 400 - 3 * math.sqrt(400 * 0.05 * 0.95)
    assert covered < 400  # an interval that is always right says nothing


def test_an_interval_is_open_where_samples_are_too_few():
    assert percentile([1.0], 0.5) == Estimate(1.0, -math.inf, math.inf)
    assert percentile(list(range(367)), 0.99).high == math.inf
    assert percentile(list(range(368)), 0.99).high == 367
    assert math.isnan(percentile([], 0.5).value)
    assert percentile([], 0.5).as_json() == {"value": None, "low": None, "high": None}


def test_groups_that_are_alike_are_worth_less():
    independent = effective_samples([5, 4, 6, 5], [10, 10, 10, 10])
    assert independent == 40
    assert effective_samples([10, 0, 10, 0], [10] * 4) == pytest.approx(4 * 3 / 4)
    assert effective_samples([10] * 4, [10] * 4) == 40
    assert effective_samples([3], [10]) == 10


def test_pooled_percentiles_of_grouped_samples_cover():
    """200 groups of 20 equal samples each: taken for 4,000, an interval would hold 1 time in 3."""
    rng = np.random.default_rng(4)
    covered = 0
    for _ in range(300):
        values = np.repeat(rng.exponential(size=200), 20)
        below = (values <= np.median(values)).reshape(200, 20).sum(axis=1)
        effective = effective_samples(below.tolist(), [20] * 200)
        found = percentile(sorted(values), 0.5, effective)
        covered += found.low <= math.log(2) <= found.high
    assert covered >= 0.95 * 300 - 3 * math.sqrt(300 * 0.05 * 0.95)
