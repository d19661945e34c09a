"""What would change the choice: the best candidates once more, predicted under other conditions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from trimtab.optimizer.entries import Entry
from trimtab.workloads.requests import Workload

if TYPE_CHECKING:
    from trimtab.optimizer.found import Found

MOST = 4  # candidates
WORTH = 1.03  # by which another must be better


def sensitivity(found: Found, stop: Callable[[], bool]) -> list[dict[str, Any]]:
    """Rows of the report. All of it is predicted; conditions that cannot be made of the workload
    (longer prompts of a user's own texts) are left out."""
    chosen = found.chosen
    if chosen is None or found.predictor.calibration(chosen.candidate) is None:
        return []
    others = [e for e in found.entries.all if e.measured is not None and e.rate > 0]
    others = [e for e in others if found.predictor.calibration(e.candidate) is not None]
    others.sort(key=lambda e: (e is not chosen, -e.rate))
    candidates = others[:MOST]
    rows = _of_rate(found, chosen)
    conditions: list[tuple[str, dict[str, Any]]] = [
        ("everything 1.5 times as long", {"scale": 1.5}),
        ("half as long", {"scale": 0.5}),
        ("burstier arrivals (CV 3)", {"burstiness": 3.0}),
        ("steady arrivals (CV 0)", {"burstiness": 0.0}),
    ]
    for what, changes in conditions:
        row = _under(found, chosen, candidates, what, changes, stop)
        if row is not None:
            rows.append(row)
    rows.append(
        {
            "what": "another price of the machine",
            "choice": chosen.id,
            "label": chosen.candidate.label,
            "rate": found.rate,
            "holds": True,
            "predicted": False,
            "note": "all configurations run on the same machine: costs change alike",
        }
    )
    return rows


def _of_rate(found: Found, chosen: Entry) -> list[dict[str, Any]]:
    """Whether what was measured has room for another rate than the one that is needed."""
    needed = found.order.need.rate
    if needed is None:
        return []
    rows = []
    for what, factor in (("rate +25 %", 1.25), ("rate -25 %", 0.75)):
        able = [
            e for e in found.entries.all if e.rate >= needed * factor and e.measured is not None
        ]
        holds = chosen in able or factor < 1
        best = chosen if holds else max(able, key=lambda e: e.rate, default=chosen)
        rows.append(
            {
                "what": what,
                "choice": best.id,
                "label": best.candidate.label,
                "rate": best.rate,
                "holds": holds,
                "predicted": False,
                "note": "measured" if holds or able else "nothing that was measured holds it",
            }
        )
    return rows


def _under(
    found: Found,
    chosen: Entry,
    candidates: list[Entry],
    what: str,
    changes: dict[str, Any],
    stop: Callable[[], bool],
) -> dict[str, Any] | None:
    make: Callable[..., Workload] = partial(found.trials.workload, **changes)
    predictor = found.predictor.under(make)
    scores: dict[str, float] = {}
    for entry in candidates:
        if stop():
            return None
        scores[entry.id] = predictor.score(entry.candidate, 0.0)
    best = max(candidates, key=lambda entry: scores[entry.id])
    holds = scores[best.id] <= scores[chosen.id] * WORTH
    winner = chosen if holds else best
    return {
        "what": what,
        "choice": winner.id,
        "label": winner.candidate.label,
        "rate": scores[winner.id],
        "holds": holds,
        "predicted": True,
        "note": f"predicted; the choice would hold {scores[chosen.id]:.3g} requests/s",
    }
