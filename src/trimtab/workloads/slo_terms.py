"""The terms of a service level objective: a metric, a statistic of it, a limit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trimtab.workloads.grouped import Floats, itls, stall
from trimtab.workloads.records import NAN, RequestRecord
from trimtab.workloads.statistics import rank

METRICS = {  # name -> what it is, for help and error messages
    "ttft": "time to first token",
    "itl": "inter-token latency, all gaps pooled",
    "tpot": "(E2E - TTFT) / (output tokens - 1)",
    "tpot_inclusive": "time per output token, the first included",
    "e2e": "end-to-end latency",
    "stall": "the largest gap within a request",
    "normalized_latency": "E2E a token",
}
ALIASES = {"e2e_latency": "e2e", "e2el": "e2e", "normalized": "normalized_latency"}


@dataclass(frozen=True)
class Limit:
    """constant + per_input x prompt tokens + per_output x output tokens, in seconds."""

    constant: float = 0.0
    per_input: float = 0.0
    per_output: float = 0.0

    def of(self, num_prompt_tokens: float, num_output_tokens: float) -> float:
        return (
            self.constant + self.per_input * num_prompt_tokens + self.per_output * num_output_tokens
        )

    def of_record(self, record: RequestRecord) -> float:
        return self.of(record.num_prompt_tokens, record.num_output_tokens)

    def as_text(self) -> str:
        parts = [(self.constant, ""), (self.per_input, "*in"), (self.per_output, "*out")]
        return "+".join(duration_text(value) + tail for value, tail in parts if value) or "0ms"


def duration_text(seconds: float) -> str:
    """In the unit that people use for it, exact to ten digits: 2s, 300ms, 50us, never."""
    if not math.isfinite(seconds):
        return "never"
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if abs(seconds) >= size:
            return f"{seconds / size:.10g}{unit}"
    return f"{seconds * 1e6:.10g}us"


@dataclass(frozen=True)
class Term:
    """`ttft:p99<300ms+0.3ms*in`: the share `quantile` of all requests is below its own limit.
    Without a quantile, the mean is."""

    metric: str  # of METRICS
    quantile: float | None  # 0..1; 1 is the maximum; None: the mean
    limit: Limit
    or_equal: bool = False  # `<=`

    @property
    def is_pooled(self) -> bool:
        """Whether its samples are gaps and not requests."""
        return self.metric == "itl"

    @property
    def statistic(self) -> str:
        if self.quantile is None:
            return "mean"
        return "max" if self.quantile == 1 else f"p{100 * self.quantile:.10g}"

    def as_text(self) -> str:
        sign = "<=" if self.or_equal else "<"
        return f"{self.metric}:{self.statistic}{sign}{self.limit.as_text()}"

    def keeps(self, value: float, limit: float) -> bool:
        return value <= limit if self.or_equal else value < limit

    def samples(self, record: RequestRecord) -> Sequence[float] | Floats:
        """Of one request, in seconds: its gaps, or its one value; none where it is not defined.
        An error is infinitely late, and so is an answer without a token of its first one."""
        if record.error is not None:
            return [math.inf]
        if self.is_pooled:
            return itls(record)
        value = _request_value(self.metric, record)
        if math.isnan(value):
            return [math.inf] if self.metric == "ttft" else []
        return [value]

    def of_request(self, record: RequestRecord) -> float:
        """The request's own value: of pooled metrics, the statistic of its own gaps. Not a number
        where it is not defined."""
        samples = self.samples(record)
        if not len(samples):
            return NAN
        if self.quantile is None:
            return float(np.mean(samples))
        return float(np.sort(samples)[rank(self.quantile, len(samples))])

    def met_by(self, record: RequestRecord) -> bool:
        """Whether the request by itself keeps the limit. What is not defined (the gaps of one
        token) keeps it."""
        value = self.of_request(record)
        return math.isnan(value) or self.keeps(value, self.limit.of_record(record))


def _request_value(metric: str, record: RequestRecord) -> float:
    if metric == "stall":
        return stall(record)
    value: float = getattr(record, metric)
    return value
