"""What is learned of costs and of acceptance, and what follows for the length of drafts."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from random import Random

import pytest
from engine_schedules import run, toy
from proposers import Guesser
from test_speculation_law import greedy

from trimtab.engine.client import EngineRequest
from trimtab.engine.engine import Engine
from trimtab.engine.request import Request
from trimtab.engine.sampling_params import SamplingParams
from trimtab.engine.speculation.acceptance import Acceptance
from trimtab.engine.speculation.costs import StepCosts, measure_costs
from trimtab.engine.speculation.draft import NUM_CONFIDENCES, Draft
from trimtab.engine.speculation.duty import Duty
from trimtab.engine.speculation.speculator import Speculator
from trimtab.engine.speculation.worth import PlannedStep
from trimtab.executors.toy import ToyExecutor

# ---- costs


def test_costs_are_linear_between_sizes_and_never_fall() -> None:
    costs = StepCosts({1: 10.0, 5: 12.0, 9: 11.0, 17: 20.0})
    assert costs.seconds(1) == 10.0
    assert costs.seconds(3) == pytest.approx(11.0)
    assert costs.seconds(9) == pytest.approx(
        12.0
    )  # a reading below that of a smaller step is noise
    found = [costs.seconds(size) for size in range(1, 200)]
    assert found == sorted(found)
    assert costs.seconds(100) > 3 * costs.seconds(17)


def test_a_machine_that_slows_down_changes_no_ratio() -> None:
    costs = StepCosts({1: 1.0, 5: 1.5, 17: 4.0})
    for _ in range(50):
        for size in (1, 3, 5, 11):
            costs.learn(size, 7 * costs.seconds(size))
    assert costs.seconds(5) / costs.seconds(1) == pytest.approx(1.5, rel=0.02)
    assert costs.seconds(17) / costs.seconds(1) == pytest.approx(4.0, rel=0.05)


def test_a_size_that_costs_more_than_was_measured_is_corrected() -> None:
    costs = StepCosts({1: 1.0, 5: 1.0, 17: 1.0})
    truth = {1: 0.02, 5: 0.04, 17: 0.10}
    random = Random(1)
    for _ in range(400):
        size = random.choice([1, 5, 17])
        noise = random.choice([1.0, 1.0, 1.0, 1.1, 0.95, 9.0 if random.random() < 0.1 else 1.0])
        costs.learn(size, truth[size] * noise)
    assert costs.seconds(5) / costs.seconds(1) == pytest.approx(2.0, rel=0.2)
    assert costs.seconds(17) / costs.seconds(1) == pytest.approx(5.0, rel=0.2)


def test_calibration_runs_steps_that_fit() -> None:
    executor = toy(num_blocks=3, block_size=4, max_context=64)
    costs = measure_costs(executor)
    assert 0 < costs.seconds(1) <= costs.seconds(9)
    assert executor.num_computed_tokens > 0


# ---- acceptance


def draft_of(request: Request, confidences: list[int]) -> Draft:
    draft = Draft(request, len(confidences), lambda draft: True)
    for confidence in confidences:
        draft.add(7, confidence)
    return draft


def live_request(name: str) -> Request:
    engine = Engine(toy())
    engine.add_request(greedy(name))
    return engine.scheduler._waiting[0]


def test_each_class_is_as_sure_as_it_turned_out_to_be() -> None:
    acceptance = Acceptance([(0.5,) * NUM_CONFIDENCES])
    random = Random(2)
    for index in range(600):
        request = live_request(f"r{index}") if index % 20 == 0 else request  # type: ignore # noqa
        is_right = random.random() < 0.9, random.random() < 0.2
        draft = draft_of(request, [3, 8])
        acceptance.learn(draft, 0 if not is_right[0] else 1 + is_right[1])
    assert acceptance.token(0, "another", 3) == pytest.approx(0.9, abs=0.05)
    assert acceptance.token(0, "another", 8) == pytest.approx(0.2, abs=0.06)
    assert acceptance.token(0, "another", 5) == 0.5  # nothing is known of it
    assert acceptance.first(0, "another") == pytest.approx(0.9, abs=0.05)


def test_a_request_that_does_worse_than_others_is_told_apart_and_gets_another_chance() -> None:
    acceptance = Acceptance([(0.8,) * NUM_CONFIDENCES])
    good, bad = live_request("good"), live_request("bad")
    for _ in range(30):
        acceptance.learn(draft_of(good, [4, 4]), 2)
        acceptance.learn(draft_of(bad, [4, 4]), 0)
    assert acceptance.token(0, "good", 4) > 2 * acceptance.token(0, "bad", 4)
    before = acceptance.token(0, "bad", 4)
    for _ in range(300):
        acceptance.passed_over(0, "bad")
    assert acceptance.token(0, "bad", 4) > 2 * before
    acceptance.forget("bad")
    assert acceptance.factor(0, "bad") == 1.0


# ---- lengths


def rows_of(engine: Engine, executor: object, *names: str) -> list[int]:
    sizes: list[int] = []
    execute = executor.execute  # type: ignore[attr-defined]

    def counted(batch: object) -> object:
        sizes.append(batch.num_rows)  # type: ignore[attr-defined]
        return execute(batch)

    executor.execute = counted  # type: ignore[attr-defined]
    run(engine, *[greedy(name, 60) for name in names])
    return sizes


def speculating(quality: float, costs: dict[int, float]) -> tuple[Engine, object]:
    executor = toy(num_blocks=512)
    guesser = Guesser(executor, quality)
    # As sure as it is: every token has the class of its quality.
    guesser._random = Random(3)
    guesser.priors = (quality,) * NUM_CONFIDENCES
    table = StepCosts(costs)
    table.learn = lambda num_rows, seconds: None  # type: ignore[method-assign]
    return Engine(executor, debug=True, speculator=Speculator([guesser], table, 8)), executor


def test_good_guesses_at_cheap_rows_are_long_and_at_dear_rows_are_none() -> None:
    cheap = rows_of(*speculating(0.95, {1: 1.0, 64: 2.0}), "r")
    assert max(cheap[1:]) == 9
    dear = rows_of(*speculating(0.95, {1: 1.0, 64: 64.0}), "r")
    assert max(dear[1:]) == 1


def test_a_batch_that_fills_the_machine_drafts_nothing() -> None:
    """Rows are free up to 8, and cost their share beyond."""
    costs = {1: 1.0, 8: 1.0, 16: 2.0, 64: 8.0}
    alone = rows_of(*speculating(0.9, costs), "r")
    assert max(alone) > 5
    full = rows_of(*speculating(0.9, costs), *[f"r{index}" for index in range(8)])
    assert max(full[1:]) <= 8 + 1


def test_a_token_is_worth_no_more_because_a_prompt_is_in_the_step() -> None:
    costs = StepCosts({1: 1.0, 8: 1.0, 16: 2.0, 64: 8.0})
    for num_rows in (8, 48):
        full = PlannedStep(costs, num_rows, num_tokens=8, overhead=0.0, num_left=inf)
        assert not full.is_worth(0.9, 0.0)
        assert not full.pays(8, 0.9, 0.0, limit=4)
    assert PlannedStep(costs, 41, num_tokens=1, overhead=0.0, num_left=inf).is_worth(0.2, 0.0)


def test_bad_guesses_end_by_themselves() -> None:
    engine, executor = speculating(0.0, {1: 1.0, 64: 12.0})
    engine.speculator._acceptance = Acceptance([(0.9,) * NUM_CONFIDENCES])  # type: ignore[union-attr]
    sizes = rows_of(engine, executor, "r")
    assert max(sizes[1:6]) > 1  # it was believed at first
    assert sum(size > 1 for size in sizes[-30:]) <= 3


class Reader(Guesser):
    """Must read a request before its first guess."""

    def __init__(self, target: ToyExecutor, seconds: float) -> None:
        super().__init__(target, 0.95)
        self.priors = (0.95,) * NUM_CONFIDENCES
        self.asked: set[str] = set()
        self._seconds = seconds  # a token

    def guess_seconds(self, num_drafts: int) -> float:
        return num_drafts * self._seconds

    def backlog(self, request: Request) -> int:
        return 0 if request.request_id in self.asked else request.num_tokens

    def propose(self, drafts: Sequence[Draft]) -> None:
        self.asked |= {draft.request.request_id for draft in drafts}
        super().propose(drafts)


@pytest.mark.parametrize(("max_tokens", "is_asked"), [(4, False), (24, True)])
def test_a_long_prompt_is_not_read_for_a_short_answer(max_tokens: int, is_asked: bool) -> None:
    executor = toy(num_blocks=512)
    reader = Reader(executor, seconds=0.1)  # a step takes 1 s
    table = StepCosts({1: 1.0, 64: 1.1})
    table.learn = lambda num_rows, seconds: None  # type: ignore[method-assign]
    engine = Engine(executor, debug=True, speculator=Speculator([reader], table, 8))
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
    run(engine, EngineRequest("r", [7] * 40, params))
    assert bool(reader.asked) == is_asked


# ---- duty


def duty_of(
    steps: int, on: tuple[int, float], off: tuple[int, float], duty: Duty | None = None
) -> tuple[Duty, list[bool]]:
    """So many steps whose (tokens, milliseconds) depend on whether speculation is on."""
    duty = duty or Duty()
    went = []
    for _ in range(steps):
        went.append(duty.begin(is_new=False))
        tokens, milliseconds = on if went[-1] else off
        duty.learn(tokens, [0.0, 0.0, milliseconds / 1e3, 0.0, 0.0], went[-1])
    return duty, went


def test_what_is_slower_is_left_but_for_a_trial_now_and_then() -> None:
    _, went = duty_of(2000, on=(11, 1.2), off=(10, 1.0))
    late = went[500:]
    assert 0 < sum(late) < 0.08 * len(late)


def test_what_is_faster_is_kept_but_for_a_trial_now_and_then() -> None:
    _, went = duty_of(2000, on=(13, 1.1), off=(10, 1.0))
    assert 0.9 * 1500 < sum(went[500:]) < 1500
    _, clear = duty_of(2000, on=(25, 1.1), off=(10, 1.0))
    assert sum(clear[500:]) > 0.98 * 1500


def test_it_comes_back_when_it_pays_again() -> None:
    duty, _ = duty_of(1000, on=(10, 1.2), off=(10, 1.0))
    _, went = duty_of(1800, on=(20, 1.2), off=(10, 1.0), duty=duty)
    assert all(went[-100:])
    duty, _ = duty_of(1000, on=(10, 1.2), off=(10, 1.0), duty=duty)
    assert duty.begin(is_new=False) is False
    duty_of(60, on=(10, 1.2), off=(10, 1.0), duty=duty)
    new = [duty.begin(is_new=index == 0) for index in range(12)]
    assert sum(new) == 8  # a request that has just begun is given a chance, once


def test_guessing_in_steps_with_prompts_counts_against_it() -> None:
    duty, went = Duty(), []
    for number in range(1500):
        went.append(duty.begin(is_new=False))
        if number % 3 == 0:
            duty.charge(0.8e-3 if went[-1] else 0.0)
        else:
            duty.learn(13 if went[-1] else 10, [0.0, 0.0, 1.1e-3, 0.0, 0.0], went[-1])
    assert sum(went[500:]) < 0.1 * 1000


def test_it_says_how_long_a_trial_lasts() -> None:
    duty, _ = duty_of(400, on=(10, 1.2), off=(10, 1.0))
    left = []
    for _ in range(600):
        if duty.begin(is_new=False):
            left.append(duty.num_left)
        duty.learn(10, [0.0, 0.0, 1e-3, 0.0, 0.0], False)
    assert left[:8] == list(range(8, 0, -1))
    assert Duty().num_left == inf


def test_what_drafts_cost_outside_the_executor_is_known() -> None:
    duty = Duty()
    for _ in range(3000):
        is_on = duty.begin(is_new=False)
        outside = 3e-4 if is_on else 1e-4
        parts = [outside / 2, outside / 2, 1e-3, 0.0, 0.0]
        duty.learn(2 if is_on else 1, parts, is_on)
    assert duty.overhead == pytest.approx(2e-4, rel=0.1)
