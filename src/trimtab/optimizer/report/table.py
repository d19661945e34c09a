"""The table of every configuration: what is shown in a cell, and what it is sorted by."""

from __future__ import annotations

from dataclasses import dataclass

from trimtab.optimizer.report.candidate_text import fate, standing
from trimtab.optimizer.report.check import STAGES
from trimtab.optimizer.report.choice import operating_points, percentile_of
from trimtab.optimizer.report.formatting import (
    Format,
    bounds,
    num_bytes,
    percent,
    plain,
    seconds,
    setting,
)
from trimtab.optimizer.report.measurements import Candidate, Interval, LoadPoint, Number
from trimtab.optimizer.report.results import Results


@dataclass(frozen=True)
class Cell:
    shown: str
    bounds: str = ""
    key: float | None = None  # sorts the column; unknown goes last
    predicted: bool = False


@dataclass(frozen=True)
class Row:
    id: str
    name: str
    changes: str
    standing: str
    stage: str
    cells: list[Cell]
    fate: str


def columns(results: Results) -> list[str]:
    return [
        "Requests/s",
        "Cost / M output",
        f"TTFT {percentile_of(results, 'ttft')}",
        f"ITL {percentile_of(results, 'itl')}",
        "Same top token",
        "KL mean",
        "Memory",
    ]


def rows(results: Results) -> list[Row]:
    """The choice, the default, then the fastest; of unknown rate last, by how far they came."""

    def order(candidate: Candidate) -> tuple[int, float, int, str]:
        rate = candidate.rate.value if candidate.rate else -1.0
        first = {"chosen": 0, "default": 1}.get(standing(results, candidate), 2)
        return (first, -rate, -STAGES.index(candidate.stage), candidate.id)

    return [_row(results, one) for one in sorted(results.candidates, key=order)]


def _row(results: Results, candidate: Candidate) -> Row:
    predicted = not candidate.is_measured
    point = _load(results, candidate)
    quality = candidate.quality
    ttft = point.latency("ttft", percentile_of(results, "ttft")) if point else None
    itl = point.latency("itl", percentile_of(results, "itl")) if point else None
    memory = candidate.memory.peak_measured
    planned = memory is None
    if planned:
        memory = candidate.memory.planned
    return Row(
        id=candidate.id,
        name=candidate.name,
        changes=", ".join(f"{key} {setting(one)}" for key, one in candidate.changes.items()),
        standing=standing(results, candidate),
        stage=candidate.stage,
        cells=[
            _cell(candidate.rate, plain, predicted),
            _cell(candidate.cost.per_million_output, plain, predicted),
            _cell(ttft, seconds, predicted),
            _cell(itl, seconds, predicted),
            _cell(quality.top1 if quality else None, percent, False),
            _cell(quality.kl_mean if quality else None, plain, False),
            _cell(Interval(memory) if memory is not None else None, num_bytes, planned),
        ],
        fate=fate(results, candidate),
    )


def _load(results: Results, candidate: Candidate) -> LoadPoint | None:
    """Measured at the operating point, else predicted."""
    if candidate.is_measured:
        return next(iter(operating_points(results, candidate)), None)
    return candidate.predicted.at_rate if candidate.predicted else None


def _cell(number: Number, form: Format, predicted: bool) -> Cell:
    if number is None:
        return Cell("–")
    mark = "~" if predicted else ""
    return Cell(mark + form(number.value), bounds(number, form), number.value, predicted)
