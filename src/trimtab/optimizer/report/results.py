"""What `results.json` holds, typed; in the units of `measurements`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from trimtab.optimizer.report.measurements import Candidate, Number


@dataclass(frozen=True, slots=True)
class Model:
    name: str = ""
    content: str = ""
    architecture: str = ""
    parameters: float | None = None


@dataclass(frozen=True, slots=True)
class Machine:
    cpu: str = ""
    isa: str = ""
    threads: int | None = None
    cores: int | None = None
    memory_bytes: float | None = None
    read_bytes_per_s: float | None = None
    macs_per_s: dict[str, float | None] = field(default_factory=dict)
    noise: float | None = None
    cores_apart: float | None = None  # share of the time of all loads
    fingerprint: Any = None
    device: str = ""
    gpu: str = ""
    driver: str = ""
    gpu_memory_bytes: float | None = None


@dataclass(frozen=True, slots=True)
class Need:
    slo: str = ""
    quality: str = ""
    workload: str = ""
    workload_description: dict[str, Any] = field(default_factory=dict)
    rate: float | None = None
    headroom: float | None = None
    memory_bytes: float | None = None
    price_per_hour: float | None = None
    currency: str = ""
    price_source: str = ""
    objective: str = ""
    budget_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Rung:
    label: str
    id: str | None = None
    rate: Number = None
    gain: Number = None


@dataclass(frozen=True, slots=True)
class Pair:
    metric: str
    predicted: float | None = None
    measured: float | None = None
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Mean absolute errors of the predictions, as shares. `at_pace`: of those, by name, that know
    how fast the machine was during each load."""

    loads: int | None = None
    ttft_p50: float | None = None
    itl: float | None = None
    e2e: float | None = None
    throughput: float | None = None
    steps_held_out: float | None = None
    at_pace: dict[str, float | None] | None = None
    pairs: list[Pair] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class RooflinePoint:
    label: str
    intensity: float | None = None  # multiply-adds a byte
    macs_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class Roofline:
    read_bytes_per_s: float | None = None
    macs_per_s: float | dict[str, float | None] | None = None
    points: list[RooflinePoint] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Sensitivity:
    what: str
    choice: str | None = None
    label: str = ""
    rate: Number = None
    holds: bool | None = None
    note: str = ""
    predicted: bool | None = None

    @property
    def is_predicted(self) -> bool:
        """As it says, or as its note does."""
        return self.note.startswith("predicted") if self.predicted is None else self.predicted


@dataclass(frozen=True, slots=True)
class Relaxation:
    term: str
    asked: float | str | None = None
    would_hold: float | str | None = None
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Infeasible:
    binding: str = ""
    closest: str | None = None
    by: str = ""
    relaxations: list[Relaxation] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Stage:
    name: str
    seconds: float | None = None
    tried: int | None = None
    left: int | None = None


@dataclass(frozen=True, slots=True)
class Results:
    format: int
    status: str
    candidates: list[Candidate]
    version: dict[str, Any] = field(default_factory=dict)
    created: str = ""
    seconds: float | None = None
    command: str = ""
    model: Model = field(default_factory=Model)
    machine: Machine = field(default_factory=Machine)
    need: Need = field(default_factory=Need)
    headline: str = ""
    chosen: str | None = None
    default: str | None = None
    plan_path: str = ""
    ladder: list[Rung] = field(default_factory=list)
    accuracy: Accuracy | None = None
    roofline: Roofline | None = None
    sensitivity: list[Sensitivity] = field(default_factory=list)
    infeasible: Infeasible | None = None
    stages: list[Stage] = field(default_factory=list)

    def candidate(self, id_: str | None) -> Candidate | None:
        return next((one for one in self.candidates if one.id == id_), None) if id_ else None

    @property
    def is_met(self) -> bool:
        return self.status == "met"
