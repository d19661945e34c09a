"""What is known of a configuration: numbers with intervals, loads, costs, quality, memory.

Seconds, bytes, requests/s, tokens/s; shares from 0 to 1; money in the currency of the price. None
stands for what is not known.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from trimtab.optimizer.report.read import MisfitError, read_fields, read_value, shown


@dataclass(frozen=True, slots=True)
class Interval:
    """A number, and where its true value lies with the confidence of the run."""

    value: float
    low: float | None = None
    high: float | None = None

    @classmethod
    def from_json(cls, value: Any, where: str) -> Interval:
        """From a number, or from {"value", "low", "high"}."""
        if not isinstance(value, dict):
            return cls(read_value(float, value, where))
        found = read_fields(cls, value, where)
        if found.low is not None and found.high is not None and found.low > found.high:
            raise MisfitError(where, f"has an interval that ends before it begins: {shown(value)}")
        return found


@dataclass(frozen=True, slots=True)
class TaskScore(Interval):
    base: float | None = None  # of the unmodified model


Number = Interval | None
Latencies = dict[str, Number]  # "p50", "p95", "p99", "mean"


@dataclass(frozen=True, slots=True)
class Term:
    """One term of an SLO or of a quality need, and what came of it.

    `limit`: where it depends on a request's lengths, at their mean.
    """

    term: str
    value: Number = None
    limit: float | str | None = None
    attained: Number = None  # share of requests
    bound: float | None = None  # one-sided lower confidence bound of that share
    worth: float | None = None  # of how many independent samples the share is
    met: bool | None = None
    proven: bool | None = None  # not only of this sample, with confidence

    @classmethod
    def from_json(cls, value: Any, where: str) -> Term:
        """Its value is a number with an interval, or has `low` and `high` beside it."""
        found = read_fields(cls, value, where)
        if found.value is None or found.value.low is not None or "low" not in value:
            return found
        ends = {name: value.get(name) for name in ("low", "high")}
        number = Interval.from_json({"value": found.value.value, **ends}, f"{where}.value")
        return replace(found, value=number)


@dataclass(frozen=True, slots=True)
class LoadPoint:
    rate: float
    seconds: float | None = None  # in which requests arrived
    achieved: Number = None
    goodput: Number = None
    attainment: Number = None
    ttft: Latencies = field(default_factory=dict)
    itl: Latencies = field(default_factory=dict)
    e2e: Latencies = field(default_factory=dict)
    tpot: Latencies = field(default_factory=dict)
    stall: Latencies = field(default_factory=dict)
    output_tokens_per_s: Number = None
    requests: int | None = None
    valid: bool = True
    terms: list[Term] = field(default_factory=list)

    def latency(self, metric: str, percentile: str) -> Number:
        latencies: Latencies = getattr(self, metric, {})
        return latencies.get(percentile)


@dataclass(frozen=True, slots=True)
class Cost:
    per_million_output: Number = None
    per_million_input: Number = None
    per_million_cached: Number = None
    per_request: Number = None


@dataclass(frozen=True, slots=True)
class Quality:
    kl_mean: Number = None
    kl_p99: Number = None
    top1: Number = None
    ppl_ratio: Number = None
    tasks: TaskScore | None = None
    verdict: str | None = None
    terms: list[Term] = field(default_factory=list)
    windows: int | None = None


@dataclass(frozen=True, slots=True)
class Memory:
    weights: float | None = None
    kv_cache: float | None = None
    other: float | None = None
    activations: float | None = None
    draft: float | None = None
    python: float | None = None
    total: float | None = None
    peak_measured: float | None = None

    @property
    def parts(self) -> list[tuple[str, float]]:
        """Those that are known, planned."""
        parts = (
            ("weights", self.weights),
            ("KV cache", self.kv_cache),
            ("working memory", self.activations),
            ("speculation", self.draft),
            ("interpreter and libraries", self.python),
            ("other memory", self.other),
        )
        return [(name, size) for name, size in parts if size is not None]

    @property
    def planned(self) -> float | None:
        if self.total is not None:
            return self.total
        return sum(size for _, size in self.parts) if self.parts else None


@dataclass(frozen=True, slots=True)
class Predicted:
    rate: Number = None
    at_rate: LoadPoint | None = None
    cost: Cost = field(default_factory=Cost)


@dataclass(frozen=True, slots=True)
class Measured:
    rate: Number = None  # the highest that meets the SLO
    repeats: int | None = None
    points: list[LoadPoint] = field(default_factory=list)
    cost: Cost = field(default_factory=Cost)
    energy_joules_per_token: Number = None
    cpu_use: float | None = None
    bandwidth_use: float | None = None
    arithmetic_use: float | None = None
    executor_use: float | None = None
    cached_share: float | None = None
    rows_per_step: float | None = None
    preemptions: float | None = None
    failed: str | None = None


@dataclass(frozen=True, slots=True)
class Dropped:
    reason: str
    stage: str = ""


@dataclass(frozen=True, slots=True)
class Candidate:
    id: str
    label: str = ""
    changes: dict[str, Any] = field(default_factory=dict)
    variant: dict[str, Any] = field(default_factory=dict)
    scheduler: dict[str, Any] = field(default_factory=dict)
    executor: dict[str, Any] = field(default_factory=dict)
    stage: str = "bound"
    dropped: Dropped | None = None
    censored: bool = False
    on_frontier: bool = False
    quality: Quality | None = None
    memory: Memory = field(default_factory=Memory)
    predicted: Predicted | None = None
    measured: Measured | None = None

    @property
    def name(self) -> str:
        return self.label or self.id

    @property
    def is_measured(self) -> bool:
        """Under load, whether or not it could hold the SLO at any rate."""
        measured = self.measured
        return measured is not None and (measured.rate is not None or bool(measured.points))

    @property
    def rate(self) -> Number:
        """The highest rate that meets the SLO, measured where it was, else predicted."""
        if self.is_measured:
            return self.measured.rate if self.measured else None
        return self.predicted.rate if self.predicted else None

    @property
    def cost(self) -> Cost:
        if self.is_measured:
            return self.measured.cost if self.measured else Cost()
        return self.predicted.cost if self.predicted else Cost()
