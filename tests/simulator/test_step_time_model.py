"""Fits recover what made the samples, and say how far off they are."""

from __future__ import annotations

import dataclasses
import json
import random
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated import LINEAR

from trimtab.config import SchedulerConfig
from trimtab.errors import UserError
from trimtab.executors.base import KVCapacity, StepBatch, StepResult
from trimtab.executors.placement import Placement
from trimtab.executors.toy import ToyExecutor
from trimtab.simulator.calibrate import CalibrationPlan, calibrate
from trimtab.simulator.grid import design
from trimtab.simulator.nnls import solve
from trimtab.simulator.overheads import Overheads, measure_engine_overheads, measure_overheads
from trimtab.simulator.step_shape import Reach, StepShape
from trimtab.simulator.step_times import StepSample, StepTimes, fit_step_times

NOTHING = StepResult(
    np.zeros(0, np.int32),
    np.zeros(0, np.float32),
    np.zeros((0, 0), np.int32),
    np.zeros((0, 0), np.float32),
)


class Synthetic(ToyExecutor):
    """Takes known seconds, times noise, of a clock that nothing else moves."""

    def __init__(self, noise: float = 0.0) -> None:
        super().__init__(num_blocks=4096, block_size=16, max_context=1024, vocab_size=8)
        self.now = 0.0
        self.noise = noise
        self.draw = random.Random(0)

    def seconds(self, shape: StepShape) -> float:
        tiles = -(-shape.rows // 4)
        head = 0.3e-3 + 0.02e-3 * shape.logit_rows if shape.logit_rows else 0.0
        return 2e-3 + 0.4e-3 * tiles + head + 40e-9 * shape.attended + 90e-9 * shape.context

    def execute(self, batch: StepBatch) -> StepResult:
        lasts = batch.seq_starts[1:] - 1
        shape = StepShape(
            batch.num_rows,
            batch.num_seqs,
            float((batch.positions.astype(np.int64) + 1).sum()),
            float((batch.positions[lasts].astype(np.int64) + 1).sum()),
            len(batch.logit_rows),
        )
        self.now += self.seconds(shape) * self.draw.lognormvariate(0.0, self.noise)
        return NOTHING


def calibrated(noise: float) -> tuple[Synthetic, StepTimes]:
    subject = Synthetic(noise)
    plan = CalibrationPlan(longest=1024, seconds=1e9)
    return subject, calibrate(subject, plan=plan, clock=lambda: subject.now)


@pytest.mark.parametrize(("noise", "error"), [(0.0, 0.04), (0.05, 0.06)])
def test_a_known_executor_is_recovered(noise: float, error: float) -> None:
    """To the error that its steps of four rows, which the form does not have, and the noise make:
    for shapes that were no part of the grid."""
    subject, times = calibrated(noise)
    assert 60 <= len(times.samples) <= 120
    draw = random.Random(1)
    off = []
    for _ in range(300):
        rows = draw.randint(1, 256)
        context = draw.uniform(rows, 20_000)
        logit_rows = draw.randint(0, min(rows, 64))
        shape = StepShape(rows, max(1, logit_rows), context * 4, context, logit_rows)
        off.append(abs(times.seconds(shape) / subject.seconds(shape) - 1))
    assert np.mean(off) < error
    assert times.errors.held_out is not None
    assert times.errors.held_out < error
    assert times.errors.leave_one_out < error


@pytest.mark.parametrize(("near_for", "apart"), [(0.3, 0.0), (0.0, 1.0)])
def test_steps_of_cores_that_lay_apart_do_not_count(near_for: float, apart: float) -> None:
    """Of each second of the clock the cores lie near for so long; apart, steps take twice as
    long. If they never were near, what there is counts, and the result says so."""
    subject = Synthetic()
    plain = subject.seconds

    def is_near() -> bool:
        return subject.now % 1.0 < near_for

    subject.seconds = lambda shape: plain(shape) * (1 if is_near() else 2)  # type: ignore[method-assign]
    placement = Placement(lambda: 1.0 if is_near() else 5.0, 0.0, shortest=1.0)
    plan = CalibrationPlan(longest=1024, seconds=30.0)
    times = calibrate(subject, plan=plan, clock=lambda: subject.now, placement=placement)
    shape = StepShape(64, 4, 4000.0, 1000.0, 4)
    expected = plain(shape) * (2 if apart else 1)
    assert times.seconds(shape) == pytest.approx(expected, rel=0.06)
    assert times.subject["apart"] == pytest.approx(apart, abs=0.1)


def test_the_interval_holds_nine_of_ten() -> None:
    subject, times = calibrated(0.1)
    inside = 0
    draw = random.Random(2)
    for _ in range(500):
        rows = draw.randint(1, 512)
        shape = StepShape(rows, 1, rows * 300.0, 600.0, 1)
        low, high = times.bounds(shape)
        inside += low <= subject.seconds(shape) <= high
    assert times.interval[0] < 1 < times.interval[1]
    assert inside >= 450


def test_what_was_not_measured_is_said(step_times: StepTimes) -> None:
    largest = step_times.largest
    assert step_times.provenance(largest) == "interpolated"
    assert step_times.provenance(largest._replace(rows=513)) == "extrapolated"
    assert step_times.provenance(largest._replace(attended=4.5e6)) == "guessed"
    low, high = step_times.bounds(largest._replace(rows=513))
    assert low <= step_times.seconds(largest._replace(rows=513)) <= high


@given(st.lists(st.integers(0, 600), min_size=5, max_size=5), st.integers(0, 4))
def test_no_larger_step_is_faster(values: list[int], grown: int) -> None:
    rows, *rest = values
    small = StepShape(rows + 1, *rest)
    large = StepShape(*(v + 7 * (i == grown) for i, v in enumerate(small)))
    assert LINEAR.seconds(large) >= LINEAR.seconds(small)


def test_json_brings_it_back() -> None:
    _, times = calibrated(0.02)
    again = StepTimes.from_json(json.loads(json.dumps(times.as_json())))
    assert again == times
    for broken in ({}, {**times.as_json(), "format": 99}, {**times.as_json(), "samples": 3}):
        with pytest.raises(UserError):
            StepTimes.from_json(broken)


def test_too_few_steps_are_refused() -> None:
    sample = StepSample(StepShape(1, 1, 1, 1, 1), 0.1)
    with pytest.raises(UserError, match="too few"):
        fit_step_times([sample] * 7)
    with pytest.raises(UserError, match="no time"):
        fit_step_times([sample._replace(seconds=0.0)] * 9)


def test_the_grid_keeps_to_what_can_be_planned() -> None:
    scheduler = SchedulerConfig(max_batch_tokens=100, max_num_requests=4)
    capacity = KVCapacity(16, 30, 1)
    points = design(scheduler, capacity, longest=200)
    assert len(points) == len(set(points))
    assert any(point.is_held_out for point in points)
    for point in points:
        assert point.num_rows <= 100
        assert len(point.decodes) <= 4
        assert max((*point.decodes, point.start + point.count)) <= 200
        assert point.num_blocks(16) <= 30


@given(
    st.lists(st.lists(st.floats(0, 10), min_size=4, max_size=4), min_size=4, max_size=9),
    st.lists(st.floats(-5, 10), min_size=9, max_size=9),
)
def test_nnls_meets_its_conditions(rows: list[list[float]], target: list[float]) -> None:
    """Karush, Kuhn, Tucker: nothing negative, and no way downhill."""
    matrix, goal = np.array(rows), np.array(target[: len(rows)])
    x = solve(matrix, goal)
    scale = 1 + np.abs(matrix).max() * np.abs(goal).max() * len(rows)
    gradient = matrix.T @ (goal - matrix @ x)
    assert (x >= 0).all()
    assert (gradient <= 1e-6 * scale).all()
    assert (np.abs(gradient[x > 1e-9]) <= 1e-6 * scale).all()


def test_windows_bound_what_a_row_reads() -> None:
    reach = Reach(((0, 0.25), (8, 0.75)))
    for start in (0, 3, 7, 8, 30):
        for count in (1, 5, 20):
            rows = range(start, start + count)
            seen = [0.25 * (p + 1) + 0.75 * min(p + 1, 8) for p in rows]
            assert reach.attended(start, count) == pytest.approx(sum(seen))
            assert seen[-1] <= reach.context(start, count) <= sum(seen) + 1e-9
    full = Reach()
    assert full.attended(10, 3) == 11 + 12 + 13
    assert full.context(10, 3) == 13


def test_overheads_of_a_real_engine() -> None:
    overheads = measure_overheads(ToyExecutor(num_blocks=256))
    assert overheads.step + overheads.sequence > 0
    assert 0 < overheads.request < 1  # a thread is woken
    alone = measure_engine_overheads(ToyExecutor(num_blocks=256), time.thread_time)
    assert alone.step + alone.sequence > 0
    assert Overheads.from_json(overheads.as_json()) == overheads
    with pytest.raises(UserError):
        Overheads.from_json({"step": "much"})
    with pytest.raises(UserError):
        Overheads.from_json({"steps": 1})
    with pytest.raises(UserError, match="too small"):
        measure_overheads(ToyExecutor(num_blocks=2))
    assert dataclasses.replace(overheads, row=1.0).row == 1.0


def test_overheads_where_all_tokens_came_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a busy machine, whose event loop had no turn: there is no second step to time."""
    monkeypatch.setattr("trimtab.simulator.overheads._STEPS", 1)
    overheads = measure_overheads(ToyExecutor(num_blocks=256))
    assert overheads.step + overheads.sequence > 0
