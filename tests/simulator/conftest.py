"""Step times for the simulator's tests."""

from __future__ import annotations

import pytest
from simulated import LINEAR

from trimtab.simulator.step_times import StepTimes


@pytest.fixture
def step_times() -> StepTimes:
    return LINEAR
