"""What becomes of the rates that the search found."""

from __future__ import annotations

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


def trimmed(**need: str) -> list[float]:
    """Of rates of 4 and 8 that no simulation says anything about."""
    entries = Entries(DEFAULT.variant)
    for one, rate in ((DEFAULT, 4.0), (INT8, 8.0)):
        entries.of(one).measured = Measured(rate, expected=rate)
    predictor = SimpleNamespace(calibration=lambda candidate: None)
    found = SimpleNamespace(
        entries=entries, trials=None, predictor=predictor, default=entries.of(DEFAULT)
    )
    order = SimpleNamespace(need=make_need(**need), budget_seconds=60.0, seed=0)
    run: Any = SimpleNamespace(found=found, order=order)
    finals = Finals(run)
    finals.search = SimpleNamespace(compared={})  # type: ignore[assignment]
    finals._trim_luck()
    return [entries.of(one).rate for one in (DEFAULT, INT8)]


@pytest.mark.parametrize(("headroom", "share"), [("", 0.8), ("0", 1.0), ("50%", 0.5)])
def test_headroom_is_kept_free_of_everybodys_rate(headroom: str, share: float) -> None:
    assert trimmed(headroom=headroom) == pytest.approx([4 * GUESSED * share, 8 * GUESSED * share])


def test_a_rate_that_was_asked_for_stays() -> None:
    assert trimmed(rate="2rps") == [4.0, 8.0]
