"""What loads teach, on servers whose difference from the measured steps is known."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
from step_models import FAST, SLOW, guesses, known, predictor_of

from trimtab.optimizer.lesson import METRICS, Lesson, Lessons, Load, learn
from trimtab.optimizer.points import LoadPoint
from trimtab.optimizer.predict import Predictor

RATES = (0.1, 0.3, 0.5)


def never() -> bool:
    return False


def replay(predictor: Predictor, point: LoadPoint, lesson: Lesson) -> LoadPoint:
    found = predictor.replay(SLOW, point, lesson)
    assert found is not None
    return found


def learned(predictor: Predictor, points: list[LoadPoint]) -> Lesson:
    """What is general."""
    return learn([Load("slow", one, partial(replay, predictor)) for one in points], never).general


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
    found = learned(predictor, points)
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
    found = learned(predictor, points)
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
    found = learned(predictor, points)
    assert 0.3 < found.guessing < 0.75


def test_each_load_is_seen_at_the_pace_that_it_had() -> None:
    """Half of the loads on a machine of half the speed: late requests are not mistaken for it."""
    predictor = predictor_of({SLOW: known(1.0)})
    points = []
    for number, pace in enumerate((1.0, 2.0, 1.0, 2.0)):
        point = predictor.play(SLOW, 0.1, 5 + number, 60.0, Lesson(pace, pace, request=0.05))
        assert point is not None
        points.append(point)
    found = learned(predictor, points)
    assert 1.25 < found.small < 1.75
    assert 1.25 < found.large < 1.75
    assert found.request == pytest.approx(0.05, rel=0.3)
    predictor.teach(Lessons(found))
    for number, pace in enumerate((1.0, 2.0)):
        fresh = predictor.play(SLOW, 0.1, 99 + number, 60.0, Lesson(pace, pace, request=0.05))
        assert fresh is not None
        informed = predictor.replay(SLOW, fresh, predictor.lesson_at_pace(SLOW, fresh))
        assert informed is not None
        for metric, key in METRICS:
            real, guess = fresh.latencies[metric][key], informed.latencies[metric][key]
            assert guess == pytest.approx(real, rel=0.1), metric


def test_long_queues_of_a_busy_engine_are_no_late_requests() -> None:
    """It was slower in some seconds than in others, which a queue does not forget."""
    predictor = predictor_of({SLOW: known(1.0)})

    def points(rate: float, waited: float) -> list[LoadPoint]:
        found = []
        for seed in range(3):
            point = predictor.play(SLOW, rate, seed, 60.0, Lesson(request=0.02))
            assert point is not None
            ttft = point.latencies["ttft"]
            longer = ttft | {"p50": waited * (ttft["p50"] or 0.0)}
            found.append(replace(point, latencies=point.latencies | {"ttft": longer}))
        return found

    busy, idle = points(6.0, waited=3.0), points(0.3, waited=1.0)
    assert all(one.work and one.work.small_seconds + one.work.large_seconds > 57 for one in busy)
    assert learned(predictor, busy).request < 0.01
    assert learned(predictor, [*busy, *idle]).request == pytest.approx(0.02, rel=0.3)


def test_who_had_loads_of_its_own_is_known_by_them() -> None:
    """Steps of one were measured while the machine was slow, and its answers repeat themselves."""
    candidates = {SLOW: Lesson(0.8, 0.8, guessing=3.0), FAST: Lesson(1.3, 1.3, guessing=0.5)}
    predictor = predictor_of({one: known(1.0, guesses((0.9, 0.95), 0.1)) for one in candidates})
    loads = []
    for candidate, truth in candidates.items():
        for seed in range(4):
            point = predictor.play(candidate, 0.3, seed, 60.0, truth)
            assert point is not None
            again = predictor.replayer(candidate)
            loads.append(Load(predictor.key_of(candidate), point, again))
    lessons = learn(loads, never)
    assert lessons.of("somebody else") == lessons.general
    assert lessons.general.small == pytest.approx((0.8 * 1.3) ** 0.5, rel=0.1)
    predictor.teach(lessons)
    for candidate, truth in candidates.items():
        own = lessons.of(predictor.key_of(candidate))
        assert abs(math.log(own.large / truth.large)) < 0.4 * abs(math.log(truth.large))
        assert abs(math.log(own.guessing / truth.guessing)) < 0.5 * abs(math.log(truth.guessing))
        fresh = predictor.play(candidate, 0.3, 99, 120.0, truth)
        assert fresh is not None
        expected = predictor.replay(candidate, fresh)
        untaught = predictor.replay(candidate, fresh, Lesson())
        assert expected is not None
        assert untaught is not None
        errors = [
            abs(math.log(one.latencies["e2e"]["mean"] / fresh.latencies["e2e"]["mean"]))  # type: ignore[operator]
            for one in (expected, untaught)
        ]
        assert errors[0] < 0.5 * errors[1]


def test_short_loads_and_loads_that_nobody_counted_are_nobodys_own() -> None:
    predictor = predictor_of({SLOW: known(1.0)})
    again = partial(replay, predictor)
    points = [predictor.play(SLOW, 0.3, 1, seconds, Lesson(1.2, 1.2)) for seconds in (60.0, 20.0)]
    long, short = (point for point in points if point is not None)
    bare = Load("bare", replace(long, work=None), again)
    lessons = learn([Load("long", long, again), Load("short", short, again), bare], never)
    assert list(lessons.own) == ["long"]


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
    loads = [Load("slow", one, partial(replay, predictor)) for one in (*spoiled, point)]
    assert learn(loads[:2], never) == Lessons()
    assert learn(loads, lambda: True) == Lessons()


def test_what_was_taught_holds_for_later_predictions() -> None:
    predictor = predictor_of({SLOW: known(1.0)})
    before = predictor.score(SLOW, 0.0)
    predictor.teach(Lessons(Lesson(1.5, 1.5)))
    assert predictor.score(SLOW, 0.0) < 0.85 * before
