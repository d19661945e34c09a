import math

import numpy as np
import pytest

from trimtab.errors import UserError
from trimtab.workloads.records import RequestRecord
from trimtab.workloads.slo import EXAMPLE, Slo, parse_slo
from trimtab.workloads.slo_terms import METRICS, Limit, Term


def record(ttft=0.1, gaps=(), *, prompt=10, error=None, cut=False, scheduled=0.0, end=0.0):
    """One token an event: the first after `ttft` seconds, then one after each of `gaps`."""
    times = (scheduled + ttft + np.cumsum([0.0, *gaps])).tolist()
    return RequestRecord(
        index=0,
        scheduled=scheduled,
        sent=scheduled,
        ended=times[-1] + end,
        token_times=times,
        token_counts=[1] * len(times),
        num_prompt_tokens=prompt,
        num_output_tokens=len(times),
        error=error,
        cut=cut,
    )


def test_a_text_becomes_terms_and_comes_back():
    slo = parse_slo(" TTFT:p99 < 300ms + 0.3ms*in;e2e_latency:p95<=2s ; tpot:mean<40ms*out+1us;")
    assert slo.terms == (
        Term("ttft", 0.99, Limit(0.3, 0.0003)),
        Term("e2e", 0.95, Limit(2.0), or_equal=True),
        Term("tpot", None, Limit(1e-6, 0.0, 0.04)),
    )
    text = "ttft:p99<300ms+300us*in; e2e:p95<=2s; tpot:mean<1us+40ms*out"
    assert slo.as_text() == text
    assert parse_slo(text) == slo


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("statistic", ["p50", "p99.9", "mean", "max"])
def test_every_metric_and_statistic_is_read_and_written(metric, statistic):
    text = f"{metric}:{statistic}<1.5s; attainment>=0.9"
    assert parse_slo(text).as_text() == text


@pytest.mark.parametrize(
    ("text", "position", "problem"),
    [
        ("", "at its end", "no limit"),
        ("attainment>=0.9", "character 1", "no limit"),
        ("ttft:p99<300", "character 10", "unit"),
        ("ttft:p99<300min", "character 13", "unit"),
        ("ttft:p99<0s", "character 10", "faster than 0"),
        ("ttft:p99<", "at its end", "number with a unit"),
        ("ttft:p99<1s+", "at its end", "number with a unit"),
        ("ttft:p99<-1s", "character 10", "number with a unit"),
        ("ttft:p99<1s*batch", "character 13", "in or out"),
        ("ttft:p99<1s 2s", "character 13", "joined by +"),
        ("ttft:p99<1s, itl:p99<2s", "character 12", "terms by ;"),
        ("ttft<1s", "character 1", "metric:statistic<limit"),
        ("ttft:p99>1s", "character 1", "metric:statistic<limit"),
        ("e2e:p50<1s; speed:p99<1s", "character 13", "the metrics are"),
        ("ttft:p100<1s", "character 6", "a statistic is"),
        ("ttft:p0<1s", "character 6", "a statistic is"),
        ("ttft:average<1s", "character 6", "a statistic is"),
        ("ttft:p99<1s; attainment>=1.5", "character 26", "share"),
        ("ttft:p99<1s; attainment>=0", "character 26", "share"),
        ("ttft:p99<1s; attainment>=0.9; attainment>=0.8", "character 31", "twice"),
    ],
)
def test_a_mistake_is_one_line_with_its_position_and_an_example(text, position, problem):
    with pytest.raises(UserError) as caught:
        parse_slo(text)
    line = str(caught.value)
    assert position in line
    assert problem in line
    assert EXAMPLE in line
    assert "\n" not in line
    parse_slo(EXAMPLE)


def test_a_percentile_holds_if_that_share_of_requests_is_below():
    slo = parse_slo("ttft:p99<200ms")
    exactly = [record(0.1)] * 99 + [record(0.3)]
    assert slo.evaluate(exactly).met
    assert not slo.evaluate([*exactly, record(0.3)]).met
    assert not slo.evaluate([record(0.2)] * 100).met  # below, not at
    assert parse_slo("ttft:p99<=200ms").evaluate([record(0.2)] * 100).met


def test_each_request_is_held_to_its_own_limit():
    slo = parse_slo("ttft:p50<100ms+1ms*in")
    long, short = record(0.5, prompt=1000), record(0.5, prompt=10)
    assert slo.met_by(long)
    assert not slo.met_by(short)
    result = slo.evaluate([long, long, short]).terms[0]
    assert result.met
    assert result.attained == pytest.approx(2 / 3)
    assert result.limit == pytest.approx(0.1 + 0.001 * 2010 / 3)
    assert not slo.evaluate([long, short, short]).met


def test_gaps_are_pooled_for_the_term_and_are_a_requests_own_for_goodput():
    smooth, rough = record(gaps=[0.01] * 300), record(gaps=[0.01] * 2 + [0.2])
    slo = parse_slo("itl:p99<50ms")
    result = slo.evaluate([smooth, rough])
    assert result.met  # 302 of 303 gaps
    assert result.terms[0].num_samples == 303
    assert result.attainment.value == 0.5
    assert slo.met_by(smooth)
    assert not slo.met_by(rough)
    assert parse_slo("itl:mean<80ms").met_by(rough)
    assert not parse_slo("stall:p50<0.1s").met_by(rough)


def test_errors_are_misses_and_what_was_cut_is_nothing():
    good = [record(0.1, [0.01] * 10)] * 98
    failed = record(0.1, [0.01] * 3, error="HTTP 500")
    for text in ("ttft:p99<1s", "itl:p99<1s", "e2e:p99<1s", "tpot:mean<1s", "stall:max<1s"):
        slo = parse_slo(text)
        assert slo.evaluate([*good, record(9, cut=True), record(9, cut=True)]).met
        result = slo.evaluate([*good, failed, failed])
        assert not result.met, text
        assert result.num_requests == 100
        assert result.num_errors == 2
        assert not slo.met_by(failed)
        assert not slo.met_by(record(0.1, cut=True))


def test_what_is_not_defined_keeps_the_limit_but_no_token_is_a_miss():
    one_token, none = record(0.1), RequestRecord(0, 0.0, 0.0, 1.0)
    assert parse_slo("itl:p99<1ms; tpot:mean<1ms; stall:max<1ms").met_by(one_token)
    assert not parse_slo("ttft:p99<10s").met_by(none)
    result = parse_slo("itl:p99<1ms").evaluate([one_token] * 5)
    assert result.met  # all at once is not late, as for each of them
    assert not result.proven
    assert result.terms[0].num_samples == 0
    assert "nothing" in "\n".join(result.lines())


def test_an_empty_load_meets_nothing():
    for text in ("ttft:p99<1s", "ttft:mean<1s", "ttft:p99<1s; attainment>=0.5"):
        result = parse_slo(text).evaluate([])
        assert not result.met
        assert not result.proven
        assert result.as_json()["attainment"]["value"] is None
        assert result.lines()


def test_a_claim_needs_enough_samples():
    slo = parse_slo("ttft:p99<1s")
    few, enough = (slo.evaluate([record(0.1)] * count) for count in (298, 299))
    assert few.met
    assert not few.proven
    assert few.terms[0].samples_needed == 299
    assert not few.terms[0].has_enough_samples
    assert "298 samples show nothing, 299 could" in few.lines()[1]
    assert enough.proven
    assert enough.terms[0].bound >= 0.99
    assert parse_slo("ttft:max<1s").evaluate([record(0.1)] * 10_000).proven is False


def test_attainment_asks_for_requests_that_meet_all_terms():
    slo = parse_slo("ttft:p99<1s; e2e:p99<2s; attainment>=0.9")
    good, late, slow = record(0.1), record(1.5), record(0.1, end=5)
    assert slo.evaluate([good] * 90 + [late] * 5 + [slow] * 5).met
    result = slo.evaluate([good] * 89 + [late] * 5 + [slow] * 6)
    assert not result.met
    assert result.attainment.value == 0.89
    assert result.bound < 0.89
    assert result.margin < 0


def test_the_margin_tells_how_far_the_limit_is():
    slo = parse_slo("ttft:p50<200ms; e2e:p50<10s")
    near = slo.evaluate([record(0.1 + 0.0001 * i) for i in range(100)])
    assert near.margin == pytest.approx(math.log(0.2 / 0.1049), abs=0.01)
    far = slo.evaluate([record(0.4)] * 100)
    assert far.margin == pytest.approx(math.log(0.5))
    assert slo.evaluate([record(error="x")] * 9).margin < -5
    assert near.margin_error > far.margin_error > 0


def test_json_has_no_number_that_json_lacks():
    import json

    slo = parse_slo("ttft:p99<1s; itl:mean<1s")
    for records in ([], [record(error="x")] * 3, [record(0.1, [0.1])] * 400):
        json.dumps(slo.evaluate(records).as_json(), allow_nan=False)


def test_the_bound_covers_the_true_share():
    """One-sided 95 %: at most one load in twenty claims more than is true."""
    rng = np.random.default_rng(1)
    slo = Slo((Term("ttft", 0.9, Limit(1.0)),))
    claims = 0
    for _ in range(400):
        latencies = np.where(rng.random(120) < 0.9, 0.5, 2.0)
        claims += slo.evaluate([record(float(one)) for one in latencies]).terms[0].bound > 0.9
    assert claims <= 400 * 0.05 + 3 * math.sqrt(400 * 0.05 * 0.95)
