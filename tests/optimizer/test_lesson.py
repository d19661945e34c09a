"""What loads teach, on servers whose difference from the measured steps is known."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
from step_models import SLOW, known, predictor_of

from trimtab.optimizer.lesson import METRICS, Lesson, learn
from trimtab.optimizer.points import LoadPoint
from trimtab.optimizer.predict import Predictor
from trimtab.simulator.speculation import SpeculationModel

RATES = (0.1, 0.3, 0.5)


def never() -> bool:
    return False


def replay(predictor: Predictor, point: LoadPoint, lesson: Lesson) -> LoadPoint:
    found = predictor.replay(SLOW, point, lesson)
    assert found is not None
    return found


@pytest.mark.parametrize(
    "truth",
    [Lesson(1.4), Lesson(1.0, token=0.004), Lesson(0.9, token=0.002, request=0.05)],
    ids=["slower steps", "delayed by tokens", "all three"],
)
def test_a_server_that_differs_is_predicted_after_a_few_loads(truth: Lesson) -> None:
    predictor = predictor_of({SLOW: known(1.0)})
    loads = [predictor.play(SLOW, rate, 5, 60.0, truth) for rate in RATES]
    points = [load for load in loads if load is not None]
    found = learn([(point, partial(replay, predictor)) for point in points], never)
    fresh = predictor.play(SLOW, 0.4, 99, 60.0, truth)
    assert fresh is not None
    predicted = replay(predictor, fresh, found)
    untaught = replay(predictor, fresh, Lesson())
    for metric, key in METRICS:
        real, guess = fresh.latencies[metric][key], predicted.latencies[metric][key]
        before = untaught.latencies[metric][key]
        assert real
        assert guess
        assert before
        assert abs(guess / real - 1) < max(0.07, 0.5 * abs(before / real - 1)), metric


def test_guesses_that_are_worse_under_load_are_seen_to_be() -> None:
    predictor = predictor_of({SLOW: known(1.0, SpeculationModel((0.9, 0.95, 0.95), share=0.7))})
    truth = Lesson(guessing=0.25)
    loads = [predictor.play(SLOW, rate, 5, 60.0, truth) for rate in RATES]
    points = [load for load in loads if load is not None]
    found = learn([(point, partial(replay, predictor)) for point in points], never)
    assert found.guessing < 0.8
    fresh = predictor.play(SLOW, 0.4, 99, 60.0, truth)
    assert fresh is not None
    real = fresh.latencies["e2e"]["mean"]
    guess = replay(predictor, fresh, found).latencies["e2e"]["mean"]
    before = replay(predictor, fresh, Lesson()).latencies["e2e"]["mean"]
    assert real
    assert guess
    assert before
    assert abs(guess / real - 1) < 0.5 * abs(before / real - 1)


def test_cores_that_lay_apart_are_told_from_a_slower_server() -> None:
    predictor = predictor_of({SLOW: known(1.0)})
    truth = Lesson(1.1, apart=1.5)
    points = []
    for number, share in enumerate((0.0, 1.0, 0.0, 1.0)):
        point = predictor.play(SLOW, 0.2, 5 + number, 60.0, truth, apart=share)
        assert point is not None
        points.append(replace(point, apart=share))
    found = learn([(point, partial(replay, predictor)) for point in points], never)
    assert 1.2 < found.apart < 1.6
    predictor.teach(found, apart=1.0)
    one, other = predictor.point(SLOW, 0.2), predictor.play(SLOW, 0.2, 0, 60.0, apart=0.0)
    assert one is not None
    assert other is not None
    assert (one.latencies["itl"]["mean"] or 0) > 1.2 * (other.latencies["itl"]["mean"] or 1)


def test_nothing_is_learned_from_what_a_client_spoiled_or_a_queue_drowned() -> None:
    predictor = predictor_of({SLOW: known(1.0)})
    point = predictor.play(SLOW, 0.3, 5, 60.0, Lesson(2.0))
    assert point is not None
    spoiled = [replace(point, valid=False), replace(point, margin=-2.0)]
    assert learn([(one, partial(replay, predictor)) for one in spoiled], never) == Lesson()
    assert learn([(point, partial(replay, predictor))], lambda: True) == Lesson()


def test_what_was_taught_holds_for_later_predictions() -> None:
    predictor = predictor_of({SLOW: known(1.0)})
    before = predictor.score(SLOW, 0.0)
    predictor.teach(Lesson(1.5))
    assert predictor.score(SLOW, 0.0) < 0.85 * before
