"""If nothing meets the need: what came closest, what stops it, what would have to give."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from trimtab.optimizer.decide import Miss, Shortfall, closest
from trimtab.optimizer.entries import Entry

if TYPE_CHECKING:
    from trimtab.optimizer.found import Found


def infeasible_json(found: Found) -> dict[str, Any] | None:
    misses = [miss for entry in found.entries.all if (miss := miss_of(found, entry))]
    best = closest(misses)
    if best is None:
        return None
    worst = best.worst
    return {
        "binding": worst.term,
        "closest": best.id,
        "by": worst.in_words(),
        "relaxations": [
            {"term": one.term, "asked": one.asked, "would_hold": one.found, "unit": one.unit}
            for one in _smallest(misses)
        ],
    }


def closest_entry(found: Found) -> Entry | None:
    """That which would be served if one has to be."""
    misses = [miss for entry in found.entries.all if (miss := miss_of(found, entry))]
    best = closest(misses)
    return next((e for e in found.entries.all if best and e.id == best.id), None)


def miss_of(found: Found, entry: Entry) -> Miss | None:
    """Everything in which an entry falls short, as far as that was measured or is bound to be; None
    if neither is known."""
    need, measured = found.order.need, entry.measured
    if entry.lacks:
        return Miss(entry.id, tuple(entry.lacks))
    if measured is None or measured.failed is not None or not measured.points:
        return None
    lacks: list[Shortfall] = []
    if entry.quality is not None and entry.candidate.variant != found.entries.baseline:
        for term in entry.quality.terms:
            if term.status != "pass" and term.value is not None:
                lacks.append(Shortfall(term.text, term.limit, term.value, ""))
    if need.rate is not None and 0 < measured.rate < need.rate:
        lacks.append(Shortfall(f"rate>={need.rate:g}rps", need.rate, measured.rate, "requests/s"))
    if measured.rate <= 0:
        points = measured.repeats or measured.points
        worst = min(points, key=lambda point: point.margin)
        easiest = worst if measured.repeats else max(points, key=lambda point: point.margin)
        lacks += [_of_term(term) for term in easiest.terms if not term["met"]]
        if not lacks:
            lacks.append(Shortfall("requests that end in time", 1.0, 0.0, ""))
    return Miss(entry.id, tuple(lacks)) if lacks else None


def _smallest(misses: list[Miss]) -> list[Shortfall]:
    """Of entries that lack one thing only, for each term the one that lacks least: giving way there
    alone would do."""
    alone: dict[str, Shortfall] = {}
    for miss in misses:
        if len(miss.shortfalls) == 1:
            one = miss.shortfalls[0]
            if one.term not in alone or one.excess < alone[one.term].excess:
                alone[one.term] = one
    return sorted(alone.values(), key=lambda one: one.excess)


def _of_term(term: dict[str, Any]) -> Shortfall:
    """Where limits grow with a request's length, the share of requests that keep their own."""
    found, limit = term["value"], term["limit"]
    if found is not None and found > limit:
        return Shortfall(term["term"], limit, found, "s")
    quantile = re.search(r":p([0-9.]+)", term["term"])
    asked = float(quantile[1]) / 100 if quantile else 1.0
    return Shortfall(term["term"], asked, term["attained"] or 0.0, "of requests")
