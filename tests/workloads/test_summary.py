import json
import math

import numpy as np
import pytest

from trimtab.workloads.distribution import distribution
from trimtab.workloads.records import RequestRecord
from trimtab.workloads.slo import parse_slo
from trimtab.workloads.summary import summarize
from trimtab.workloads.window import mean_in_flight, steady_window, whole_load


def served(scheduled, wait, gaps, index=0, **fields):
    """A request whose first token comes `wait` after its schedule, and then one after each gap."""
    times = (scheduled + wait + np.cumsum([0.0, *gaps])).tolist()
    return RequestRecord(
        index=index,
        scheduled=scheduled,
        sent=scheduled + 0.01,
        ended=times[-1],
        token_times=times,
        token_counts=[1] * len(times),
        num_prompt_tokens=100,
        num_cached_tokens=20,
        num_output_tokens=len(times),
        **fields,
    )


def steady_load(rate=10.0, seconds=60.0, wait=0.2, gaps=(0.05,) * 36):
    """Constant arrivals, each in flight for 2 s: 20 at once."""
    return [served(i / rate, wait, gaps, i) for i in range(round(rate * seconds))]


def test_rates_of_a_steady_load():
    summary = summarize(steady_load())
    window = summary.window
    assert window.is_steady
    assert 1.0 <= window.start <= 4  # two seconds to fill
    assert window.end == pytest.approx(59.9)
    assert summary.offered_rate == pytest.approx(10, rel=0.01)
    assert summary.achieved_rate == pytest.approx(10, rel=0.02)
    assert summary.output_tokens_per_second == pytest.approx(370, rel=0.02)
    assert summary.prompt_tokens_per_second == pytest.approx(1000, rel=0.02)
    assert summary.cached_tokens_per_second == pytest.approx(200, rel=0.02)
    assert summary.mean_concurrency == pytest.approx(20, rel=0.02)
    assert summary.littles_concurrency == pytest.approx(20, rel=0.02)
    assert not summary.is_overloaded


def test_the_latencies_are_the_fields_definitions():
    one = served(1.0, 0.5, [0.1, 0.3])
    one.token_counts = [1, 1, 2]
    one.num_output_tokens = 4
    latencies = summarize([one], window=(0, 10)).latencies
    expected = {
        "ttft": 0.5,
        "ttft_service": 0.49,
        "client_queue": 0.01,
        "tpot": 0.4 / 3,
        "tpot_inclusive": 0.89 / 4,
        "e2e": 0.9,
        "e2e_service": 0.89,
        "normalized_latency": 0.9 / 4,
        "stall": 0.3,
        "itl": 0.4 / 3,
        "chunk_gap": 0.2,
    }
    assert {name: one.mean for name, one in latencies.items()} == pytest.approx(expected)
    assert latencies["itl"].count == 3
    assert latencies["chunk_gap"].count == 2


def test_percentiles_are_of_pooled_samples():
    order = [37 * i % 100 for i in range(100)]  # no trend over the load
    records = [served(i, 0.1 * (place + 1), [0.01], i) for i, place in enumerate(order)]
    ttft = summarize(records, window=(0, 1000)).latencies["ttft"]
    assert ttft.percentiles["p50"].value == pytest.approx(5.0)
    assert ttft.percentiles["p99"].value == pytest.approx(9.9)
    assert ttft.percentiles["p50"].low == pytest.approx(4.0)  # ranks 40 and 61 of 100
    assert ttft.percentiles["p50"].high == pytest.approx(6.1)


def test_a_percentile_of_too_few_samples_is_marked():
    few = summarize([served(i, 0.1, [0.01], i) for i in range(300)], window=(0, 1000))
    ttft = few.latencies["ttft"]
    assert ttft.is_claimed("p95")
    assert not ttft.is_claimed("p99")
    written = ttft.as_json()["p99"]
    assert written["claimed"] is False
    assert written["high"] is None
    row = next(line for line in few.lines() if line.startswith("ttft "))
    assert "~100" in row
    assert any(line.startswith("~ too few") for line in few.lines())
    enough = summarize([served(i, 0.1, [0.01], i) for i in range(400)], window=(0, 1000))
    assert enough.latencies["ttft"].is_claimed("p99")
    assert not any("~" in line for line in enough.lines())


def test_a_stall_shows():
    records = steady_load()
    for one in records[200:260]:
        one.token_times[10:] = [time + 2 for time in one.token_times[10:]]
        one.ended += 2
    latencies = summarize(records).latencies
    assert latencies["stall"].greatest == pytest.approx(2.05)
    assert latencies["stall"].percentiles["p95"].value == pytest.approx(2.05)
    assert latencies["itl"].percentiles["p95"].value == pytest.approx(0.05)


def test_goodput_counts_errors_as_misses_and_leaves_out_what_was_cut():
    records = steady_load()
    for one in records[100:160]:
        one.error = "HTTP 503"
    for one in records[160:170]:
        one.cut = True
    for one in records[200:230]:
        one.token_times = [time + 5 for time in one.token_times]
    summary = summarize(records, parse_slo("ttft:p99<1s"), window=(0.0, 60.0))
    assert summary.goodput.value == pytest.approx((600 - 60 - 10 - 30) / 60)
    assert summary.goodput.low < summary.goodput.value < summary.goodput.high
    assert summary.errors == {"HTTP 503": 60}
    assert summary.num_cut == 10
    assert summary.num_complete == 530
    assert summary.latencies["ttft"].count == 530
    assert not summary.slo.met
    text = "\n".join(summary.lines())
    assert "error, 60 times: HTTP 503" in text
    assert "SLO MISSED" in text


def test_an_overloaded_server_shows():
    """Arrivals at 10 a second, served at 8: the queue grows for as long as the load lasts."""
    records = [served(i / 10, max(0.1, i / 8 - i / 10), [0.01], i) for i in range(900)]
    summary = summarize(records)
    assert summary.is_overloaded
    assert "overloaded" in summary.lines()[1]


def test_warm_up_and_tail_are_outside_the_window():
    window = steady_window(steady_load(wait=5.0))
    assert window.is_steady
    assert 5 <= window.start <= 7
    assert window.end == 59.9


def test_a_growing_queue_is_no_endless_warm_up():
    window = steady_window([served(i / 10, i / 8 - i / 10, [0.01], i) for i in range(900)])
    assert window.start == pytest.approx(0.3 * 89.9)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_a_load_without_a_steady_part_is_taken_whole(count):
    records = [served(0.0, 0.1 * i, [0.1] * 5, i) for i in range(count)]
    summary = summarize(records, parse_slo("ttft:p99<1s"))
    assert not summary.window.is_steady
    assert summary.num_requests == count
    assert summary.output_tokens_per_second * summary.window.length == pytest.approx(6 * count)
    json.dumps(summary.as_json(), allow_nan=False)
    assert summary.lines()


def test_a_request_that_never_began_is_in_flight_until_it_failed():
    failed = RequestRecord(0, scheduled=1.0, sent=1.5, ended=3.0, error="refused")
    cut = RequestRecord(1, scheduled=2.0, cut=True)
    assert whole_load([failed, cut]).start == 1.0
    window = whole_load([failed, cut])
    assert mean_in_flight([failed, cut], window) == pytest.approx(1.0)
    json.dumps(summarize([failed, cut], parse_slo("itl:p99<1s")).as_json(), allow_nan=False)


def test_gaps_within_a_request_are_not_taken_for_independent():
    """Requests that are fast or slow throughout: 50 of them say less than 5,000 gaps would."""
    rng = np.random.default_rng(0)
    speeds = rng.exponential(0.05, 50) + 0.01
    alike = [served(i, 0.1, [speed] * 100, i) for i, speed in enumerate(speeds)]
    mixed = [served(i, 0.1, rng.permutation(np.repeat(speeds, 2)), i) for i in range(50)]
    width = {}
    for name, records in (("alike", alike), ("mixed", mixed)):
        p50 = summarize(records, window=(0, 1000)).latencies["itl"].percentiles["p50"]
        width[name] = p50.high - p50.low
    assert width["alike"] > 5 * width["mixed"]
    assert math.isfinite(width["alike"])


def test_waits_in_one_queue_are_not_taken_for_independent():
    """M/D/1 at 70 %: an interval that took 1,000 waits for independent would hold the median about
    half the time."""
    rng = np.random.default_rng(1)

    def waits(count):
        steps = np.cumsum(0.7 - rng.exponential(1, count + 1000))
        return (steps - np.minimum.accumulate(np.minimum(steps, 0)))[1000:]

    truth, covered = np.median(waits(400_000)), 0
    for _ in range(60):
        median = distribution([wait] for wait in waits(1000).tolist()).percentiles["p50"]
        covered += bool(median.low <= truth <= median.high)
    assert covered >= 60 * 0.8
