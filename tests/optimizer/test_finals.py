"""What becomes of the rates that the search found."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from trimtab.optimizer.entries import Entries
from trimtab.optimizer.finals import GUESSED, Finals
from trimtab.optimizer.measure import Measured
from trimtab.optimizer.need import make_need
from trimtab.optimizer.space import Candidate
from trimtab.optimizer.variants import Variant

DEFAULT, INT8 = Candidate(Variant()), Candidate(Variant("int8"))


AT_LIMIT: Any = SimpleNamespace(valid=True, margin=0.0)


class Knowing:
    """Simulates loads as if each candidate held any that is slower than `limit`."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.calibration = self.replay = lambda candidate, point=None: point or AT_LIMIT

    def play(self, candidate: Candidate, rate: float, seed: int, seconds: float) -> Any:
        return SimpleNamespace(margin=20 * math.log(self.limit / rate))


NOTHING_KNOWN: Any = SimpleNamespace(calibration=lambda candidate: None)


def trimmed(
    missed: float | None = None, predictor: Any = NOTHING_KNOWN, **need: str
) -> list[float]:
    """Of rates of 4 and 8; `missed`: what both were asked and did not hold."""
    entries = Entries(DEFAULT.variant)
    for one, rate in ((DEFAULT, 4.0), (INT8, 8.0)):
        entries.of(one).measured = Measured(rate, rate, missed, [AT_LIMIT])
    found = SimpleNamespace(
        entries=entries, trials=None, predictor=predictor, default=entries.of(DEFAULT)
    )
    order = SimpleNamespace(need=make_need(**need), budget_seconds=60.0, seed=0)
    run: Any = SimpleNamespace(found=found, order=order, progress=lambda text: None)
    finals = Finals(run)
    search: Any = SimpleNamespace(compared={}, seconds_of=lambda rate: 5.0)
    finals.search = search
    finals._trim_luck()
    return [entries.of(one).rate for one in (DEFAULT, INT8)]


@pytest.mark.parametrize(("headroom", "share"), [("", 0.8), ("0", 1.0), ("50%", 0.5)])
def test_headroom_is_kept_free_of_everybodys_rate(headroom: str, share: float) -> None:
    assert trimmed(headroom=headroom) == pytest.approx([4 * GUESSED * share, 8 * GUESSED * share])


def test_a_rate_that_was_asked_for_stays() -> None:
    assert trimmed(rate="2rps") == [4.0, 8.0]


def test_a_coarse_search_of_the_default_does_not_flatter_the_choice() -> None:
    """Between the rates that it held and missed, simulations say; nobody else gains by them."""
    default, int8 = trimmed(12.0, Knowing(10.0), headroom="0")
    assert 8 < default < 10
    assert int8 <= 8
    default, _ = trimmed(None, Knowing(10.0), headroom="0")
    assert default <= 4
