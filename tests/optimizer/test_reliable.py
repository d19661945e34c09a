"""The rate that nearly every load holds, on loads whose scatter is known."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from load_points import point

from trimtab.optimizer.reliable import SPREAD, gaps_of, reliable_rate, spread_of

CAPACITY = 8.0


def margin(rate: float, number: int, scatter: float = 0.3) -> float:
    noise = random.Random(number).gauss(0.0, scatter)
    return 2 * math.log(CAPACITY / rate) + noise


def never() -> bool:
    return False


@pytest.mark.parametrize("wrong_by", [0.0, 0.5, -0.5])
def test_nearly_all_loads_hold_it_and_hardly_more(wrong_by: float) -> None:
    """`wrong_by`: what the simulation is off by, in every margin."""
    pairs = [
        (point(rate, margin(rate, n)), point(rate, margin(rate, n) + wrong_by))
        for n, rate in enumerate((6.0, 7.0, 8.0, 9.0), 1000)
    ]
    gaps = gaps_of(pairs)
    assert gaps == pytest.approx([-wrong_by] * len(pairs))
    found = reliable_rate(CAPACITY, gaps, 0.05, lambda r, n: margin(r, n) + wrong_by, never)
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
    assert reliable_rate(CAPACITY, [], 0.1, margin, never) is None
    near = point(8.0, 0.1)
    assert reliable_rate(CAPACITY, gaps_of([(near, near)]), 0.1, margin, lambda: True) is None


def test_a_machine_that_is_sometimes_slower_leaves_more_room() -> None:
    """Gaps of three candidates, each off by something else on the whole."""
    draw = random.Random(7)
    groups = [[mean + draw.gauss(0, 0.4) for _ in range(5)] for mean in (-1.0, 0.0, 0.5)]
    spread = spread_of(groups)
    assert 0.25 < spread < 0.5
    assert spread_of([]) == spread_of([[3.0]]) == SPREAD
    steady = reliable_rate(CAPACITY, [0.0], 0.05, margin, never)
    shaky = reliable_rate(CAPACITY, [0.0] * 5, spread, margin, never)
    shakier = reliable_rate(CAPACITY, [0.0], spread, margin, never)
    assert steady is not None
    assert shaky is not None
    assert shakier is not None
    assert steady > shaky > shakier
    fresh = range(5000, 7000)
    slow = random.Random(9)
    share = sum(margin(shaky, n) + slow.gauss(0, 0.36) > 0 for n in fresh) / len(fresh)
    assert 0.88 <= share <= 0.99
