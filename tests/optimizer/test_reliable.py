"""The rate that nearly every load holds, on loads whose scatter is known."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from load_points import point

from trimtab.optimizer.reliable import reliable_rate

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
    found = reliable_rate(CAPACITY, pairs, lambda r, n: margin(r, n) + wrong_by, never)
    assert found is not None
    fresh = range(5000, 7000)
    share = sum(margin(found, n) > 0 for n in fresh) / len(fresh)
    assert 0.85 <= share <= 0.999
    assert found < CAPACITY


def test_without_a_load_near_the_limit_nothing_is_said() -> None:
    far = point(1.0, 3.0)
    assert reliable_rate(CAPACITY, [(far, far)], margin, never) is None
    spoiled = replace(point(8.0, 0.1), valid=False)
    assert reliable_rate(CAPACITY, [(spoiled, spoiled)], margin, never) is None
    near = point(8.0, 0.1)
    assert reliable_rate(CAPACITY, [(near, near)], margin, lambda: True) is None
