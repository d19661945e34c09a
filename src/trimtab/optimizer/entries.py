"""Everything that was tried, and how far each got: what the report's table is made of."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from trimtab.optimizer.cost import Cost
from trimtab.optimizer.decide import Shortfall
from trimtab.optimizer.measure import Measured
from trimtab.optimizer.memory import MemoryParts
from trimtab.optimizer.points import LoadPoint
from trimtab.optimizer.quality import QualityResult
from trimtab.optimizer.space import Candidate
from trimtab.optimizer.variants import Variant
from trimtab.workloads.statistics import share_estimate


@dataclass(eq=False)
class Entry:
    id: str
    candidate: Candidate
    stage: str = "bound"
    dropped: dict[str, str] | None = None  # stage, reason
    censored: bool = False
    quality: QualityResult | None = None
    memory: MemoryParts | None = None
    predicted_rate: float | None = None
    predicted: LoadPoint | None = None  # at that rate
    measured: Measured | None = None
    cost: Cost | None = None
    predicted_cost: Cost | None = None
    on_frontier: bool = False
    lacks: list[Shortfall] = field(default_factory=list)  # by bounds, before anything was measured

    def drop(self, stage: str, reason: str) -> None:
        self.stage = stage
        self.dropped = {"stage": stage, "reason": reason}

    def cannot(self, shortfall: Shortfall) -> None:
        """Dropped by a bound."""
        self.lacks.append(shortfall)
        self.drop("bound", f"{shortfall.in_words()}, at the machine's limit")

    @property
    def rate(self) -> float:
        """Measured; 0 of what was not, or does not meet the SLO."""
        return 0.0 if self.measured is None else self.measured.rate


@dataclass
class Entries:
    """In the order in which they were first looked at."""

    baseline: Variant
    all: list[Entry] = field(default_factory=list)
    _by_candidate: dict[Candidate, Entry] = field(default_factory=dict)

    def of(self, candidate: Candidate) -> Entry:
        known = self._by_candidate.get(candidate)
        if known is None:
            known = Entry(f"c{len(self.all)}", candidate)
            self._by_candidate[candidate] = known
            self.all.append(known)
        return known

    def find(self, candidate: Candidate) -> Entry | None:
        """Of what was looked at."""
        return self._by_candidate.get(candidate)

    def changes(self, candidate: Candidate) -> dict[str, Any]:
        """Against the unmodified model with default knobs."""
        own, base = candidate.variant.as_json(), self.baseline.as_json()
        changes = {name: value for name, value in own.items() if value != base[name]}
        return changes | candidate.run_changes


def entry_json(entry: Entry, entries: Entries, base: Any) -> dict[str, Any]:
    """As results.json has it."""
    candidate = entry.candidate
    return {
        "id": entry.id,
        "label": candidate.label,
        "changes": entries.changes(candidate),
        "variant": candidate.variant.as_json(),
        "scheduler": asdict(candidate.scheduler),
        "executor": asdict(candidate.executor(base)),
        "stage": entry.stage,
        "dropped": entry.dropped,
        "censored": entry.censored,
        "on_frontier": entry.on_frontier,
        "quality": None if entry.quality is None else quality_json(entry.quality),
        "memory": memory_json(entry),
        "predicted": predicted_json(entry),
        "measured": None if entry.measured is None else measured_json(entry, entry.measured),
    }


def quality_json(quality: QualityResult) -> dict[str, Any]:
    summary = quality.summary
    verdict = "pass" if quality.meets else "fail" if quality.fails else "undecided"
    return {
        "kl_mean": summary.get("kl:mean"),
        "kl_p99": summary.get("kl:p99"),
        "top1": summary.get("top1"),
        "ppl_ratio": summary.get("ppl_ratio"),
        "tasks": _tasks(summary.get("tasks")),
        "verdict": verdict,
        "source": quality.source,
        "windows": summary.get("windows"),
        "terms": [
            {
                "term": term.text,
                "met": {"pass": True, "fail": False}.get(term.status),
                "value": term.value,
                "low": term.low,
                "high": term.high,
                "limit": term.limit,
            }
            for term in quality.terms
        ],
    }


def _tasks(found: dict[str, int] | None) -> dict[str, Any] | None:
    if not found or not found["answered"]:
        return None
    estimate = share_estimate(found["right"], found["answered"]).as_json()
    return {**estimate, "base": found["base_right"] / found["answered"], **found}


def memory_json(entry: Entry) -> dict[str, Any] | None:
    if entry.memory is None:
        return None
    measured = entry.measured
    return {
        **entry.memory.as_json(),
        "peak_measured": None if measured is None else measured.peak_memory_bytes,
    }


def predicted_json(entry: Entry) -> dict[str, Any] | None:
    if entry.predicted_rate is None:
        return None
    return {
        "rate": entry.predicted_rate,
        "at_rate": None if entry.predicted is None else entry.predicted.for_report(),
        "cost": None if entry.predicted_cost is None else entry.predicted_cost.as_json(),
    }


def _cost(cost: Cost, measured: Measured) -> dict[str, Any]:
    """With what the repeats leave open of the rate."""
    rate = measured.interval
    return {
        name: {
            "value": value,
            "low": value * rate["value"] / rate["high"],
            "high": value * rate["value"] / rate["low"] if rate["low"] > 0 else None,
        }
        for name, value in cost.as_json().items()
    }


def measured_json(entry: Entry, measured: Measured) -> dict[str, Any]:
    usage = measured.usage or {}
    return {
        "rate": measured.interval,
        "repeats": len(measured.repeats),
        "points": [
            *(point.for_report() for point in measured.points),
            *(point.for_report(is_repeat=True) for point in measured.repeats),
        ],
        "cost": None if entry.cost is None else _cost(entry.cost, measured),
        "failed": measured.failed,
        "censored_at": measured.censored_at,
        **{
            name: usage.get(name)
            for name in (
                "cpu_use",
                "bandwidth_use",
                "arithmetic_use",
                "executor_use",
                "rows_per_step",
                "cached_share",
                "preemptions",
                "energy_joules_per_token",
            )
        },
    }
