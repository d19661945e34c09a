"""Step times of an executor that steps are queued on: from step to step, not one by one."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from trimtab.executors.base import Pending, StepBatch, StepResult
from trimtab.executors.toy import ToyExecutor
from trimtab.simulator.overheads import measure_engine_overheads
from trimtab.simulator.repeated import MAX_BURST, repeated_seconds

LAUNCH, RUN = 0.001, 0.003


@dataclass
class TimedPending:
    device: TimedDevice
    ends: float
    value: StepResult

    def result(self) -> StepResult:
        self.device.now = max(self.device.now, self.ends)
        return self.value


class TimedDevice(ToyExecutor):
    """Launching takes LAUNCH of the host, running RUN of a device that runs one after another."""

    now = 0.0
    busy_until = 0.0

    def execute(self, batch: StepBatch) -> StepResult:
        return self.execute_async(batch).result()

    def execute_async(self, batch: StepBatch) -> Pending:
        self.now += LAUNCH
        self.busy_until = max(self.now, self.busy_until) + RUN
        return TimedPending(self, self.busy_until, super().execute(batch))

    def clock(self) -> float:
        return self.now


def a_batch(device: TimedDevice) -> StepBatch:
    kept: list[StepBatch] = []
    execute = device.execute_async

    def keep(batch: StepBatch) -> Pending:
        kept.append(batch)
        return execute(batch)

    device.execute_async = keep  # type: ignore[method-assign]
    measure_engine_overheads(device, device.clock)
    del device.execute_async  # type: ignore[method-assign]
    return kept[0]


def test_launching_is_hidden_behind_running() -> None:
    device = TimedDevice(num_blocks=64)
    batch = a_batch(device)
    before = device.num_steps
    assert repeated_seconds(device, batch, device.clock) == pytest.approx(RUN, rel=0.2)
    assert 4 <= device.num_steps - before <= MAX_BURST + 2


def test_a_long_step_is_run_once() -> None:
    device = TimedDevice(num_blocks=64)
    batch = a_batch(device)
    before = device.num_steps
    assert repeated_seconds(device, batch, device.clock, burst=RUN) == pytest.approx(LAUNCH + RUN)
    assert device.num_steps == before + 1


def test_what_a_step_takes_is_no_overhead_of_the_engine() -> None:
    """On this clock an engine costs nothing but what steps do."""
    device = TimedDevice(num_blocks=64)
    found = measure_engine_overheads(device, device.clock)
    assert found.step + found.sequence < 0.2 * RUN
