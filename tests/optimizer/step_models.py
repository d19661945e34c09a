"""Step times made by hand."""

from __future__ import annotations

import math

from trimtab.executors.base import KVCapacity
from trimtab.optimizer.guesses import Guesses
from trimtab.optimizer.predict import Known, Predictor
from trimtab.optimizer.space import Candidate
from trimtab.optimizer.variants import Variant
from trimtab.simulator.calibration import Calibration
from trimtab.simulator.overheads import Overheads
from trimtab.simulator.step_shape import StepShape
from trimtab.simulator.step_times import FitErrors, StepTimes
from trimtab.workloads.make import make_workload
from trimtab.workloads.requests import Workload
from trimtab.workloads.slo import parse_slo

SLO = parse_slo("ttft:p90<1s; itl:p90<60ms")
SLOW = Candidate(Variant())
FAST = Candidate(Variant("int8"))


def guesses(
    acceptance: tuple[float, ...], share: float = 1.0, num_decodes: int = 100_000
) -> Guesses:
    """Drafts as long as can be, in any step as often as in any other."""
    num_drafts = round(share * num_decodes)
    accepted = [round(num_drafts * math.prod(acceptance[: n + 1])) for n in range(len(acceptance))]
    row = [num_decodes - num_drafts, num_drafts]
    return Guesses(
        num_decodes, num_drafts, [num_drafts] * len(acceptance), accepted, 0.0, [row, row]
    )


def known(factor: float, guesses: Guesses | None = None) -> Known:
    """A step takes 20 ms and 0.2 ms a row, times `factor`."""
    times = StepTimes(
        row_knots=(1, 512),
        row_seconds=(0.02 * factor, (0.02 + 0.1) * factor),
        head_knots=(1, 64),
        head_seconds=(0.0, 0.0),
        sequence_seconds=0.0,
        attended_seconds=0.0,
        context_seconds=0.0,
        largest=StepShape(512, 64, 1e6, 1e5, 64),
        errors=FitErrors(0.0, 0.0, 0.0, 0.0),
    )
    capacity = KVCapacity(16, 2048, 1)
    overheads = Overheads(sequence=1.6e-5)
    return Known(Calibration(times, overheads, "m", "bf16", "bf16", 1, capacity, 2048), guesses)


def workload(rate: float, seed: int, seconds: float) -> Workload:
    return make_workload("chat", rate=rate, duration=seconds, seed=seed, max_context=1024)


def predictor_of(known_steps: dict[Candidate, Known]) -> Predictor:
    made = Predictor(SLO, workload, seed=0, num_requests=40)
    for candidate, one in known_steps.items():
        made.learn(candidate, one)
    return made
