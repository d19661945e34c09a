"""The laws of the engine's own tests, over random schedules, on the torch executor.

What runs is what tests/engine runs on the toy; the definition is that of torch_toy.py. The rest of
tests/engine runs on both executors where it is (tests/engine/conftest.py).
"""

from __future__ import annotations

import engine_schedules
import pytest
from engine_schedules import Schedule, schedules
from hypothesis import given, settings
from hypothesis import strategies as st
from test_grammar_law import check_grammars, check_resubmission
from test_host_tier import check_schedule_with_tier, returning
from test_planned_ahead import check_schedule_ahead
from test_schedule_law import check_schedule
from test_speculation_law import check_schedule_with_drafts
from torch_toy import TorchToy

SIZES = (1, 2, 4)  # of a block: powers of two


@pytest.fixture(autouse=True)
def on_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_schedules, "TOY", TorchToy)


@given(schedule=schedules(SIZES))
@settings(max_examples=30, deadline=None)
def test_any_schedule(schedule: Schedule) -> None:
    check_schedule(schedule)


class FilledUp(TorchToy):
    """Small steps are filled up, as those that are captured."""

    fill_up = True


@pytest.mark.parametrize("toy", [TorchToy, FilledUp])
@given(schedule=schedules(SIZES))
@settings(max_examples=20, deadline=None)
def test_any_schedule_planned_ahead(toy: type[TorchToy], schedule: Schedule) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_schedules, "TOY", toy)
        check_schedule_ahead(schedule)


@given(schedule=schedules(SIZES), num_slots=st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_any_schedule_with_a_host_tier(schedule: Schedule, num_slots: int) -> None:
    check_schedule_with_tier(schedule, num_slots)


@given(schedule=returning(SIZES), num_slots=st.integers(2, 24))
@settings(max_examples=20, deadline=None)
def test_prompts_that_come_again_from_the_host(schedule: Schedule, num_slots: int) -> None:
    check_schedule_with_tier(schedule, num_slots)


@given(
    schedule=schedules(SIZES, max_budget=24),
    kind=st.sampled_from(["good", "bad", "draft", "same", "both"]),
    max_draft_tokens=st.integers(1, 9),
    seed=st.integers(0, 1 << 32),
)
@settings(max_examples=30, deadline=None)
def test_any_schedule_with_drafts(
    schedule: Schedule, kind: str, max_draft_tokens: int, seed: int
) -> None:
    check_schedule_with_drafts(schedule, kind, max_draft_tokens, seed)


@given(
    seed=st.integers(0, 1 << 32),
    block_size=st.sampled_from((1, 4)),
    num_blocks=st.integers(8, 16),
    num_requests=st.integers(1, 6),
    slow=st.booleans(),
    guesses=st.sampled_from((None, 0.0, 0.9, 0.9)),
)
@settings(max_examples=15, deadline=None)
def test_any_schedule_with_grammars(
    seed: int,
    block_size: int,
    num_blocks: int,
    num_requests: int,
    slow: bool,
    guesses: float | None,
) -> None:
    check_grammars(seed, block_size, num_blocks, num_requests, slow, guesses)


@given(seed=st.integers(0, 1 << 32), cut=st.integers(0, 200))
@settings(max_examples=15, deadline=None)
def test_resubmitted_requests_with_grammars(seed: int, cut: int) -> None:
    check_resubmission(seed, cut)
