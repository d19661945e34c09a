"""What tokens cost where not everybody was loaded as often."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from load_points import point
from step_models import FAST, SLOW, known, predictor_of

from trimtab.optimizer.entries import Entry
from trimtab.optimizer.measure import Measured
from trimtab.optimizer.usage import token_seconds


def entry(candidate: Any, usage: dict[str, Any] | None) -> Entry:
    found = Entry("c", candidate)
    found.measured = Measured(1.0, points=[point(1.0, 0.1)], usage=usage)
    return found


def test_without_a_count_of_its_own_batches_are_as_large_as_the_choices() -> None:
    predictor = predictor_of({SLOW: known(1.0), FAST: known(0.5)})
    chosen, default = entry(FAST, {"rows_per_step": 16.0}), entry(SLOW, None)
    found: Any = SimpleNamespace(predictor=predictor, chosen=chosen)
    mine, other = token_seconds(found, chosen), token_seconds(found, default)
    assert mine is not None
    assert other is not None
    assert other.output == pytest.approx(2 * mine.output, rel=0.1)
    assert other.computed_input == pytest.approx(2 * mine.computed_input, rel=0.1)
    found.chosen = None
    alone = token_seconds(found, default)
    assert alone is not None
    assert alone.output > 5 * other.output
