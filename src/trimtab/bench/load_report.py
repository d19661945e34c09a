"""Several loads of one kind as one report: pooled samples, what repeats differ by, who was late."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trimtab.bench.load import LoadRun
from trimtab.bench.self_check import SelfCheck
from trimtab.errors import UserError
from trimtab.workloads.records import RequestRecord
from trimtab.workloads.requests import Workload
from trimtab.workloads.slo import Slo
from trimtab.workloads.statistics import Estimate, finite
from trimtab.workloads.summary import LoadSummary, summarize

SCHEMA = 1
# Student's t, two-sided 95 %, by degrees of freedom; 1.96 beyond.
_T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
_COMPARED: dict[str, Callable[[LoadSummary], float]] = {
    "achieved requests/s": lambda one: one.achieved_rate,
    "goodput requests/s": lambda one: math.nan if one.goodput is None else one.goodput.value,
    "output tokens/s": lambda one: one.output_tokens_per_second,
    "ttft p50 ms": lambda one: 1e3 * one.latencies["ttft"].percentiles["p50"].value,
    "ttft p99 ms": lambda one: 1e3 * one.latencies["ttft"].percentiles["p99"].value,
    "itl p99 ms": lambda one: 1e3 * one.latencies["itl"].percentiles["p99"].value,
}
_COLUMNS = (
    "repeat", "index", "session", "turn", "scheduled", "sent", "first_token", "last_token", "ended",
    "prompt_tokens", "cached_tokens", "output_tokens", "events", "client_queue", "ttft",
    "ttft_service", "tpot", "tpot_inclusive", "e2e", "e2e_service", "normalized_latency", "stall",
    "meets_slo", "cut", "error",
)  # fmt: skip


@dataclass(frozen=True)
class LoadReport:
    """`pooled` is over the valid runs, or all if none is."""

    url: str
    workload: Workload
    slo: Slo | None
    runs: Sequence[LoadRun]
    summaries: Sequence[LoadSummary]  # of each run
    pooled: LoadSummary
    self_check: SelfCheck | None = None

    @property
    def why_void(self) -> str:
        """Why no run counts; empty if one does."""
        return "" if any(run.valid for run in self.runs) else self.runs[-1].why

    @property
    def is_saturated(self) -> bool:
        return any(run.saturation is not None for run in self.runs)

    @property
    def slo_met(self) -> bool | None:
        """None without an SLO, or if the client was the limit."""
        if self.pooled.slo is None or self.why_void:
            return None
        return self.pooled.slo.met and not self.is_saturated

    def as_json(self) -> dict[str, Any]:
        first = self.runs[0]
        offered = self.workload
        return {
            "schema": SCHEMA,
            "url": self.url,
            "model": first.model,
            "server": first.server,
            "route": first.route,
            "workload": {
                "name": offered.name,
                "rate": offered.rate,
                "concurrency": offered.concurrency,
                "requests": len(offered.requests),
                "seed": offered.seed,
                **offered.description,
            },
            "slo": None if self.slo is None else self.slo.as_text(),
            "slo_met": self.slo_met,
            "void": self.why_void or None,
            "pooled": self.pooled.as_json(),
            "repeats": {
                name: {**estimate.as_json(), "values": values}
                for name, (estimate, values) in self.spread().items()
            },
            "runs": [
                {**run_json(run), "summary": summary.as_json()}
                for run, summary in zip(self.runs, self.summaries, strict=True)
            ],
            "self_check": None if self.self_check is None else self.self_check.as_json(),
        }

    def spread(self) -> dict[str, tuple[Estimate, list[float]]]:
        """How the valid repeats differ: mean with its interval (Student's t), and the values."""
        found = {}
        for name, value in _COMPARED.items():
            values = [value(one) for one in _kept(self.runs, self.summaries)]
            values = [one for one in values if math.isfinite(one)]
            if len(values) > 1:
                found[name] = mean_interval(values), values
        return found

    def lines(self) -> list[str]:
        first = self.runs[0]
        loop = "at its own times, open loop"
        if self.workload.rate is not None:
            loop = f"rate {self.workload.rate:g}/s, open loop"
        if self.workload.concurrency is not None:
            loop = f"{self.workload.concurrency} sessions at once, closed loop: it has no rate"
        void = self.why_void
        lines = [f"VOID: {void}; these figures tell nothing about the server"] if void else []
        lines += [
            f"{self.workload.name} on {first.model} at {self.url} ({first.route}), {loop}, "
            f"{_plural(len(self.runs), 'run')}",
            *self.pooled.lines(),
            *self._service_lines(),
        ]
        for name, (estimate, _) in self.spread().items():
            lines.append(
                f"{name} over the repeats: {estimate.value:.4g} "
                f"({estimate.low:.4g} to {estimate.high:.4g})"
            )
        sources = {source: count for run in self.runs for source, count in run.counted_by.items()}
        lines += [f"tokens counted by {source}" for source in sources]
        for number, run in enumerate(self.runs, 1):
            start = f"run {number}: " if len(self.runs) > 1 else ""
            lines.append(start + run.lateness.line())
            if not run.valid:
                lines.append(f"{start}void: {run.why}")
            lines += [start + note for note in run.notes]
        if self.self_check is not None:
            lines.append(self.self_check.line())
        return lines

    def _service_lines(self) -> list[str]:
        """Latencies from sending instead of from the schedule, as most other tools report them."""
        latencies = self.pooled.latencies
        names = ("ttft_service", "e2e_service", "normalized_latency")
        return [f"{name:<19}{latencies[name].row()[4:]}" for name in names]

    def write_csv(self, path: Path) -> None:
        """One row a request, seconds since the start of its run. Raises UserError."""
        try:
            with path.open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(_COLUMNS)
                for number, run in enumerate(self.runs, 1):
                    writer.writerows(csv_row(number, one, self.slo) for one in run.records)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from None


def make_report(
    url: str,
    workload: Workload,
    slo: Slo | None,
    runs: Sequence[LoadRun],
    self_check: SelfCheck | None = None,
) -> LoadReport:
    """Of at least one run."""
    summaries = [summarize(run.records, slo) for run in runs]
    kept = [run for run in runs if run.valid] or list(runs)
    pooled = pool_runs(kept, list(_kept(runs, summaries)), slo)
    return LoadReport(url, workload, slo, runs, summaries, pooled, self_check)


def _kept(runs: Sequence[LoadRun], summaries: Sequence[LoadSummary]) -> list[LoadSummary]:
    kept = [one for run, one in zip(runs, summaries, strict=True) if run.valid]
    return kept or list(summaries)


def pool_runs(
    runs: Sequence[LoadRun], summaries: Sequence[LoadSummary], slo: Slo | None
) -> LoadSummary:
    """Percentiles of the pooled samples of all windows, not means of percentiles; rates are means
    weighted by the windows' lengths."""
    if len(runs) == 1:
        return summaries[0]
    records: list[RequestRecord] = []
    end = 0.0
    for run, summary in zip(runs, summaries, strict=True):
        inside = (one for one in run.records if summary.window.holds(one.scheduled))
        records += [_shifted(one, end - summary.window.start) for one in inside]
        end += summary.window.length
    pooled = summarize(records, slo, (0.0, end))

    def mean(name: str) -> float:
        return math.fsum(getattr(one, name) * one.window.length for one in summaries) / end

    pooled = replace(
        pooled,
        achieved_rate=mean("achieved_rate"),
        output_tokens_per_second=mean("output_tokens_per_second"),
        prompt_tokens_per_second=mean("prompt_tokens_per_second"),
        cached_tokens_per_second=mean("cached_tokens_per_second"),
        mean_concurrency=mean("mean_concurrency"),
    )
    littles = pooled.achieved_rate * pooled.latencies["e2e"].mean
    steady = all(one.window.is_steady for one in summaries)
    window = replace(pooled.window, is_steady=steady)
    return replace(pooled, littles_concurrency=littles, window=window)


def _shifted(record: RequestRecord, by: float) -> RequestRecord:
    return replace(
        record,
        scheduled=record.scheduled + by,
        sent=record.sent + by,
        ended=record.ended + by,
        token_times=[time + by for time in record.token_times],
    )


def mean_interval(values: Sequence[float]) -> Estimate:
    """The mean of at least two values, and its two-sided 95 % interval by Student's t."""
    mean = statistics.fmean(values)
    freedom = len(values) - 1
    factor = _T_95[freedom - 1] if freedom <= len(_T_95) else 1.96
    half = factor * statistics.stdev(values) / math.sqrt(len(values))
    return Estimate(mean, mean - half, mean + half)


def run_json(run: LoadRun) -> dict[str, Any]:
    return {
        "started": run.started,
        "elapsed": run.elapsed,
        "valid": run.valid,
        "why": run.why or None,
        "lateness": run.lateness.as_json(),
        "real_time_priority": run.real_time,
        "counted_by": run.counted_by,
        "statuses": {str(status): count for status, count in run.statuses.items()},
        "exact_lengths": run.exact_lengths,
        "peak_in_flight": run.peak_in_flight,
        "max_concurrency": run.max_concurrency,
        "saturated": run.saturation is not None,
        "warm_up_requests": run.num_warm_up,
        "unsent": run.num_unsent,
        "short_answers": run.num_short,
        "retried": run.num_retried,
        "resent": run.num_resent,
        "interrupted": run.interrupted,
        "notes": list(run.notes),
    }


def csv_row(repeat: int, one: RequestRecord, slo: Slo | None) -> list[object]:
    first = one.token_times[0] if one.token_times else math.nan
    last = one.token_times[-1] if one.token_times else math.nan
    seconds = (one.scheduled, one.sent, first, last, one.ended)
    latencies = (
        one.client_queue, one.ttft, one.ttft_service, one.tpot, one.tpot_inclusive, one.e2e,
        one.e2e_service, one.normalized_latency, max(one.chunk_gaps(), default=math.nan),
    )  # fmt: skip
    return [
        repeat, one.index, one.session, one.turn,
        *(_cell(value) for value in seconds),
        one.num_prompt_tokens, one.num_cached_tokens, one.num_output_tokens, len(one.token_times),
        *(_cell(value) for value in latencies),
        "" if slo is None else int(slo.met_by(one)),
        int(one.cut), one.error or "",
    ]  # fmt: skip


def _cell(value: float) -> float | str:
    return "" if finite(value) is None else round(value, 7)


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")
