"""The highest rate that meets an objective, from probes that are noisy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from trimtab.workloads.statistics import Estimate, finite

_FAR = 2.0  # margins beyond it (a factor of seven) say only that the limit is far
_LEAST_ERROR = 0.02  # of a margin: probes of a deterministic server differ, too
_MODEL_ERROR = 0.3  # of a margin, by which the line through it may miss: near ones count more
_NEAR = 0.4  # of log rate, around the bracket: probes that the estimate is made of
_BEYOND = 1.2  # how far outside the bracket, as a factor, a line may still put it
_DRAWS = 200  # of the margins, for the interval


class Verdict(Protocol):
    """What a probe found: an `SloResult`, or whatever pools several."""

    @property
    def met(self) -> bool: ...
    @property
    def margin(self) -> float: ...  # log(limit / observed)
    @property
    def margin_error(self) -> float: ...  # standard error


@dataclass(frozen=True)
class Probe:
    rate: float
    verdict: Verdict

    @property
    def margin(self) -> float:
        """Its sign is the verdict's, whatever rounding did to a margin near 0."""
        size = min(_FAR, abs(self.verdict.margin))
        if self.verdict.met != (self.verdict.margin >= 0):
            size = 0.0
        return size if self.verdict.met else min(-1e-9, -size)

    @property
    def error(self) -> float:
        return min(2 * _FAR, max(_LEAST_ERROR, self.verdict.margin_error))


Status = Literal["found", "missed at the lowest rate", "met at the highest rate", "out of probes"]


@dataclass(frozen=True)
class Capacity:
    """`rate` is the highest probed one at which, all probes considered, the objective is met: None
    if there is none. `estimate` is where the margin crosses 0, with what the noise of the probes
    makes of it; infinite where they do not bound it."""

    status: Status
    rate: float | None
    missed: float | None  # the lowest probed rate above it, at which the objective is missed
    estimate: Estimate | None
    probes: tuple[Probe, ...]  # all of them, as they were made

    def as_json(self) -> dict[str, Any]:
        return {
            "status": self.status,
            "rate": self.rate,
            "missed": self.missed,
            "estimate": None if self.estimate is None else self.estimate.as_json(),
            "probes": [
                {
                    "rate": probe.rate,
                    "met": probe.verdict.met,
                    "margin": finite(probe.verdict.margin),
                    "margin_error": finite(probe.verdict.margin_error),
                }
                for probe in self.probes
            ],
        }

    def line(self) -> str:
        count = f"{len(self.probes)} probes"
        if self.rate is None:
            lowest = min(probe.rate for probe in self.probes)
            return f"not even {lowest:.3g} requests/s meet the SLO ({count})"
        if self.missed is None:
            return f"at least {self.rate:.3g} requests/s meet the SLO ({self.status}, {count})"
        return (
            f"{self.rate:.3g} requests/s meet the SLO, {self.missed:.3g} miss it "
            f"({self.status}, {count})"
        )


def highest_rate(
    attained: Callable[[float], Verdict],
    low: float,
    high: float,
    *,
    start: float | None = None,
    width: float = 0.05,
    max_probes: int = 16,
    step: float = 2.0,
) -> Capacity:
    """Probes `attained(rate)` for low <= rate <= high, at most `max_probes` times: goes by factors
    of `step` from `start` (their geometric mean) until the objective is met at one rate and missed
    at another, then probes where a regression of the margins on log rate crosses 0, until the two
    are within `width` of each other (a share).

    The margin, not the attained share, is what is regressed: it has the verdict's sign, and still
    tells near from far where all requests attain. Verdicts that contradict one another (a miss
    below a success) are pooled by isotonic regression, and an end of the bracket that the other
    probes belie is probed again, so one unlucky probe does not decide.
    Raises ValueError unless 0 < low <= high, width > 0, max_probes > 0 and step > 1.
    """
    if not 0 < low <= high < math.inf or width <= 0 or max_probes < 1 or step <= 1:
        raise ValueError("needs 0 < low <= high, a width above 0, a probe, and a step above 1")
    search = _Search(attained, max_probes)
    rate = min(high, max(low, start or math.sqrt(low * high)))
    while not search.is_over:
        search.probe(rate)
        met, missed = search.bracket()
        if met is None:
            if rate <= low and not search.is_close_call(rate):
                return search.result("missed at the lowest rate")
            rate = max(low, rate / step)
        elif missed is None:
            if rate >= high:
                return search.result("met at the highest rate")
            rate = min(high, max(rate, met) * step)
        elif missed > met * (1 + width):
            rate = search.next_between(met, missed, math.log1p(width))
        elif (doubtful := search.doubtful_end(met, missed)) is not None:
            rate = doubtful
        else:
            return search.result("found")
    return search.result("out of probes")


class _Search:
    def __init__(self, attained: Callable[[float], Verdict], max_probes: int) -> None:
        self.attained = attained
        self.max_probes = max_probes
        self.probes: list[Probe] = []
        self.widths: list[float] = []  # of the bracket, log

    @property
    def is_over(self) -> bool:
        return len(self.probes) >= self.max_probes

    def probe(self, rate: float) -> None:
        self.probes.append(Probe(rate, self.attained(rate)))

    def is_close_call(self, rate: float) -> bool:
        """Whether the only probe at this rate missed within its noise: worth another."""
        here = [probe for probe in self.probes if probe.rate == rate]
        return len(here) == 1 and abs(here[0].margin) < 2 * here[0].error

    def levels(self) -> tuple[list[float], list[float]]:
        """Rates, rising, and the margins at them, made to fall."""
        rates, margins, weights = pooled(self.probes, [probe.margin for probe in self.probes])
        return rates, falling(margins, weights)

    def bracket(self) -> tuple[float | None, float | None]:
        """The highest rate that meets, and the next one, which does not."""
        rates, margins = self.levels()
        count = sum(margin >= 0 for margin in margins)
        return (
            rates[count - 1] if count else None,
            rates[count] if count < len(rates) else None,
        )

    def doubtful_end(self, met: float, missed: float) -> float | None:
        """An end of the bracket that rests on one probe, near 0 for its noise, of which a line
        through the others says the opposite."""
        for rate in (met, missed):
            here = [probe for probe in self.probes if probe.rate == rate]
            if len(here) > 1 or abs(here[0].margin) > 3 * here[0].error:
                continue
            others = [probe for probe in self.probes if probe.rate != rate]
            place = _crossing_of_line(others, math.log(met), math.log(missed), math.inf)
            if place is not None and (math.log(rate) <= place) != (here[0].margin >= 0):
                return rate
        return None

    def next_between(self, met: float, missed: float, width: float) -> float:
        """Where the line through the margins crosses 0, within the bracket and far enough from its
        ends (almost `width`, of log rate) that the next probe can close it; its middle if there is
        no such place, or if lines have lately not halved the bracket."""
        span = math.log(missed / met)
        self.widths.append(span)
        place = _crossing_of_line(self.probes, math.log(met), math.log(missed), 2 * span)
        is_slow = len(self.widths) > 2 and span > 0.5 * self.widths[-3]
        if place is None or is_slow:
            place = math.log(met) + span / 2
        gap = min(0.4 * span, 0.9 * width)
        inside = min(math.log(missed) - gap, max(math.log(met) + gap, place))
        return math.exp(inside)

    def result(self, status: Status) -> Capacity:
        met, missed = self.bracket()
        return Capacity(status, met, missed, _estimate(self.probes), tuple(self.probes))


def pooled(
    probes: Sequence[Probe], margins: Sequence[float]
) -> tuple[list[float], list[float], list[float]]:
    """Distinct rates, rising; the mean of the margins at each, weighed by their precision; the sum
    of the weights."""
    rates = sorted({probe.rate for probe in probes})
    means, weights = [], []
    for rate in rates:
        here = [place for place, probe in enumerate(probes) if probe.rate == rate]
        precision = [1 / probes[place].error ** 2 for place in here]
        weights.append(math.fsum(precision))
        means.append(
            math.fsum(w * margins[place] for w, place in zip(precision, here, strict=True))
            / weights[-1]
        )
    return rates, means, weights


def falling(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """The closest non-increasing sequence in weighted least squares (pool adjacent violators;
    Barlow and others, Statistical Inference under Order Restrictions, 1972)."""
    blocks: list[tuple[float, float, int]] = []  # mean, weight, how many
    for value, weight in zip(values, weights, strict=True):
        block = (value, weight, 1)
        while blocks and blocks[-1][0] < block[0]:
            mean, total, count = blocks.pop()
            whole = total + block[1]
            block = ((mean * total + block[0] * block[1]) / whole, whole, count + block[2])
        blocks.append(block)
    return [mean for mean, _, count in blocks for _ in range(count)]


def _crossing_of_line(
    probes: Sequence[Probe],
    met: float,
    missed: float,
    reach: float,
    margins: Sequence[float] | None = None,
) -> float | None:
    """log rate at which the weighted least-squares line of margin against log rate is 0, of probes
    at most `reach` outside the bracket and not too far from the limit to tell how far; None if it
    does not fall. `margins` stand for the probes' own."""
    margins = [probe.margin for probe in probes] if margins is None else margins
    near = [
        place
        for place, probe in enumerate(probes)
        if met - reach - 1e-9 <= math.log(probe.rate) <= missed + reach + 1e-9
        and abs(probe.margin) < _FAR
    ]
    if len(near) < 2:
        return None
    x = np.array([math.log(probes[place].rate) for place in near])
    y = np.array([margins[place] for place in near])
    own = np.array([probes[place].margin for place in near])
    weights = 1 / (
        np.array([probes[place].error for place in near]) ** 2 + (_MODEL_ERROR * own) ** 2
    )
    mean_x, mean_y = float(np.average(x, weights=weights)), float(np.average(y, weights=weights))
    spread = float((weights * (x - mean_x) ** 2).sum())
    slope = float((weights * (x - mean_x) * y).sum())
    return mean_x - mean_y * spread / slope if spread > 0 and slope < 0 else None


def _estimate(probes: Sequence[Probe]) -> Estimate | None:
    """Where the margins cross 0, its interval by drawing them anew within their errors."""
    value = _crossing(probes, [probe.margin for probe in probes])
    if value is None:
        return None
    noise = np.random.default_rng(0).standard_normal((_DRAWS, len(probes)))
    found = []
    for row in noise:
        margins = [one.margin + one.error * float(z) for one, z in zip(probes, row, strict=True)]
        crossing = _crossing(probes, margins)
        if crossing is None:
            crossing = math.inf if max(margins) >= 0 else 0.0
        found.append(crossing)
    found.sort()
    low, high = found[int(0.025 * _DRAWS)], found[int(0.975 * _DRAWS)]
    return Estimate(value, min(low, value), max(high, value))


def _crossing(probes: Sequence[Probe], margins: Sequence[float]) -> float | None:
    """By a line through all probes near the bracket, or between its ends where there is none."""
    rates, means, weights = pooled(probes, margins)
    levels = falling(means, weights)
    count = sum(level >= 0 for level in levels)
    if count in (0, len(levels)):
        return None
    met, missed = rates[count - 1], rates[count]
    place = _crossing_of_line(probes, math.log(met), math.log(missed), _NEAR, margins)
    beyond = math.log(_BEYOND)
    if place is not None and math.log(met) - beyond <= place <= math.log(missed) + beyond:
        return math.exp(place)
    share = levels[count - 1] / (levels[count - 1] - levels[count])
    return float(met * (missed / met) ** share)
