"""Counts of guesses, put together."""

from __future__ import annotations

import json

import pytest

from trimtab.config import ExecutorConfig, SchedulerConfig
from trimtab.optimizer.guesses import Guesses, count_guesses, together

SOME = Guesses(100, 20, [20, 18, 5], [12, 9, 1], 0.5, [[70, 5], [10, 15]])


def test_counts_add_up_position_by_position() -> None:
    other = Guesses(50, 2, [2, 1], [1, 0], 0.25, [[45, 2], [2, 0]])
    total = together([SOME, other])
    assert total == Guesses(150, 22, [22, 19, 5], [13, 9, 1], 0.75, [[115, 7], [12, 15]])
    assert Guesses.from_json(json.loads(json.dumps(total.as_json()))) == total


def test_the_model_is_what_was_counted() -> None:
    model = SOME.model()
    assert model is not None
    assert model.acceptance == pytest.approx((0.6, 0.5 / 0.6, 0.2 / 0.5))
    assert model.lengths == pytest.approx((1.0, 0.9, 0.25))
    assert model.share == pytest.approx(5.2 / 76)
    assert model.stay == pytest.approx(15.2 / 26)
    assert model.guess_seconds == pytest.approx(0.5 / 43)


def test_who_drafted_nothing_has_no_model_and_counts_with_others() -> None:
    none = Guesses(900, 0, [0], [0], 0.0, [[900, 0], [0, 0]])
    assert none.model() is None
    assert together([]).model() is None
    alone, both = SOME.model(), together([SOME, none]).model()
    assert alone is not None
    assert both is not None
    assert both.share < alone.share / 5
    assert both.acceptance == alone.acceptance


def test_counted_on_answers_of_the_engine() -> None:
    prompts = [("one two three one two three one two three", 40), ("Once upon a time", 40)]
    scheduler = SchedulerConfig(max_num_requests=4, speculative="lookup")
    found = count_guesses("builtin", ExecutorConfig(max_context=256), scheduler, prompts, 60.0)
    assert found is not None
    assert found.num_drafts == sum(has for _, has in found.followed)
    steps = sum(map(sum, found.followed))
    assert found.num_decodes <= steps + len(prompts)
    assert found.num_decodes + sum(found.accepted_by_position) == 80
    off = SchedulerConfig(max_num_requests=4, speculative="off")
    assert count_guesses("builtin", ExecutorConfig(max_context=256), off, prompts, 60.0) is None
