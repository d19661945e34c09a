"""What a configuration is predicted to hold, by the simulator, out of steps measured here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trimtab.config import ExecutorConfig, SchedulerConfig
from trimtab.optimizer.cost import TokenSeconds
from trimtab.optimizer.points import LoadPoint, load_point
from trimtab.optimizer.space import Candidate
from trimtab.simulator.calibrate import CalibrationPlan
from trimtab.simulator.calibration import Calibration, calibrate_model
from trimtab.simulator.simulate import simulate
from trimtab.simulator.step_shape import StepShape
from trimtab.workloads.capacity import highest_rate
from trimtab.workloads.requests import Workload
from trimtab.workloads.slo import Slo

FIRST_RATE = 1.0
LOWEST_RATE, HIGHEST_RATE = 1e-3, 1e5
RESOLUTION = 0.03  # of a predicted rate
MAX_PROBES = 24
CHUNK = 256  # tokens of a prefill, for what one of them costs


def token_seconds(
    calibration: Calibration, num_running: float, mean_context: float
) -> TokenSeconds:
    """At a batch of that size: an output token is its share of a decode step, a prompt token what
    it adds to one, and a cached one its share of the admission."""
    count = max(1, round(num_running))
    context = count * mean_context
    decode = StepShape(count, count, context, context, count)
    mixed = StepShape(
        count + CHUNK,
        count + 1,
        context + CHUNK * mean_context / 2,
        context + mean_context,
        count + 1,
    )
    times, overheads = calibration.step_times, calibration.overheads
    base = times.seconds(decode) + overheads.step + count * overheads.sequence
    computed = max(times.seconds(mixed) - times.seconds(decode), 0.0) / CHUNK
    # What the scheduler does for a block that is found is what it does for one that is not.
    cached = overheads.sequence / calibration.capacity.block_size
    return TokenSeconds(max(computed, 1e-9), min(cached, computed), max(base / count, 1e-9))


def calibration_trial(arguments: dict[str, Any], progress: Callable[[str], None]) -> dict[str, Any]:
    """In a process of its own: load the model as a server would, and measure its steps."""
    plan = CalibrationPlan(longest=arguments["longest"], seconds=arguments["seconds"])
    scheduler = SchedulerConfig(speculative="off", max_batch_tokens=arguments["max_batch_tokens"])
    config = ExecutorConfig(**arguments["executor"])
    return calibrate_model(arguments["model"], config, scheduler, plan, progress).as_json()


MakeWorkload = Callable[[float, int, float], Workload]  # rate, seed, seconds


class Predictor:
    """Implements `search.Judge`: the score is the highest rate that meets the SLO.

    All candidates see the same requests (common random numbers).
    """

    def __init__(self, slo: Slo, make: MakeWorkload, seed: int, num_requests: int) -> None:
        """`num_requests` of a simulated load; its length follows from the rate."""
        self._slo = slo
        self._make = make
        self._seed = seed
        self._num_requests = num_requests
        self._calibrations: dict[tuple[Any, int], Calibration] = {}
        self._points: dict[tuple[Candidate, float], LoadPoint] = {}
        self.num_simulations = 0

    def under(self, make: MakeWorkload) -> Predictor:
        """The same steps under another load."""
        other = Predictor(self._slo, make, self._seed, self._num_requests)
        other._calibrations = self._calibrations
        return other

    def learn(self, candidate: Candidate, calibration: Calibration) -> None:
        """Of all candidates with this variant and number of threads."""
        self._calibrations[candidate.variant, candidate.threads] = calibration

    def calibration(self, candidate: Candidate) -> Calibration | None:
        return self._calibrations.get((candidate.variant, candidate.threads))

    def point(self, candidate: Candidate, rate: float) -> LoadPoint | None:
        """None where the steps of such a candidate were not measured."""
        calibration = self.calibration(candidate)
        if calibration is None:
            return None
        known = self._points.get((candidate, rate))
        if known is None:
            seconds = self._num_requests / rate
            workload = self._make(rate, self._seed, seconds)
            simulation = simulate(calibration.server(candidate.scheduler), workload)
            known = load_point(rate, self._seed, seconds, simulation.records, self._slo)
            self._points[candidate, rate] = known
            self.num_simulations += 1
        return known

    def replay(self, candidate: Candidate, point: LoadPoint) -> LoadPoint | None:
        """The load of a measured point, simulated: the very same requests."""
        calibration = self.calibration(candidate)
        if calibration is None:
            return None
        workload = self._make(point.rate, point.seed, point.seconds)
        simulation = simulate(calibration.server(candidate.scheduler), workload)
        return load_point(point.rate, point.seed, point.seconds, simulation.records, self._slo)

    def exceeds(self, candidate: Candidate, score: float) -> bool:
        point = self.point(candidate, max(score, LOWEST_RATE))
        return point is not None and point.met

    def score(self, candidate: Candidate, at_least: float) -> float:
        """0 if even LOWEST_RATE is too much, or its steps were not measured."""
        if self.calibration(candidate) is None:
            return 0.0
        found = highest_rate(
            lambda rate: self._known_point(candidate, rate),
            low=max(at_least, LOWEST_RATE),
            high=HIGHEST_RATE,
            start=at_least or FIRST_RATE,
            width=RESOLUTION,
            max_probes=MAX_PROBES,
        )
        return found.rate or 0.0

    def _known_point(self, candidate: Candidate, rate: float) -> LoadPoint:
        point = self.point(candidate, rate)
        assert point is not None
        return point
