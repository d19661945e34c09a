"""Whether a load met its objective, how far it is from it, and what its samples can show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
    results = tuple(evaluate_term(term, counted) for term in terms)
    goods = [
        float(record.is_complete and all(term.met_by(record) for term in terms))
        for record in counted
    ]
    good, count = sum(goods), len(counted)
    effective = worth(goods, [1.0] * count)
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
        ratios = sorted(max(_own_ratio(term, record) for term in terms) for record in counted)
        margin, margin_error = _margin_of(ratios, target, effective)
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


def evaluate_term(term: Term, counted: Sequence[RequestRecord]) -> TermResult:
    """Of records in the order of their schedule. Without a sample a term is not met: nothing shows
    that it is."""
    groups = [term.samples(record) for record in counted]
    if term.is_pooled:
        groups = _weigh_errors(groups, counted)
    limits = [term.limit.of_record(record) for record in counted]
    below = [
        sum(term.keeps(value, limit) for value in group)
        for group, limit in zip(groups, limits, strict=True)
    ]
    samples = sorted(value for group in groups for value in group)
    sizes = [len(group) for group in groups]
    count = len(samples)
    limit = _mean(limits)
    if not count:
        nothing = (NAN, 0.0, NAN, limit, False, False)
        return TermResult(term, 0, *nothing, _needed(term), -_FARTHEST, _FARTHEST)
    effective = worth(below, sizes)
    attained = sum(below) / count
    bound = share_at_least(attained * effective, effective)
    ratios = sorted(
        value / limit for group, limit in zip(groups, limits, strict=True) for value in group
    )
    if term.quantile is None:
        observed, ratio = _mean(samples), _mean(ratios)
        met = term.keeps(ratio, 1.0)
        error = _spread(ratios) / math.sqrt(effective)
        # Normal: means of this many latencies are close enough to it for a bound.
        proven = met and count >= _MEAN_SAMPLES and term.keeps(ratio + 1.645 * error, 1.0)
        margin = _clipped(ratio)
        margin_error = min(_FARTHEST, error / ratio) if 0 < ratio < math.inf else _FARTHEST
    else:
        observed = samples[rank(term.quantile, count)]
        met = sum(below) >= math.ceil(term.quantile * count - 1e-9)
        proven = met and bound >= term.quantile
        margin, margin_error = _margin_of(ratios, term.quantile, effective)
    return TermResult(
        term, count, attained, bound, observed, limit, met, proven, _needed(term), margin,
        margin_error,
    )  # fmt: skip


_MEAN_SAMPLES = 30


def _needed(term: Term) -> int | None:
    if term.quantile is None:
        return _MEAN_SAMPLES
    return None if term.quantile == 1 else samples_needed(term.quantile)


def _weigh_errors(
    groups: Sequence[list[float]], counted: Sequence[RequestRecord]
) -> list[list[float]]:
    """A failed request misses as many gaps as a complete one has on average, so that one in ten
    failed is one gap in ten missed."""
    sizes = [
        len(group) for group, record in zip(groups, counted, strict=True) if record.error is None
    ]
    usual = max(1, round(_mean(sizes))) if sizes else 1
    return [
        group if record.error is None else [math.inf] * usual
        for group, record in zip(groups, counted, strict=True)
    ]


def _own_ratio(term: Term, record: RequestRecord) -> float:
    value = term.of_request(record)
    return 0.0 if math.isnan(value) else value / term.limit.of_record(record)


def _margin_of(
    ratios: Sequence[float], quantile: float, effective: float | None = None
) -> tuple[float, float]:
    """log(limit / observed) at the quantile of sorted ratios of value to limit, and its standard
    error: how far one binomial standard deviation of ranks reaches."""
    count = len(ratios)
    if not count:
        return -_FARTHEST, _FARTHEST
    trials = effective or count
    reach = count * math.sqrt(quantile * (1 - quantile) / trials)
    low, high = (
        _clipped(ratios[min(count - 1, max(0, rank(quantile, count) + round(side * reach)))])
        for side in (-1, 1)
    )
    return _clipped(ratios[rank(quantile, count)]), max((low - high) / 2, 1e-3)


def _clipped(ratio: float) -> float:
    if ratio <= 0:
        return _FARTHEST
    return max(-_FARTHEST, min(_FARTHEST, -math.log(ratio))) if ratio < math.inf else -_FARTHEST


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else NAN


def _spread(values: Sequence[float]) -> float:
    """Standard deviation; infinite of one value, or with an error among them."""
    mean = _mean(values)
    if len(values) < 2 or not math.isfinite(mean):
        return math.inf
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
