"""Service level objectives: `ttft:p99<300ms+0.3ms*in; itl:p99<50ms; e2e:p95<2s`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from trimtab.errors import UserError
from trimtab.workloads.records import RequestRecord
from trimtab.workloads.slo_result import SloResult, evaluate
from trimtab.workloads.slo_terms import ALIASES, METRICS, Limit, Term

EXAMPLE = "ttft:p99<300ms+0.3ms*in; itl:p99<50ms; e2e:p95<2s"
_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "μs": 1e-6}
_NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_TERM = re.compile(r"\s*(\w+)\s*:\s*([\w.]+)\s*(<=|<)\s*")
_ATTAINMENT = re.compile(rf"\s*attainment\s*>=?\s*({_NUMBER})\s*(%?)\s*$", re.IGNORECASE)
_PART = re.compile(rf"\s*({_NUMBER})\s*([a-zA-Zµμ]*)\s*(?:\*\s*(\w+))?\s*")


@dataclass(frozen=True)
class Slo:
    """What users need. With `attainment`, at least this share of requests keeps every limit by
    itself; without, each term holds by its own statistic."""

    terms: tuple[Term, ...]
    attainment: float | None = None

    def met_by(self, record: RequestRecord) -> bool:
        """Whether a request counts as goodput: it is complete and keeps the limit of every term by
        itself (its own p99 of gaps for `itl:p99`)."""
        return record.is_complete and all(term.met_by(record) for term in self.terms)

    def evaluate(self, records: Sequence[RequestRecord]) -> SloResult:
        """Of finished requests; errors are misses, what was cut at the end counts as nothing."""
        return evaluate(self.terms, self.attainment, records)

    def as_text(self) -> str:
        """`parse_slo` reads it back."""
        texts = [term.as_text() for term in self.terms]
        if self.attainment is not None:
            texts.append(f"attainment>={self.attainment:.10g}")
        return "; ".join(texts)


def parse_slo(text: str) -> Slo:
    """Terms `metric:statistic<limit`, apart by `;`, and at most one `attainment>=share`.

    metric: of `METRICS`; statistic: p50, p99.9, mean, max; limit: durations (s, ms, us), each maybe
    times `in` (prompt tokens) or `out` (output tokens), joined by `+`.
    Raises UserError with the position of what is wrong.
    """
    terms: list[Term] = []
    attainment: float | None = None
    start = 0
    for part in text.split(";"):
        if match := _ATTAINMENT.match(part):
            if attainment is not None:
                raise _error(text, start, "attainment is given twice")
            attainment = float(match[1]) / (100 if match[2] else 1)
            if not 0 < attainment <= 1:
                raise _error(text, start + match.start(1), "attainment is a share above 0, up to 1")
        elif part.strip():
            terms.append(_parse_term(text, start, start + len(part)))
        start += len(part) + 1
    if not terms:
        raise _error(text, 0, "there is no limit on a latency in it")
    return Slo(tuple(terms), attainment)


def _error(text: str, position: int, problem: str) -> UserError:
    position += len(text[position:]) - len(text[position:].lstrip())
    rest = text[position : position + 24].split(";")[0].strip()
    where = f"at {rest!r} (character {position + 1})" if rest else "at its end"
    return UserError(f"SLO, {where}: {problem}; for example {EXAMPLE}")


def _parse_term(text: str, start: int, end: int) -> Term:
    match = _TERM.match(text, start, end)
    if match is None:
        raise _error(text, start, "a term is metric:statistic<limit")
    metric = ALIASES.get(match[1].lower(), match[1].lower())
    if metric not in METRICS:
        raise _error(text, match.start(1), f"the metrics are {', '.join(METRICS)}")
    quantile = _parse_statistic(text, match)
    limit = _parse_limit(text, match.end(), end)
    return Term(metric, quantile, limit, match[3] == "<=")


def _parse_statistic(text: str, match: re.Match[str]) -> float | None:
    name = match[2].lower()
    if name in ("mean", "avg"):
        return None
    if name in ("max", "median"):
        return 1.0 if name == "max" else 0.5
    if (found := re.fullmatch(r"p(\d+(?:\.\d+)?)", name)) and 0 < float(found[1]) < 100:
        return round(float(found[1]) / 100, 12)
    raise _error(text, match.start(2), "a statistic is p50, p95, p99, p99.9 ..., mean or max")


def _parse_limit(text: str, start: int, end: int) -> Limit:
    sums = {"": 0.0, "in": 0.0, "out": 0.0}
    position, more = start, True
    while more:
        match = _PART.match(text, position, end)
        if match is None:
            raise _error(text, position, "a limit is a number with a unit (s, ms, us)")
        if match[2] not in _UNITS:
            at = match.start(2) if match[2] else match.start(1)
            raise _error(text, at, "the unit of a time is s, ms or us")
        factor = (match[3] or "").lower()
        if factor not in sums:
            raise _error(text, match.start(3), "a limit grows with in or out (tokens)")
        sums[factor] += float(match[1]) * _UNITS[match[2]]
        position = match.end()
        more = position < end and text[position] == "+"
        position += more
    if position < end:
        raise _error(text, position, "the parts of a limit are joined by +, terms by ;")
    limit = Limit(sums[""], sums["in"], sums["out"])
    if limit == Limit():
        raise _error(text, start, "nothing can be faster than 0")
    return limit
