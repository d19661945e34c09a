"""A load at one rate, measured or simulated, as far as the search and the report need it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from trimtab.optimizer.cost import Traffic
from trimtab.workloads.records import RequestRecord
from trimtab.workloads.slo import Slo
from trimtab.workloads.statistics import finite
from trimtab.workloads.summary import LoadSummary, load_rates, summarize
from trimtab.workloads.window import Window, steady_window, whole_load

LONG_SECONDS = 30.0
LATENCIES = ("ttft", "itl", "e2e", "tpot", "stall")


@dataclass(frozen=True)
class Work:
    """What an engine did in a load, measured or simulated."""

    small_seconds: float  # its executor's, in steps of at most `simulate.SMALL_ROWS` rows
    large_seconds: float  # in larger ones
    around_seconds: float  # the engine's own, before and behind each step
    num_accepted: int  # tokens that were guessed right

    def since(self, before: Work) -> Work:
        return Work(
            self.small_seconds - before.small_seconds,
            self.large_seconds - before.large_seconds,
            self.around_seconds - before.around_seconds,
            self.num_accepted - before.num_accepted,
        )


@dataclass(frozen=True)
class LoadPoint:
    """Latencies in seconds. `margin`: log(limit / observed) of the term that is closest to its
    limit; positive: room."""

    rate: float  # offered, requests a second; 0 of a closed loop
    seed: int
    seconds: float  # of arrivals
    achieved: float
    goodput: float  # requests that keep their limits, a second of arrivals
    attainment: dict[str, float]  # value, low, high
    met: bool
    margin: float
    margin_error: float
    latencies: dict[str, dict[str, float | None]]  # by metric: mean, p50, p95, p99
    output_tokens_per_s: float
    num_requests: int
    terms: list[dict[str, Any]]
    traffic: Traffic
    valid: bool = True
    why: str = ""  # it is not
    apart: float = 0.0  # share of the time: the cores (trimtab.executors.placement)
    work: Work | None = None  # None: nobody counted it
    window: tuple[float, float] | None = None  # seconds; of the two rates

    def as_json(self) -> dict[str, Any]:
        work = None if self.work is None else dict(self.work.__dict__)
        return {**self.__dict__, "traffic": dict(self.traffic.__dict__), "work": work}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> LoadPoint:
        work = value.get("work")
        window = value.get("window")
        read = {
            "traffic": Traffic(**value["traffic"]),
            "work": work and Work(**work),
            "window": window and tuple(window),
        }
        return cls(**{**value, **read})

    def for_report(self, is_repeat: bool = False) -> dict[str, Any]:
        """`is_repeat`: one of those at the chosen rate, with a seed that nothing else had."""
        return {
            "rate": self.rate,
            "seed": self.seed,
            "seconds": self.seconds,
            "is_repeat": is_repeat,
            "achieved": self.achieved,
            "goodput": self.goodput,
            "attainment": self.attainment,
            **{name: self.latencies[name] for name in LATENCIES},
            "output_tokens_per_s": self.output_tokens_per_s,
            "requests": self.num_requests,
            "valid": self.valid,
            "why": self.why,
            "terms": self.terms,
            "predicted": None,
        }


def load_point(
    rate: float,
    seed: int,
    seconds: float,
    records: Sequence[RequestRecord],
    slo: Slo,
    work: Work | None = None,
    window: tuple[float, float] | None = None,
) -> LoadPoint:
    """The SLO and latencies are of the whole load: it begins on an idle server, as real ones do
    not, and ends with the last answer, so that nothing that was asked is left out. Rates are of its
    steady part; `window`: of that of the measured load, if this is its simulation. A queue that
    grows through a long load is an SLO that is missed.
    """
    found = slo.evaluate(records)
    summary = summarize(records, slo, whole_load(records))
    steady = steady_window(records)
    rates = load_rates(records, Window(*window) if window else steady)
    complete = [record for record in records if record.is_complete]
    count = max(len(complete), 1)
    cached = sum(record.num_cached_tokens for record in complete)
    good = sum(slo.met_by(record) for record in complete)
    # Of a short load a burst looks like a queue that grows; what it does to users, the SLO says.
    grows = seconds >= LONG_SECONDS and load_rates(records, steady).is_overloaded
    margin = min(found.margin, -0.05) if grows else found.margin
    return LoadPoint(
        rate=rate,
        seed=seed,
        seconds=seconds,
        achieved=rates.achieved_rate,
        goodput=good / seconds if seconds else 0.0,
        attainment=found.attainment.as_json(),
        met=found.met and not grows,
        margin=margin,
        margin_error=found.margin_error,
        latencies={name: _percentiles(summary, name) for name in LATENCIES},
        output_tokens_per_s=rates.output_tokens_per_second,
        num_requests=found.num_requests,
        terms=[term.as_json() for term in found.terms],
        traffic=Traffic(
            computed_input=(sum(r.num_prompt_tokens for r in complete) - cached) / count,
            cached_input=cached / count,
            output=sum(r.num_output_tokens for r in complete) / count,
        ),
        work=work,
        window=(rates.window.start, rates.window.end),
    )


def void(point: LoadPoint, why: str) -> LoadPoint:
    """The client could not keep up: it says nothing about the server."""
    return replace(point, valid=False, why=why)


def _percentiles(summary: LoadSummary, name: str) -> dict[str, float | None]:
    found = summary.latencies[name]
    values = {key: finite(found.percentiles[key].value) for key in ("p50", "p95", "p99")}
    return {"mean": finite(found.mean), **values}
