"""Repeats are pooled as samples, and a run whose client was late says nothing."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from trimtab.bench.lateness import Lateness, allowed_lateness, high_lag
from trimtab.bench.load import LoadRun
from trimtab.bench.load_progress import progress_line, seconds_left
from trimtab.bench.load_report import LoadReport, make_report, mean_interval
from trimtab.bench.load_state import LoadProgress
from trimtab.errors import UserError
from trimtab.workloads.records import RequestRecord
from trimtab.workloads.requests import PlannedRequest, Workload
from trimtab.workloads.slo import parse_slo

SLO = parse_slo("ttft:p99<200ms; itl:p99<50ms")
WORKLOAD = Workload("chat", (PlannedRequest(0, 0.0, (), 3),), 10.0, None, 1, {"scale": 1})


def record(index: int, scheduled: float, ttft: float, error: str | None = None) -> RequestRecord:
    first = scheduled + ttft
    times = [] if error else [first, first + 0.01, first + 0.03]
    return RequestRecord(
        index,
        scheduled,
        scheduled + 0.001,
        first + 0.03,
        times,
        [1] * len(times),
        num_prompt_tokens=7,
        num_output_tokens=len(times),
        error=error,
    )


def lateness(lag: float = 1e-4, loop: float = 1e-4, core: float = 0.1) -> Lateness:
    return Lateness(lag / 2, lag, lag, loop / 2, loop, loop, core, allowed_lateness(SLO))


def run(records: list[RequestRecord], late: Lateness | None = None) -> LoadRun:
    late = late or lateness()
    reasons = late.reasons_against()
    return LoadRun(
        records, late, not reasons, "; ".join(reasons), "m", "chat", "", True, {"usage": 3},
        {200: 3}, None, 10.0, 0.0, 8, 0, 0, 0, 0, 2, None,
    )  # fmt: skip


def report(*runs: LoadRun) -> LoadReport:
    return make_report("http://x", WORKLOAD, SLO, runs)


def test_percentiles_are_of_pooled_samples_and_not_means_of_percentiles() -> None:
    quick = run([record(n, 0.1 * n, 0.01) for n in range(90)])
    slow = run([record(n, 0.1 * n, 0.15) for n in range(90)])
    found = report(quick, quick, slow)
    ttft = found.pooled.latencies["ttft"]
    assert ttft.count == sum(one.latencies["ttft"].count for one in found.summaries)
    assert ttft.percentiles["p50"].value == pytest.approx(0.01)
    assert ttft.percentiles["p90"].value == pytest.approx(0.15)
    assert found.pooled.achieved_rate == pytest.approx(10, rel=0.05)
    assert found.pooled.output_tokens_per_second == pytest.approx(30, rel=0.05)
    estimate, values = found.spread()["ttft p50 ms"]
    assert values == pytest.approx([10, 10, 150])
    assert estimate.low < 10 < estimate.high
    assert found.slo_met


def test_a_void_run_is_left_out_and_named() -> None:
    good = run([record(n, 0.1 * n, 0.01) for n in range(90)])
    void = run([record(n, 0.1 * n, 9.0) for n in range(90)], lateness(lag=0.5))
    found = report(good, void)
    assert found.pooled.latencies["ttft"].greatest == pytest.approx(0.01)
    assert found.why_void == ""
    assert any("run 2: void" in line and "late" in line for line in found.lines())
    only = report(void)
    assert "late" in only.why_void
    assert only.slo_met is None
    assert only.lines()[0].startswith("VOID")
    assert json.loads(json.dumps(only.as_json()))["void"]


@pytest.mark.parametrize(
    ("late", "reason"),
    [
        (lateness(lag=0.003), "sent"),
        (lateness(loop=0.003), "timers"),
        (lateness(core=0.95), "95 % of a core"),
    ],
)
def test_what_voids_a_run(late: Lateness, reason: str) -> None:
    assert any(reason in text for text in late.reasons_against())
    assert late.line()


def test_lateness_is_measured_against_the_tightest_limit() -> None:
    assert allowed_lateness(SLO) == pytest.approx(0.0025)
    assert allowed_lateness(None) == pytest.approx(0.010)
    assert allowed_lateness(parse_slo("ttft:p99<1ms*in")) == pytest.approx(0.010)


def test_json_and_csv_hold_every_request(tmp_path: Path) -> None:
    records = [record(n, 0.1 * n, 0.01) for n in range(20)] + [record(20, 2.0, 0.1, "HTTP 500: x")]
    found = report(run(records), run(records))
    data = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert data["schema"] == 1
    assert len(data["runs"]) == 2
    assert data["workload"]["rate"] == 10.0
    path = tmp_path / "requests.csv"
    found.write_csv(path)
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert len(rows) == 42
    assert float(rows[0]["ttft"]) == pytest.approx(0.01)
    assert float(rows[0]["tpot"]) == pytest.approx(0.015)
    assert float(rows[0]["tpot_inclusive"]) == pytest.approx(0.039 / 3)
    assert (rows[20]["error"], rows[20]["ttft"], rows[20]["meets_slo"]) == ("HTTP 500: x", "", "0")
    with pytest.raises(UserError, match="nowhere"):
        found.write_csv(tmp_path / "nowhere" / "x.csv")


def test_a_closed_loop_has_no_rate() -> None:
    closed = Workload("chat", WORKLOAD.requests, None, 4, 1)
    found = make_report("http://x", closed, None, [run([record(n, n, 0.1) for n in range(9)])])
    assert "closed loop: it has no rate" in found.lines()[0]


def test_intervals_of_repeats_are_student_t() -> None:
    found = mean_interval([1.0, 2.0, 3.0])
    assert found.value == 2
    assert found.high - found.value == pytest.approx(4.303 / 3**0.5, rel=1e-3)


def test_progress_says_how_long_it_still_takes() -> None:
    running = LoadProgress(10.0, 40, 30, 1, 100, 10, 900, last_due=25.0)
    assert seconds_left(running) == 15.0
    assert progress_line(running) == (
        "10 s, 15 s left, 30/100 requests, 10 in flight, 90 tokens/s, 1 failed"
    )
    closed = LoadProgress(10.0, 40, 25, 0, 100, 10, 900, last_due=0.0)
    assert seconds_left(closed) == pytest.approx(30.0)
    assert seconds_left(LoadProgress(0.1, 1, 0, 0, 9, 1, 0, 0.0)) is None


def test_one_hiccup_among_few_requests_is_no_p99() -> None:
    assert high_lag([0.001] * 59 + [0.5]) == 0.001
    assert high_lag([0.001] * 58 + [0.4, 0.5]) == 0.4
    assert high_lag([0.001] * 5 + [0.5]) == 0.5
    assert high_lag([0.001] * 98 + [0.5] * 2) == 0.5
