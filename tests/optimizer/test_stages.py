"""How the time of a run is shared out."""

from __future__ import annotations

import pytest

from trimtab.optimizer.stages import SHARES, Budget


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_what_a_stage_leaves_goes_to_those_behind_it() -> None:
    clock = Clock()
    budget = Budget(100.0, clock)
    assert budget.of_stage("quality") == pytest.approx(100 * SHARES["quality"])
    clock.now = 5.0  # less than its share
    behind = SHARES["calibrate"] + SHARES["simulate"] + SHARES["measure"]
    assert budget.of_stage("calibrate") == pytest.approx(95 * SHARES["calibrate"] / behind)
    clock.now = 60.0
    assert budget.of_stage("measure") == pytest.approx(40.0)
    clock.now = 200.0
    assert budget.of_stage("measure") == 0.0
    assert budget.left == 0.0


def test_shares_are_of_the_whole() -> None:
    assert sum(SHARES.values()) == pytest.approx(1.0)


def test_a_stage_that_fails_is_on_the_books() -> None:
    clock = Clock()
    budget = Budget(10.0, clock)

    def fail() -> None:
        with budget.stage("quality") as stage:
            stage.tried = 3
            clock.now = 2.5
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert budget.stages[0].as_json() == {"name": "quality", "seconds": 2.5, "tried": 3, "left": 0}
