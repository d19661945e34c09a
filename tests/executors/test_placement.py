"""What is measured while the cores lie apart is measured again."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator

import pytest

from trimtab import _native
from trimtab.executors.placement import Placement, measure_handoff, placement_of

NEAR, FAR = 60e-9, 330e-9


class Machine:
    """Hand-offs as they come; time passes in trials of two seconds and while somebody waits."""

    def __init__(self, *readings: float) -> None:
        self.readings: Iterator[float] = itertools.chain(readings, itertools.repeat(readings[-1]))
        self.now = 0.0
        self.trials: list[float] = []

    def placement(self, patience: float) -> Placement:
        def sleep(seconds: float) -> None:
            self.now += seconds

        return Placement(lambda: next(self.readings), patience, clock=lambda: self.now, sleep=sleep)

    def trial(self) -> int:
        self.trials.append(self.now)
        self.now += 2.0
        return len(self.trials)


def test_near_cores_are_asked_for_nothing() -> None:
    machine = Machine(NEAR, 1.2 * NEAR, NEAR)
    placement = machine.placement(10.0)
    assert placement.measured(machine.trial) == (1, 0.0)
    assert (machine.trials, placement.patience) == ([0.0], 10.0)


def test_it_waits_until_they_are_near() -> None:
    machine = Machine(NEAR, FAR, FAR, FAR, NEAR)
    placement = machine.placement(10.0)
    assert placement.measured(machine.trial) == (1, 0.0)
    assert machine.trials == [0.75]
    assert placement.patience == 9.25


def test_what_they_left_in_the_middle_is_done_again() -> None:
    machine = Machine(NEAR, NEAR, FAR, NEAR)
    placement = machine.placement(10.0)
    assert placement.measured(machine.trial) == (2, 0.0)
    assert placement.patience == 8.0


def test_patience_ends_over_all_that_is_measured() -> None:
    machine = Machine(NEAR, FAR)
    placement = machine.placement(3.0)
    assert placement.measured(machine.trial) == (2, 1.0)
    assert placement.patience < 0
    assert placement.measured(machine.trial) == (3, 1.0)
    assert machine.now == 2.0 + 3 * 2.0  # one wait, as long as one may be


def test_a_machine_that_began_apart_knows_better_later() -> None:
    machine = Machine(FAR, NEAR, FAR, FAR, NEAR)
    placement = machine.placement(10.0)
    assert placement.is_near()  # nothing nearer was seen
    assert not placement.is_near()
    placement.measured(machine.trial)
    assert machine.trials == [0.25]


def test_what_is_only_watched_is_done_once() -> None:
    for readings, apart in (((NEAR, FAR, NEAR), 0.5), ((NEAR, NEAR, FAR), 0.5), ((NEAR,), 0.0)):
        placement = Machine(*readings).placement(9.0)
        assert placement.watched(lambda: "load") == ("load", apart)
        assert placement.mean_apart == apart


def test_others_that_had_a_core_tell_nothing() -> None:
    assert Machine(NEAR, 40 * NEAR, FAR).placement(0.0).watched(lambda: 1) == (1, 1.0)
    assert Machine(NEAR, 40 * NEAR).placement(0.0).watched(lambda: 1) == (1, 0.0)


def test_what_is_known_from_before_counts() -> None:
    assert not Placement(lambda: FAR, 0.0, shortest=NEAR).is_near()
    assert Placement(lambda: FAR, 0.0).is_near()


def test_it_looks_while_a_trial_runs() -> None:
    asked = threading.Event()
    count = itertools.count()

    def handoff() -> float:
        if next(count) >= 2:  # behind those of the beginning and before the trial
            asked.set()
        return NEAR

    assert Placement(handoff, 0.0).watched(lambda: asked.wait(20.0)) == (True, 0.0)


@pytest.mark.parametrize("threads", [0, 1, 64])
def test_one_thread_is_near_itself_and_of_many_nothing_is_asked(threads: int) -> None:
    placement = placement_of(threads, 5.0)
    assert placement.is_near()
    assert placement.measured(lambda: 3) == (3, 0.0)
    assert placement.mean_apart == 0.0


def test_an_unknown_shortest_is_none() -> None:
    assert placement_of(2, 0.0, shortest=placement_of(64, 0.0).shortest).shortest > 0


def test_a_handoff_is_measured() -> None:
    assert measure_handoff(2) > 0
    assert len(_native.probe_handoff(3, 4)) == 4  # more threads than cores: it ends all the same
