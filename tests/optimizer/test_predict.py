"""Predictions out of step times that are made by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from step_models import FAST, SLOW, guesses, known, predictor_of, workload

from trimtab.config import SchedulerConfig
from trimtab.optimizer.points import LoadPoint
from trimtab.optimizer.predict import LOWEST_RATE, RESOLUTION, Predictor, token_seconds
from trimtab.optimizer.space import Candidate
from trimtab.optimizer.variants import Variant
from trimtab.workloads.slo import parse_slo


@pytest.fixture
def predictor() -> Predictor:
    return predictor_of({SLOW: known(1.0), FAST: known(0.5)})


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
    predictor.learn(SLOW, known(1.0, guesses((0.9, 0.9, 0.9))))
    off = replace(SLOW, scheduler=SchedulerConfig(speculative="off"))
    guessed, plain = predictor.point(SLOW, 0.2), predictor.point(off, 0.2)
    assert guessed is not None
    assert plain is not None
    assert guessed.latencies["e2e"]["mean"] < 0.7 * plain.latencies["e2e"]["mean"]


def test_what_few_answers_say_of_guesses_goes_together(predictor: Predictor) -> None:
    """Otherwise whoever had the answers that repeat themselves would seem faster."""
    lucky, unlucky = guesses((0.9, 0.9), 0.5, 1000), guesses((0.5, 0.5), 0.0, 1000)
    predictor.learn(SLOW, known(1.0, lucky))
    alone = predictor.point(SLOW, 0.2)
    predictor.learn(FAST, known(1.0, unlucky))
    slow, fast = predictor.point(SLOW, 0.2), predictor.point(FAST, 0.2)
    assert slow == fast
    assert alone is not None
    assert slow is not None
    assert slow.latencies["e2e"]["mean"] > alone.latencies["e2e"]["mean"]  # type: ignore[operator]


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
