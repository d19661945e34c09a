"""The rate that nearly every load holds, on loads whose scatter is known."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from load_points import point

from trimtab.optimizer.reliable import (
    SPREAD,
    Gap,
    Loads,
    gaps_of,
    offset_of,
    reliable_rate,
    spread_of,
)

CAPACITY = 8.0


def margin(rate: float, number: int, scatter: float = 0.3) -> float:
    noise = random.Random(number).gauss(0.0, scatter)
    return 2 * math.log(CAPACITY / rate) + noise


AT_LIMIT = Gap(0.0, 1.0)
ALIKE = (Loads(margin, 20, 0.95),)


def never() -> bool:
    return False


@pytest.mark.parametrize("wrong_by", [0.0, 0.5, -0.5])
def test_nearly_all_loads_hold_it_and_hardly_more(wrong_by: float) -> None:
    """`wrong_by`: what the simulation is off by, in every margin."""
    pairs = [
        (point(rate, margin(rate, n, 0.1)), point(rate, margin(rate, n, 0.1) + wrong_by))
        for n, rate in enumerate((7.0, 7.5, 8.0, 8.5, 9.0) * 4, 1000)
    ]
    gaps = gaps_of(pairs)
    assert [gap.value for gap in gaps] == pytest.approx([-wrong_by] * len(pairs))
    assert offset_of(gaps)[0] == pytest.approx(-wrong_by, rel=0.15)
    off = Loads(lambda r, n: margin(r, n) + wrong_by, 20, 0.95)
    found = reliable_rate(CAPACITY, gaps, 0.05, (off,), never)
    assert found is not None
    fresh = range(5000, 7000)
    share = sum(margin(found, n) > 0 for n in fresh) / len(fresh)
    assert 0.85 <= share <= 0.999
    assert found < CAPACITY


def test_without_a_load_near_the_limit_nothing_is_said() -> None:
    far = point(1.0, 3.0)
    assert gaps_of([(far, far)]) == []
    spoiled = replace(point(8.0, 0.1), valid=False)
    assert gaps_of([(spoiled, spoiled)]) == []
    assert reliable_rate(CAPACITY, [], 0.1, ALIKE, never) is None
    near = point(8.0, 0.1)
    assert reliable_rate(CAPACITY, gaps_of([(near, near)]), 0.1, ALIKE, lambda: True) is None


def test_a_machine_that_is_sometimes_slower_leaves_more_room() -> None:
    """Gaps of three candidates, each off by something else on the whole."""
    draw = random.Random(7)
    groups = [[Gap(mean + draw.gauss(0, 0.4), 1.0) for _ in range(9)] for mean in (-0.3, 0.0, 0.2)]
    spread = spread_of(groups)
    assert 0.25 < spread < 0.5
    assert spread_of([]) == SPREAD
    steady = reliable_rate(CAPACITY, [AT_LIMIT], 0.05, ALIKE, never)
    shaky = reliable_rate(CAPACITY, [AT_LIMIT] * 5, spread, ALIKE, never)
    shakier = reliable_rate(CAPACITY, [AT_LIMIT], spread, ALIKE, never)
    assert steady is not None
    assert shaky is not None
    assert shakier is not None
    assert steady > shaky > shakier
    fresh = range(5000, 7000)
    slow = random.Random(9)
    share = sum(margin(shaky, n) + slow.gauss(0, 0.36) > 0 for n in fresh) / len(fresh)
    assert 0.88 <= share <= 0.99


def test_what_short_loads_hold_longer_ones_must_hold_as_well() -> None:
    """In loads that last, a queue grows from two thirds of the rate on."""

    def lasting(rate: float, number: int) -> float:
        return margin(1.5 * rate, number, scatter=0.1)

    gaps = [AT_LIMIT] * 5
    lasting_loads = Loads(lasting, 10, 0.95)
    short = reliable_rate(CAPACITY, gaps, 0.05, ALIKE, never)
    both = reliable_rate(CAPACITY, gaps, 0.05, (lasting_loads, *ALIKE), never)
    easy = reliable_rate(CAPACITY, gaps, 0.05, (*ALIKE, Loads(lambda rate, n: 1.0, 5, 0.95)), never)
    turned = reliable_rate(CAPACITY, gaps, 0.05, (*ALIKE, lasting_loads), never)
    assert short is not None
    assert both is not None
    assert short == easy
    assert both == pytest.approx(turned, rel=0.03)
    assert 0.5 * CAPACITY < both < CAPACITY / 1.5 < short
    share = sum(lasting(both, n) > 0 for n in range(5000, 7000)) / 2000
    assert share > 0.85


@pytest.mark.parametrize("rounds", range(7))
def test_when_time_is_up_what_is_known_to_be_held_counts(rounds: int) -> None:
    gaps, ends = [AT_LIMIT] * 5, iter([False] * rounds)
    early = reliable_rate(CAPACITY, gaps, 0.05, ALIKE, lambda: next(ends, True))
    late = reliable_rate(CAPACITY, gaps, 0.05, ALIKE, never)
    assert late is not None
    assert (early is None) == (rounds == 0)
    if early is not None:
        assert late / 2 < early <= late


def test_loads_at_the_limit_say_most() -> None:
    near, far = point(8.0, 0.1), point(8.0, 0.9)
    gaps = gaps_of([(near, near), (far, replace(far, margin=1.4))])
    assert [gap.value for gap in gaps] == pytest.approx([0.0, -0.5])
    assert gaps[0].weight > 0.8
    assert gaps[1].weight < 0.1
    offset, weight = offset_of(gaps)
    assert -0.03 < offset < 0
    assert 1.8 < weight < 2.1
    assert offset_of([]) == (0.0, 1.0)
