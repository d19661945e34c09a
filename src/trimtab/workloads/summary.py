"""What a load was like: rates, latencies with their intervals, goodput."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trimtab.workloads.distribution import Distribution, distribution
from trimtab.workloads.grouped import Floats, chunk_gaps, itls, stall
from trimtab.workloads.records import RequestRecord
from trimtab.workloads.slo import Slo
from trimtab.workloads.slo_result import SloResult
from trimtab.workloads.statistics import Estimate, finite
from trimtab.workloads.window import Window, mean_in_flight, steady_window

_OF_REQUESTS: dict[str, Callable[[RequestRecord], float]] = {
    "ttft": lambda record: record.ttft,
    "ttft_service": lambda record: record.ttft_service,
    "client_queue": lambda record: record.client_queue,
    "tpot": lambda record: record.tpot,
    "tpot_inclusive": lambda record: record.tpot_inclusive,
    "e2e": lambda record: record.e2e,
    "e2e_service": lambda record: record.e2e_service,
    "normalized_latency": lambda record: record.normalized_latency,
    "stall": stall,
}
_OF_GAPS: dict[str, Callable[[RequestRecord], Floats]] = {"itl": itls, "chunk_gap": chunk_gaps}
SHOWN = ("ttft", "itl", "tpot", "tpot_inclusive", "e2e", "stall")


@dataclass(frozen=True)
class LoadRates:
    """Of events inside the window."""

    window: Window
    offered_rate: float  # requests scheduled a second
    achieved_rate: float  # requests completed a second
    output_tokens_per_second: float

    @property
    def is_overloaded(self) -> bool:
        """Whether clearly fewer requests end than start: the queue grows, and latencies depend on
        how long the load lasts. Two standard deviations of what chance gives, and 5 %."""
        missing = (self.offered_rate - self.achieved_rate) * self.window.length
        expected = self.offered_rate * self.window.length
        return self.window.is_steady and missing > max(2 * math.sqrt(expected), 0.05 * expected)


@dataclass(frozen=True)
class LoadSummary(LoadRates):
    """Rates are of events inside the window; latencies of the requests scheduled inside it."""

    num_requests: int  # scheduled inside the window
    num_complete: int
    num_cut: int
    errors: dict[str, int]  # message -> how often
    prompt_tokens_per_second: float  # of requests whose first token came inside the window
    cached_tokens_per_second: float  # of those, found in the prefix cache
    mean_concurrency: float  # requests in flight, averaged over time
    littles_concurrency: float  # achieved rate x mean E2E; far from the above: not steady
    latencies: dict[str, Distribution]  # by metric, seconds
    slo: SloResult | None
    goodput: Estimate | None  # requests a second that keep the SLO

    def as_json(self) -> dict[str, Any]:
        return {
            "window": {
                "start": self.window.start,
                "end": self.window.end,
                "steady": self.window.is_steady,
            },
            "requests": self.num_requests,
            "complete": self.num_complete,
            "cut": self.num_cut,
            "errors": self.errors,
            "offered": self.offered_rate,
            "achieved": self.achieved_rate,
            "overloaded": self.is_overloaded,
            "goodput": None if self.goodput is None else self.goodput.as_json(),
            "output_tokens_per_s": self.output_tokens_per_second,
            "prompt_tokens_per_s": self.prompt_tokens_per_second,
            "cached_tokens_per_s": self.cached_tokens_per_second,
            "concurrency": self.mean_concurrency,
            "concurrency_by_little": finite(self.littles_concurrency),
            "latencies": {name: one.as_json() for name, one in self.latencies.items()},
            "slo": None if self.slo is None else self.slo.as_json(),
        }

    def lines(self) -> list[str]:
        """For people: rates, a table of latencies in milliseconds, the SLO."""
        window = self.window
        kind = "steady" if window.is_steady else "whole load, no steady part"
        lines = [
            f"{self.num_requests} requests in {window.length:.1f} s ({kind}): "
            f"{self.num_complete} complete, {sum(self.errors.values())} failed, "
            f"{self.num_cut} cut at the end",
            f"offered {self.offered_rate:.3g} requests/s, completed {self.achieved_rate:.3g}"
            + (" (overloaded: the queue grows)" if self.is_overloaded else "")
            + ("" if self.goodput is None else f", goodput {_interval(self.goodput)}"),
            f"output {self.output_tokens_per_second:.4g} tokens/s, prompts "
            f"{self.prompt_tokens_per_second:.4g} tokens/s "
            f"({self.cached_tokens_per_second:.4g} from the cache), "
            f"{self.mean_concurrency:.3g} requests in flight",
            f"{'ms':<15}{'mean':>10}" + "".join(f"{name:>10}" for name in ("p50", "p95", "p99")),
        ]
        lines += [f"{name:<15}{self.latencies[name].row()}" for name in SHOWN]
        if any(self.latencies[name].has_weak_percentile for name in SHOWN):
            lines.append("~ too few samples for a claim on this percentile")
        lines += [f"error, {count} times: {text}" for text, count in self.errors.items()]
        return lines + ([] if self.slo is None else self.slo.lines())


def _interval(estimate: Estimate) -> str:
    return f"{estimate.value:.3g} ({estimate.low:.3g} to {estimate.high:.3g})"


def summarize(
    records: Sequence[RequestRecord],
    slo: Slo | None = None,
    window: Window | tuple[float, float] | None = None,
) -> LoadSummary:
    """Over `window` (seconds on the records' clock), or the steady part of the load if there is
    one, or else all of it. Percentiles are of pooled samples."""
    if window is None:
        window = steady_window(records)
    elif not isinstance(window, Window):
        window = Window(*window)
    inside = sorted(
        (record for record in records if window.holds(record.scheduled)),
        key=lambda record: record.scheduled,
    )
    complete = [record for record in inside if record.is_complete]
    rates = load_rates(records, window)
    prompts = [one for one in records if one.token_times and window.holds(one.token_times[0])]
    latencies = {
        name: distribution([value(record)] for record in complete)
        for name, value in _OF_REQUESTS.items()
    }
    latencies |= {
        name: distribution(gaps(record) for record in complete) for name, gaps in _OF_GAPS.items()
    }
    result = None if slo is None else slo.evaluate(inside)
    counted = [record for record in inside if not record.cut]
    return LoadSummary(
        **vars(rates),
        num_requests=len(inside),
        num_complete=len(complete),
        num_cut=sum(record.cut for record in inside),
        errors=dict(Counter(one.error for one in inside if one.error is not None).most_common()),
        prompt_tokens_per_second=_per_second(sum(one.num_prompt_tokens for one in prompts), window),
        cached_tokens_per_second=_per_second(sum(one.num_cached_tokens for one in prompts), window),
        mean_concurrency=mean_in_flight(records, window),
        littles_concurrency=rates.achieved_rate * latencies["e2e"].mean,
        latencies=latencies,
        slo=result,
        goodput=None
        if result is None
        else result.attainment.scaled(_per_second(len(counted), window)),
    )


def load_rates(records: Sequence[RequestRecord], window: Window) -> LoadRates:
    offered = sum(window.holds(record.scheduled) for record in records)
    achieved = sum(record.is_complete and window.holds(record.ended) for record in records)
    return LoadRates(
        window,
        _per_second(offered, window),
        _per_second(achieved, window),
        _per_second(_tokens_inside(records, window), window),
    )


def _per_second(count: float, window: Window) -> float:
    return count / window.length if window.length > 0 else 0.0


def _tokens_inside(records: Sequence[RequestRecord], window: Window) -> int:
    total = 0
    for record in records:
        times = np.asarray(record.token_times)
        inside = (window.start <= times) & (times < window.end)
        total += int(np.asarray(record.token_counts)[inside].sum())
    return total
