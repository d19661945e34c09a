"""Predictions out of step times that are made by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from trimtab.config import SchedulerConfig
from trimtab.executors.base import KVCapacity
from trimtab.optimizer.points import LoadPoint
from trimtab.optimizer.predict import LOWEST_RATE, RESOLUTION, Known, Predictor, token_seconds
from trimtab.optimizer.space import Candidate
from trimtab.optimizer.variants import Variant
from trimtab.simulator.calibration import Calibration
from trimtab.simulator.overheads import Overheads
from trimtab.simulator.speculation import SpeculationModel
from trimtab.simulator.step_shape import StepShape
from trimtab.simulator.step_times import FitErrors, StepTimes
from trimtab.workloads.make import make_workload
from trimtab.workloads.requests import Workload
from trimtab.workloads.slo import parse_slo

SLO = parse_slo("ttft:p90<1s; itl:p90<60ms")
SLOW = Candidate(Variant())
FAST = Candidate(Variant("int8"))


def known(factor: float, speculation: SpeculationModel | None = None) -> Known:
    """A step takes 20 ms and 0.2 ms a row, times `factor`."""
    times = StepTimes(
        row_knots=(1, 512),
        row_seconds=(0.02 * factor, (0.02 + 0.1) * factor),
        head_knots=(1, 64),
        head_seconds=(0.0, 0.0),
        sequence_seconds=0.0,
        attended_seconds=0.0,
        context_seconds=0.0,
        largest=StepShape(512, 64, 1e6, 1e5, 64),
        errors=FitErrors(0.0, 0.0, 0.0, 0.0),
    )
    capacity = KVCapacity(16, 2048, 1)
    overheads = Overheads(sequence=1.6e-5)
    return Known(Calibration(times, overheads, "m", "bf16", "bf16", 1, capacity, 2048), speculation)


def workload(rate: float, seed: int, seconds: float) -> Workload:
    return make_workload("chat", rate=rate, duration=seconds, seed=seed, max_context=1024)


@pytest.fixture
def predictor() -> Predictor:
    made = Predictor(SLO, workload, seed=0, num_requests=40)
    made.learn(SLOW, known(1.0))
    made.learn(FAST, known(0.5))
    return made


def test_twice_the_speed_holds_more(predictor: Predictor) -> None:
    slow, fast = predictor.score(SLOW, 0.0), predictor.score(FAST, 0.0)
    assert 1.3 * slow < fast  # by more than twice: its batches stay small
    assert predictor.exceeds(SLOW, slow)
    assert not predictor.exceeds(SLOW, 2 * slow)
    assert predictor.score(FAST, slow) == pytest.approx(fast, rel=2 * RESOLUTION)


def test_what_nobody_measured_is_not_predicted(predictor: Predictor) -> None:
    other = Candidate(Variant("int4", 64))
    assert predictor.point(other, 1.0) is None
    assert predictor.score(other, 0.0) == 0.0
    assert not predictor.exceeds(other, LOWEST_RATE)


def test_a_need_that_no_rate_meets_scores_nothing() -> None:
    made = Predictor(parse_slo("itl:p50<1ms"), workload, seed=0, num_requests=20)
    made.learn(SLOW, known(1.0))
    assert made.score(SLOW, 0.0) == 0.0


def test_good_guesses_are_faster_and_only_where_they_are_on(predictor: Predictor) -> None:
    predictor.learn(SLOW, known(1.0, SpeculationModel((0.9, 0.9, 0.9))))
    off = replace(SLOW, scheduler=SchedulerConfig(speculative="off"))
    guessed, plain = predictor.point(SLOW, 0.2), predictor.point(off, 0.2)
    assert guessed is not None
    assert plain is not None
    assert guessed.latencies["e2e"]["mean"] < 0.7 * plain.latencies["e2e"]["mean"]


def test_a_measured_load_is_replayed_request_by_request(predictor: Predictor) -> None:
    point = predictor.point(SLOW, 0.5)
    assert point is not None
    again = predictor.replay(SLOW, LoadPoint.from_json(point.as_json()))
    assert again == point


def test_tokens_cost_what_they_take() -> None:
    seconds = token_seconds(known(1.0).calibration, 4, 200)
    assert seconds.output == pytest.approx((0.02 + 3 * 0.1 / 511 + 4 * 1.6e-5) / 4)
    assert seconds.computed_input == pytest.approx(0.1 / 511, rel=1e-6)
    assert 0 < seconds.cached_input < seconds.computed_input / 50
