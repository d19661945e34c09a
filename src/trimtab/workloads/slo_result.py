"""Whether a load met its objective, how far it is from it, and what its samples can show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trimtab.workloads.grouped import Floats, Grouped
from trimtab.workloads.records import NAN, RequestRecord
from trimtab.workloads.slo_terms import Term, duration_text
from trimtab.workloads.statistics import (
    Estimate,
    finite,
    rank,
    samples_needed,
    share_at_least,
    share_estimate,
    worth,
)

_FARTHEST = math.log(1000)  # a margin beyond it says no more: the objective is missed by far


@dataclass(frozen=True)
class TermResult:
    """One term over all requests that count."""

    term: Term
    num_samples: int  # requests, or gaps
    attained: float  # share of samples that keep their own limit
    bound: float  # the lower end of that share, 95 % one-sided
    observed: float  # the statistic, seconds; infinite if it falls on an error
    limit: float  # seconds, at the mean lengths where it depends on them
    met: bool  # the statistic keeps the limit
    proven: bool  # and the bound does, too
    samples_needed: int | None  # before it can be proven at all; None: no number shows a maximum
    margin: float  # log(limit / observed), each request against its own limit; positive: room
    margin_error: float  # its standard error
    worth: float = 0.0  # so many independent samples: gaps of one answer are alike

    @property
    def has_enough_samples(self) -> bool:
        """Whether a claim on this statistic can be made from so many samples."""
        return self.samples_needed is not None and self.num_samples >= self.samples_needed

    def as_json(self) -> dict[str, Any]:
        return {
            "term": self.term.as_text(),
            "value": finite(self.observed),
            "limit": finite(self.limit),
            "attained": finite(self.attained),
            "bound": self.bound,
            "met": self.met,
            "proven": self.proven,
            "samples": self.num_samples,
            "worth": self.worth,
            "samples_needed": self.samples_needed,
        }

    def line(self) -> str:
        value = duration_text(float(f"{self.observed:.3g}")) if self.num_samples else "nothing"
        head = f"{self.term.as_text()}: {'met' if self.met else 'MISSED'}, {value}"
        head += f", {100 * self.attained:.2f} % within" if self.num_samples else ""
        if self.samples_needed is None:
            return f"{head}; no number of samples shows a maximum"
        if not self.has_enough_samples:
            return f"{head}; {self.num_samples} samples show nothing, {self.samples_needed} could"
        return f"{head}, at least {100 * self.bound:.2f} % with 95 % confidence"


@dataclass(frozen=True)
class SloResult:
    terms: tuple[TermResult, ...]
    attainment: Estimate  # share of requests that keep the limits of all terms by themselves
    bound: float  # the lower end of that share, 95 % one-sided
    target: float | None  # the attainment that is asked, if one is
    num_requests: int  # that count: complete or failed
    num_errors: int
    met: bool
    proven: bool  # with 95 % confidence for each term, or for the attainment
    margin: float  # log(limit / observed) of what is closest to its limit; positive: room
    margin_error: float

    def as_json(self) -> dict[str, Any]:
        return {
            "met": self.met,
            "proven": self.proven,
            "attainment": self.attainment.as_json(),
            "bound": self.bound,
            "target": self.target,
            "requests": self.num_requests,
            "errors": self.num_errors,
            "margin": finite(self.margin),
            "terms": [term.as_json() for term in self.terms],
        }

    def lines(self) -> list[str]:
        share = "no request counts"
        if self.num_requests:
            share = f"{100 * self.attainment.value:.1f} % of {self.num_requests} requests meet all"
        if self.target is not None:
            share += f", {100 * self.target:.10g} % asked"
        verdict = "met" if self.met else "MISSED"
        verdict += "" if self.proven or not self.met else " (too few samples to be sure)"
        return [f"SLO {verdict}: {share}", *(f"  {term.line()}" for term in self.terms)]


def evaluate(
    terms: Sequence[Term], target: float | None, records: Sequence[RequestRecord]
) -> SloResult:
    counted = sorted(
        (record for record in records if not record.cut), key=lambda record: record.scheduled
    )
    count = len(counted)
    samples = [TermSamples.of(term, counted) for term in terms]
    results = tuple(evaluate_term(one) for one in samples)
    is_good = np.ones(count, np.bool_)
    for one in samples:
        is_good &= one.own_met
    good = int(is_good.sum())
    effective = worth(is_good.astype(np.float64).tolist(), [1.0] * count)
    weight = effective / count if count else 0.0
    bound = share_at_least(good * weight, effective)
    if target is None:
        met = all(result.met for result in results)
        proven = all(result.proven for result in results)
        closest = min(results, key=lambda result: result.margin)
        margin, margin_error = closest.margin, closest.margin_error
    else:
        met = count > 0 and good >= math.ceil(target * count - 1e-9)
        proven = met and bound >= target
        worst = [max(_own_ratio(term, record) for term in terms) for record in counted]
        margin, margin_error = _margin_of(np.sort(worst), target, effective)
    return SloResult(
        terms=results,
        attainment=share_estimate(good * weight, effective),
        bound=bound,
        target=target,
        num_requests=count,
        num_errors=sum(record.error is not None for record in counted),
        met=met,
        proven=proven,
        margin=margin,
        margin_error=margin_error,
    )


@dataclass(frozen=True)
class TermSamples:
    """What a term looks at: of each request (in the order of the schedule) its samples, and whether
    it keeps the limit by itself."""

    term: Term
    samples: Grouped
    limits: Floats  # of each request
    is_below: npt.NDArray[np.bool_]  # of each sample
    own_met: npt.NDArray[np.bool_]  # of each request

    @classmethod
    def of(cls, term: Term, counted: Sequence[RequestRecord]) -> TermSamples:
        groups = [term.samples(record) for record in counted]
        if term.is_pooled:
            groups = _weigh_errors(groups, counted)
        samples = Grouped.of(groups)
        limits = np.array([term.limit.of_record(record) for record in counted], np.float64)
        each = samples.each(limits)
        below = samples.values <= each if term.or_equal else samples.values < each
        sizes = samples.sizes
        if term.quantile is None:
            means = samples.sums(samples.values) / np.maximum(sizes, 1)
            own = means <= limits if term.or_equal else means < limits
        else:
            own = samples.sums(below) >= np.ceil(term.quantile * sizes - 1e-9)
        return cls(term, samples, limits, below, own | (sizes == 0))


def evaluate_term(one: TermSamples) -> TermResult:
    """Without a request a term is not met: nothing shows that it is. Where requests have nothing to
    look at (gaps of answers that came at once) it is kept, and proven no more than by that."""
    term, values = one.term, one.samples.values
    count = len(values)
    limit = float(one.limits.mean()) if len(one.limits) else NAN
    if not count:
        met = len(one.limits) > 0
        nothing = (float(met), 0.0, NAN, limit, met, False)
        margin = _FARTHEST if met else -_FARTHEST
        return TermResult(term, 0, *nothing, _needed(term), margin, _FARTHEST)
    below = int(one.is_below.sum())
    effective = one.samples.worth(one.is_below)
    attained = below / count
    bound = share_at_least(attained * effective, effective)
    ratios = np.sort(values / one.samples.each(one.limits))
    if term.quantile is None:
        observed, ratio = float(values.mean()), float(ratios.mean())
        met = term.keeps(ratio, 1.0)
        error = _spread(ratios) / math.sqrt(effective)
        # Normal: means of this many latencies are close enough to it for a bound.
        proven = met and count >= _MEAN_SAMPLES and term.keeps(ratio + 1.645 * error, 1.0)
        margin = _clipped(ratio)
        margin_error = min(_FARTHEST, error / ratio) if 0 < ratio < math.inf else _FARTHEST
    else:
        observed = float(np.sort(values)[rank(term.quantile, count)])
        met = below >= math.ceil(term.quantile * count - 1e-9)
        proven = met and bound >= term.quantile
        margin, margin_error = _margin_of(ratios, term.quantile, effective)
    return TermResult(
        term, count, attained, bound, observed, limit, met, proven, _needed(term), margin,
        margin_error, effective,
    )  # fmt: skip


_MEAN_SAMPLES = 30


def _needed(term: Term) -> int | None:
    if term.quantile is None:
        return _MEAN_SAMPLES
    return None if term.quantile == 1 else samples_needed(term.quantile)


def _weigh_errors(
    groups: Sequence[Sequence[float] | Floats], counted: Sequence[RequestRecord]
) -> list[Sequence[float] | Floats]:
    """A failed request misses as many gaps as a complete one has on average, so that one in ten
    failed is one gap in ten missed."""
    is_error = [record.error is not None for record in counted]
    sizes = [len(group) for group, failed in zip(groups, is_error, strict=True) if not failed]
    usual = max(1, round(sum(sizes) / len(sizes))) if sizes else 1
    return [
        [math.inf] * usual if failed else group
        for group, failed in zip(groups, is_error, strict=True)
    ]


def _own_ratio(term: Term, record: RequestRecord) -> float:
    value = term.of_request(record)
    return 0.0 if math.isnan(value) else value / term.limit.of_record(record)


def _margin_of(ratios: Floats, quantile: float, effective: float) -> tuple[float, float]:
    """log(limit / observed) at the quantile of sorted ratios of value to limit, and its standard
    error: how far one binomial standard deviation of ranks reaches."""
    count = len(ratios)
    if not count:
        return -_FARTHEST, _FARTHEST
    reach = count * math.sqrt(quantile * (1 - quantile) / effective)
    low, high = (
        _clipped(ratios[min(count - 1, max(0, rank(quantile, count) + round(side * reach)))])
        for side in (-1, 1)
    )
    return _clipped(ratios[rank(quantile, count)]), max((low - high) / 2, 1e-3)


def _clipped(ratio: float) -> float:
    if ratio <= 0:
        return _FARTHEST
    return max(-_FARTHEST, min(_FARTHEST, -math.log(ratio))) if ratio < math.inf else -_FARTHEST


def _spread(values: Floats) -> float:
    """Standard deviation; infinite of one value, or with an error among them."""
    if len(values) < 2 or not np.isfinite(values).all():
        return math.inf
    return float(values.std(ddof=1))
