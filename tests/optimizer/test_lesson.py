"""What loads teach, on servers whose difference from the measured steps is known."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
from step_models import SLOW, guesses, known, predictor_of

from trimtab.optimizer.lesson import METRICS, Lesson, learn
from trimtab.optimizer.points import LoadPoint
from trimtab.optimizer.predict import Predictor

RATES = (0.1, 0.3, 0.5)


def never() -> bool:
    return False


def replay(predictor: Predictor, point: LoadPoint, lesson: Lesson) -> LoadPoint:
    found = predictor.replay(SLOW, point, lesson)
    assert found is not None
    return found


@pytest.mark.parametrize(
    "truth",
    [Lesson(1.4, 1.4), Lesson(request=0.05), Lesson(0.9, 1.1, around=3.0, request=0.05)],
    ids=["slower steps", "late requests", "all three"],
)
@pytest.mark.parametrize("is_counted", [True, False])
def test_a_server_that_differs_is_predicted_after_a_few_loads(
    truth: Lesson, is_counted: bool
) -> None:
    predictor = predictor_of({SLOW: known(1.0)})
    loads = [predictor.play(SLOW, rate, 5, 60.0, truth) for rate in RATES]
    points = [load for load in loads if load is not None]
    if not is_counted:
        points = [replace(point, work=None) for point in points]
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
    predictor = predictor_of({SLOW: known(1.0, guesses((0.9, 0.95, 0.95), share=0.7))})
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


def test_guesses_of_all_loads_count_together_also_where_none_was_right() -> None:
    predictor = predictor_of({SLOW: known(1.0, guesses((0.9, 0.95, 0.95), share=0.3))})
    points = []
    for number, guessing in enumerate((0.0, 0.0, 0.0, 2.0)):
        point = predictor.play(SLOW, 0.1, 5 + number, 60.0, Lesson(guessing=guessing))
        assert point is not None
        assert point.work is not None
        assert (point.work.num_accepted > 0) == (guessing > 0)
        points.append(point)
    found = learn([(point, partial(replay, predictor)) for point in points], never)
    assert 0.3 < found.guessing < 0.75


def test_each_load_is_seen_at_the_pace_that_it_had() -> None:
    """Half of the loads on a machine of half the speed: late requests are not mistaken for it."""
    predictor = predictor_of({SLOW: known(1.0)})
    points = []
    for number, pace in enumerate((1.0, 2.0, 1.0, 2.0)):
        point = predictor.play(SLOW, 0.1, 5 + number, 60.0, Lesson(pace, pace, request=0.05))
        assert point is not None
        points.append(point)
    found = learn([(point, partial(replay, predictor)) for point in points], never)
    assert 1.25 < found.small < 1.75
    assert 1.25 < found.large < 1.75
    assert found.request == pytest.approx(0.05, rel=0.3)
    predictor.teach(found)
    for number, pace in enumerate((1.0, 2.0)):
        fresh = predictor.play(SLOW, 0.1, 99 + number, 60.0, Lesson(pace, pace, request=0.05))
        assert fresh is not None
        informed = predictor.replay(SLOW, fresh, predictor.lesson_at_pace(SLOW, fresh))
        assert informed is not None
        for metric, key in METRICS:
            real, guess = fresh.latencies[metric][key], informed.latencies[metric][key]
            assert guess == pytest.approx(real, rel=0.1), metric


def test_what_was_counted_is_done_again() -> None:
    predictor = predictor_of({SLOW: known(1.0, guesses((0.9, 0.95, 0.95), share=0.7))})
    truth = Lesson(1.3, 0.9, guessing=0.4)
    point = predictor.play(SLOW, 0.2, 5, 60.0, truth)
    assert point is not None
    found = Lesson().at_pace_of(point, partial(replay, predictor))
    assert found.small == pytest.approx(1.3, rel=0.1)
    assert found.large == pytest.approx(0.9, rel=0.05)
    assert found.guessing == pytest.approx(0.4, rel=0.25)
    bare = replace(point, work=None)
    assert Lesson().at_pace_of(bare, partial(replay, predictor)) == Lesson()
    assert LoadPoint.from_json(point.as_json()) == point
    assert LoadPoint.from_json(bare.as_json()) == bare


def test_nothing_is_learned_from_what_a_client_spoiled_or_a_queue_drowned() -> None:
    predictor = predictor_of({SLOW: known(1.0)})
    point = predictor.play(SLOW, 0.3, 5, 60.0, Lesson(2.0, 2.0))
    assert point is not None
    spoiled = [replace(point, valid=False), replace(point, margin=-2.0)]
    assert learn([(one, partial(replay, predictor)) for one in spoiled], never) == Lesson()
    assert learn([(point, partial(replay, predictor))], lambda: True) == Lesson()


def test_what_was_taught_holds_for_later_predictions() -> None:
    predictor = predictor_of({SLOW: known(1.0)})
    before = predictor.score(SLOW, 0.0)
    predictor.teach(Lesson(1.5, 1.5))
    assert predictor.score(SLOW, 0.0) < 0.85 * before
