"""Rates that are verified, on servers whose capacity is known."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from load_points import point

from trimtab.optimizer.entries import Entry
from trimtab.optimizer.measure import LazyServer
from trimtab.optimizer.points import LoadPoint
from trimtab.optimizer.repeats import LEAST_REPEATS, MAX_ATTEMPTS, Contestant, verify
from trimtab.optimizer.space import Candidate
from trimtab.optimizer.variants import Variant


@contextlib.contextmanager
def nothing() -> Iterator[Any]:
    yield None


def contestant(name: str, rate: float) -> Contestant:
    return Contestant(Entry(name, Candidate(Variant())), LazyServer(nothing), rate)


def machine(
    capacity: float, order: list[tuple[str, int]] | None = None
) -> Callable[[Contestant, int], LoadPoint]:
    def load(one: Contestant, seed: int) -> LoadPoint:
        if order is not None:
            order.append((one.entry.id, seed))
        return point(one.rate, 2 * math.log(capacity / one.rate), seed)

    return load


def test_they_take_turns_with_the_same_seeds() -> None:
    order: list[tuple[str, int]] = []
    both = [contestant("A", 4.0), contestant("B", 2.0)]
    verify(both, machine(9.0, order), itertools.count(7), may_lower=True)
    assert order == [("A", 7), ("B", 7), ("B", 8), ("A", 8), ("A", 9), ("B", 9)]
    assert [[p.rate for p in one.points] for one in both] == [[4.0] * 3, [2.0] * 3]


def test_a_rate_that_is_missed_is_lowered_until_it_holds_every_time() -> None:
    one = contestant("A", 10.0)
    verify([one], machine(8.0), itertools.count(), may_lower=True)
    assert one.failed is None
    assert 6.0 < one.rate < 8.0
    assert [p.rate for p in one.points] == [one.rate] * LEAST_REPEATS
    assert one.earlier
    assert all(p.rate > one.rate for p in one.earlier)


def test_the_one_who_misses_does_not_hold_up_the_other() -> None:
    good, bad = contestant("A", 4.0), contestant("B", 1e6)
    order: list[tuple[str, int]] = []
    verify([good, bad], machine(5.0, order), itertools.count(), may_lower=True)
    assert good.failed is None
    assert bad.failed is not None
    assert "every time" in bad.failed
    names = [name for name, _ in order]
    assert names.count("A") == LEAST_REPEATS
    assert names.count("B") == MAX_ATTEMPTS + 1


def test_a_rate_that_was_asked_for_is_not_lowered() -> None:
    one = contestant("A", 10.0)
    verify([one], machine(8.0), itertools.count(), may_lower=False)
    assert one.rate == 10.0
    assert one.failed == "does not hold 10/s every time"


def test_loads_that_the_client_spoiled_verify_nothing() -> None:
    one = contestant("A", 4.0)

    def spoiled(one: Contestant, seed: int) -> LoadPoint:
        return replace(point(one.rate, 1.0, seed, valid=False), why="the client was late")

    verify([one], spoiled, itertools.count(), may_lower=True)
    assert one.failed == "could not be verified: the client was late"


def test_two_that_count_are_enough_where_all_others_are_spoiled() -> None:
    one = contestant("A", 4.0)

    def only_two(one: Contestant, seed: int) -> LoadPoint:
        return point(one.rate, 1.0, seed, valid=seed < 2)

    verify([one], only_two, itertools.count(), may_lower=True)
    assert one.failed is None
    assert one.num_valid == 2


def test_some_that_were_spoiled_are_made_up_for() -> None:
    one = contestant("A", 4.0)

    def every_other(one: Contestant, seed: int) -> LoadPoint:
        return point(one.rate, 1.0, seed, valid=bool(seed % 2))

    verify([one], every_other, itertools.count(), may_lower=True)
    assert one.failed is None
    assert one.num_valid == LEAST_REPEATS


def test_two_that_held_are_enough_when_time_is_over() -> None:
    one = contestant("A", 10.0)
    verify([one], machine(8.0), itertools.count(), may_lower=True, is_late=lambda: True)
    assert one.failed is None
    assert [p.rate for p in one.points] == [one.rate] * 2
    assert one.rate < 8.0
