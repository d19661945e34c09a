"""What the report says first: the plan that is shown, what was asked of it, and what it gave."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from trimtab.optimizer.report.formatting import UNKNOWN, interval, percent, plain, seconds, tick
from trimtab.optimizer.report.measurements import Candidate, Interval, LoadPoint, Number, Term
from trimtab.optimizer.report.results import Results
from trimtab.workloads.statistics import share_at_least

LATENCY_NAMES = {
    "ttft": "Time to first token",
    "itl": "Time between tokens",
    "e2e": "Time to the whole answer",
    "tpot": "Time per token",
    "stall": "Longest pause",
}
_NAMES = {
    **LATENCY_NAMES,
    "attainment": "Requests that meet all of it",
    "kl": "Divergence from the unmodified model (KL)",
    "top1": "Same most likely token as the unmodified model",
    "ppl": "Perplexity against the unmodified model",
    "tasks": "Tasks solved",
    "rate": "Requests a second",
    "cost": "Cost",
}
_PERCENTILE = re.compile(r":\s*p(\d+(?:\.\d+)?)")
_SHARES = ("attainment", "top1", "tasks")
_TERM = re.compile(r"\s*(\w+)\s*(?::\s*(\w+))?\s*(<=|>=|<|>|=)\s*(.+?)\s*")
_NEAR = 0.1  # of the logarithm: what is served within the SLO is less than what is offered
_SIGNS = {"<=": "≤", ">=": "≥"}


@dataclass(frozen=True)
class TermRow:
    """A term of the need beside what was found, ready to be read."""

    source: str  # as it was asked
    name: str
    of_what: str  # "99 % of requests"
    asked: str
    found: str
    attained: str
    met: bool | None
    proven: bool | None = None
    limit: str = ""  # what the asked comes to, where it depends on lengths


def shown_plan(results: Results) -> Candidate | None:
    """The choice; where nothing meets the need, the closest."""
    closest = results.infeasible.closest if results.infeasible else None
    return results.candidate(results.chosen or closest)


def operating_points(results: Results, candidate: Candidate) -> list[LoadPoint]:
    """The loads at the rate that was asked, or at the highest that meets the SLO: of the rates near
    it the one that was repeated most, else the nearest. Loads that are void are never among them.
    """
    points = [one for one in candidate.measured.points if one.valid] if candidate.measured else []
    if not all(one.rate > 0 for one in points):
        return points  # a closed loop offers no rate
    if not points:
        return []
    target = results.need.rate or (candidate.rate.value if candidate.rate else 0.0)
    if target <= 0:
        target = min(one.rate for one in points)

    def fitness(point: LoadPoint) -> tuple[bool, int, float]:
        away = abs(math.log(point.rate / target))
        is_near = away < _NEAR
        return is_near, len(_at(points, point.rate)) if is_near else 0, -away

    return _at(points, max(points, key=fitness).rate)


def _at(points: Sequence[LoadPoint], rate: float) -> list[LoadPoint]:
    return [one for one in points if abs(one.rate - rate) <= 0.01 * rate]


def merged(numbers: Sequence[Number]) -> Number:
    """One number as it is; of several repeats the median, between the lowest and the highest."""
    values = [one.value for one in numbers if one is not None]
    if len(values) < 2:
        return next((one for one in numbers if one is not None), None)
    return Interval(statistics.median(values), min(values), max(values))


def latency_rows(results: Results, candidate: Candidate) -> list[TermRow]:
    """The SLO, term by term, at the operating point; asked only, where nothing was measured."""
    points = operating_points(results, candidate)
    if not points or not points[0].terms:
        return [_row(Term(one)) for one in split_terms(results.need.slo)]
    rows = []
    for term in points[0].terms:
        same = [one for point in points for one in point.terms if one.term == term.term]
        rows.append(_row(_merge_terms(same)))
    return rows


def quality_rows(candidate: Candidate) -> list[TermRow]:
    return [_row(one) for one in candidate.quality.terms] if candidate.quality else []


def split_terms(need: str) -> list[str]:
    return [one.strip() for one in re.split(r"[;\n]", need) if one.strip()]


def percentile_of(results: Results, metric: str) -> str:
    """The one that the SLO asks of a latency; p95 where it does not."""
    for term in split_terms(results.need.slo):
        found = _TERM.fullmatch(term)
        if found and found[1] == metric and found[2] in ("p50", "p95", "p99", "mean"):
            return found[2]
    return "p95"


def limit_of(points: Sequence[LoadPoint], metric: str) -> tuple[str, float] | None:
    """The SLO's term about a latency and its limit in seconds, if that is one number."""
    for point in points:
        for term in point.terms:
            if term.term.strip().startswith(f"{metric}:") and isinstance(term.limit, float):
                return term.term, term.limit
    return None


def attainment_asked(results: Results) -> float | None:
    """The share of requests that must meet the SLO, where it says so."""
    for term in split_terms(results.need.slo):
        found = _TERM.fullmatch(term)
        if found and found[1] in ("attainment", "goodput"):
            number = re.fullmatch(r"([0-9.]+)\s*(%?)", found[4])
            if number and number[1].count(".") < 2 and number[1] != ".":
                return float(number[1]) / (100 if number[2] else 1)
    return None


def ratio(one: Number, other: Number) -> float | None:
    if one is None or other is None or other.value <= 0 or one.value <= 0:
        return None
    return one.value / other.value


def asked_in_words(text: str) -> str:
    """`300ms+0.3ms*in` -> `300 ms + 0.3 ms a prompt token`."""
    text = re.sub(r"(\d)(ms|us|s|%)(?![a-z])", r"\1 \2", text)
    text = text.replace("*in", " a prompt token").replace("*out", " an output token")
    return re.sub(r"\s*([+-])\s*(?=\d)", r" \1 ", text) if "token" in text else text


def _merge_terms(terms: Sequence[Term]) -> Term:
    """Of repeats: what no load by itself has enough samples for, all of them together may show."""
    met = _all_of([one.met for one in terms])
    bound, proven = _together(terms), _all_of([one.proven for one in terms])
    share = _PERCENTILE.search(terms[0].term)
    if proven is False and bound is not None and share is not None:
        proven = met is True and bound >= float(share[1]) / 100
    return Term(
        term=terms[0].term,
        value=merged([one.value for one in terms]),
        limit=terms[0].limit,
        attained=merged([one.attained for one in terms]),
        bound=bound,
        met=met,
        proven=proven,
    )


def _together(terms: Sequence[Term]) -> float | None:
    """The lower bound of the share of all samples that keep their limits, 95 % one-sided."""
    successes = trials = 0.0
    for one in terms:
        if one.worth is None or one.attained is None:
            return None
        successes += one.worth * one.attained.value
        trials += one.worth
    return share_at_least(successes, trials)


def _all_of(verdicts: Sequence[bool | None]) -> bool | None:
    return False if False in verdicts else None if None in verdicts else True


def _row(term: Term) -> TermRow:
    found = _TERM.fullmatch(term.term)
    if found is None:
        return TermRow(
            term.term, term.term, "", _limit(term), interval(term.value), _attained(term), term.met
        )
    metric, statistic, sign, asked = found[1].lower(), found[2] or "", found[3], found[4]
    form = seconds if metric in LATENCY_NAMES else percent if metric in _SHARES else plain
    return TermRow(
        source=term.term,
        name=_NAMES.get(metric, metric),
        of_what=_of_what(metric, statistic),
        asked=f"{_SIGNS.get(sign, sign)} {_limit_in_words(metric, asked)}",
        found=interval(term.value, form),
        attained=_attained(term),
        met=term.met,
        proven=term.proven,
        limit=_at_mean_length(term, asked),
    )


def _limit_in_words(metric: str, asked: str) -> str:
    if metric in _SHARES and re.fullmatch(r"0?\.\d+|1|1\.0+", asked):
        return tick(percent(float(asked)))
    return asked_in_words(asked)


def _at_mean_length(term: Term, asked: str) -> str:
    if isinstance(term.limit, float) and ("*in" in asked or "*out" in asked):
        return f"{seconds(term.limit)} at the mean length"
    return ""


def _of_what(metric: str, statistic: str) -> str:
    if statistic == "mean":
        return "on average"
    if re.fullmatch(r"p\d+(\.\d+)?", statistic):
        things = {"itl": "gaps", "kl": "tokens"}.get(metric, "requests")
        return f"{statistic[1:]} % of {things}"
    return statistic


def _attained(term: Term) -> str:
    return UNKNOWN if term.attained is None else interval(term.attained, percent)


def _limit(term: Term) -> str:
    if term.limit is None:
        return UNKNOWN
    return term.limit if isinstance(term.limit, str) else plain(term.limit)
