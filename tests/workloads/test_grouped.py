"""The arrays against the records' own definitions, on random loads."""

import numpy as np
import pytest

from trimtab.workloads.grouped import Grouped, chunk_gaps, itls, stall
from trimtab.workloads.records import RequestRecord
from trimtab.workloads.slo import parse_slo
from trimtab.workloads.slo_result import TermSamples
from trimtab.workloads.slo_terms import METRICS


def random_records(seed, count=60):
    rng = np.random.default_rng(seed)
    records = []
    for index in range(count):
        events = int(rng.integers(0, 12))
        counts = rng.integers(1, 4, events).tolist()
        times = (index + np.cumsum(rng.exponential(0.1, events))).tolist()
        records.append(
            RequestRecord(
                index=index,
                scheduled=float(index),
                sent=index + 0.01,
                ended=(times or [float(index)])[-1] + 0.1,
                token_times=times,
                token_counts=counts,
                num_prompt_tokens=int(rng.integers(1, 500)),
                num_output_tokens=sum(counts),
                error="HTTP 500" if rng.random() < 0.05 else None,
                cut=bool(rng.random() < 0.05),
            )
        )
    return records


@pytest.mark.parametrize("seed", range(5))
def test_gaps_are_the_records_own(seed):
    for record in random_records(seed):
        assert chunk_gaps(record).tolist() == pytest.approx(record.chunk_gaps())
        assert itls(record).tolist() == pytest.approx(record.itls())
        if record.chunk_gaps():
            assert stall(record) == pytest.approx(max(record.chunk_gaps()))
        else:
            assert np.isnan(stall(record))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("statistic", ["p50", "p90", "p99", "mean", "max"])
@pytest.mark.parametrize("sign", ["<", "<="])
def test_a_load_judges_each_request_as_the_term_does(metric, statistic, sign):
    for seed in range(3):
        counted = [one for one in random_records(seed) if not one.cut]
        term = parse_slo(f"{metric}:{statistic}{sign}90ms+0.2ms*in+1ms*out").terms[0]
        own = TermSamples.of(term, counted).own_met
        assert own.tolist() == [term.met_by(one) for one in counted]
        assert 0 < own.sum() < len(counted)


def test_groups_without_samples_are_kept_apart():
    grouped = Grouped.of([[], [1.0, float("nan")], [], [3.0, 4.0]]).without_nan()
    assert grouped.values.tolist() == [1.0, 3.0, 4.0]
    assert grouped.sizes.tolist() == [0, 1, 0, 2]
    assert grouped.sums(grouped.values > 1).tolist() == [0, 0, 0, 2]
    assert grouped.each(np.arange(4.0)).tolist() == [1.0, 3.0, 3.0]
    assert Grouped.of([]).values.size == 0
