"""What a configuration is predicted to hold, by the simulator, out of steps measured here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from trimtab.config import ExecutorConfig, SchedulerConfig
from trimtab.optimizer.cost import TokenSeconds
from trimtab.optimizer.guesses import Guesses, count_guesses, together
from trimtab.optimizer.lesson import Lesson, Lessons, Replay
from trimtab.optimizer.points import LoadPoint, Work, load_point
from trimtab.optimizer.space import Candidate
from trimtab.optimizer.variants import Variant
from trimtab.simulator.calibrate import CalibrationPlan
from trimtab.simulator.calibration import Calibration, calibrate_model
from trimtab.simulator.simulate import SimulatedServer, simulate
from trimtab.simulator.speculation import SpeculationModel
from trimtab.simulator.step_shape import StepShape
from trimtab.workloads.capacity import highest_rate
from trimtab.workloads.requests import Workload
from trimtab.workloads.slo import Slo

FIRST_RATE = 1.0
LOWEST_RATE, HIGHEST_RATE = 1e-3, 1e5
RESOLUTION = 0.03  # of a predicted rate
MAX_PROBES = 24
GUESSING_SHARE = 0.5  # of the time in which steps are measured, for guesses besides
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
    plan = CalibrationPlan(
        longest=arguments["longest"],
        seconds=arguments["seconds"],
        shortest_handoff=arguments["shortest_handoff"],
    )
    scheduler = SchedulerConfig(speculative="off", max_batch_tokens=arguments["max_batch_tokens"])
    config = ExecutorConfig(**arguments["executor"])
    model = arguments["model"]
    calibration = calibrate_model(model, config, scheduler, plan, progress)
    guesses = None
    if arguments["prompts"] and config.device == "cpu":  # elsewhere `auto` guesses nothing
        guessing = SchedulerConfig(**arguments["guessing"])
        seconds = arguments["seconds"] * GUESSING_SHARE
        guesses = count_guesses(model, config, guessing, arguments["prompts"], seconds)
    found = guesses and guesses.as_json()
    return {"calibration": calibration.as_json(), "guesses": found}


@dataclass(frozen=True)
class Known:
    """Of a variant with one number of threads."""

    calibration: Calibration
    guesses: Guesses | None
    memory_share: float = ExecutorConfig.memory_share  # that its KV cache was sized by

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Known:
        guesses = value["guesses"]
        return cls(
            Calibration.from_json(value["calibration"]), guesses and Guesses.from_json(guesses)
        )

    def server(self, scheduler: SchedulerConfig, memory_share: float) -> SimulatedServer:
        """That guesses nothing. With another share of a GPU's memory the KV cache is as much larger
        or smaller."""
        server = self.calibration.server(scheduler)
        memory_bytes = self.calibration.machine.get("memory_bytes", 0)
        more = (memory_share - self.memory_share) * memory_bytes
        blocks = round(more) // max(self.calibration.capacity.bytes_per_block, 1)
        return replace(server, num_blocks=max(1, server.num_blocks + blocks))


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
        self._known: dict[tuple[Variant, int], Known] = {}
        self._points: dict[tuple[Candidate, float], LoadPoint] = {}
        self._limits: dict[Variant, float] = {}
        self._speculation: SpeculationModel | None = None
        self._lessons = Lessons()

    def under(self, make: MakeWorkload) -> Predictor:
        """The same steps under another load."""
        other = Predictor(self._slo, make, self._seed, self._num_requests)
        other._known = self._known
        other._speculation = self._speculation
        other._limits = self._limits
        other._lessons = self._lessons
        return other

    def teach(self, lessons: Lessons) -> None:
        """What loads have taught; predictions from now on heed it. Keys are `key_of` candidates."""
        self._lessons = lessons
        self._points.clear()

    @staticmethod
    def key_of(candidate: Candidate) -> tuple[Variant, int]:
        """Of whose steps a candidate's are."""
        return candidate.variant, candidate.threads

    def learn(self, candidate: Candidate, known: Known) -> None:
        """Of all candidates with this variant and number of threads; what is known of guesses, of
        all that are known."""
        known = replace(known, memory_share=candidate.memory_share)
        self._known[self.key_of(candidate)] = known
        guesses = [one.guesses for one in self._known.values() if one.guesses is not None]
        self._speculation = together(guesses).model()
        self._points.clear()

    def limit(self, variant: Variant, rate: float) -> None:
        """No run of it can hold more: a load that ends before anybody has waited for long would
        seem to, under a generous SLO."""
        self._limits[variant] = rate

    def highest(self, variant: Variant) -> float:
        return max(LOWEST_RATE, min(HIGHEST_RATE, self._limits.get(variant, HIGHEST_RATE)))

    def calibration(self, candidate: Candidate) -> Calibration | None:
        known = self._known.get(self.key_of(candidate))
        return None if known is None else known.calibration

    def _server(self, candidate: Candidate, lesson: Lesson) -> SimulatedServer | None:
        known = self._known.get(self.key_of(candidate))
        if known is None:
            return None
        server = known.server(candidate.scheduler, candidate.memory_share)
        if known.guesses is not None and candidate.scheduler.speculative != "off":
            server = replace(server, speculation=self._speculation)
        return lesson.applied(server)

    def point(self, candidate: Candidate, rate: float) -> LoadPoint | None:
        """None where the steps of such a candidate were not measured."""
        point = self._points.get((candidate, rate))
        if point is None:
            seconds = self._num_requests / rate
            point = self.play(candidate, rate, self._seed, seconds)
            if point is not None:
                self._points[candidate, rate] = point
        return point

    def play(
        self,
        candidate: Candidate,
        rate: float,
        seed: int,
        seconds: float,
        lesson: Lesson | None = None,
        draw: int = 0,
        window: tuple[float, float] | None = None,
    ) -> LoadPoint | None:
        """One simulated load. `lesson` instead of what was taught; None where the steps of such a
        candidate were not measured. `draw`: of the guesses that are right. `window`: see
        `load_point`."""
        server = self._server(candidate, lesson or self._lessons.of(self.key_of(candidate)))
        if server is None:
            return None
        done = simulate(server, self._make(rate, seed, seconds), draw=draw)
        found = done.occupancy
        work = Work(
            found.small_seconds, found.large_seconds, found.around_seconds, found.num_accepted
        )
        return load_point(rate, seed, seconds, done.records, self._slo, work, window)

    def replay(
        self, candidate: Candidate, point: LoadPoint, lesson: Lesson | None = None, draw: int = 0
    ) -> LoadPoint | None:
        """The load of a measured point, simulated: the very same requests."""
        at = (point.rate, point.seed, point.seconds)
        return self.play(candidate, *at, lesson, draw, point.window)

    def lesson_at_pace(self, candidate: Candidate, point: LoadPoint) -> Lesson:
        """For a machine as fast as it was during that load."""
        known = self._lessons.of(self.key_of(candidate))
        return known.at_pace_of(point, self.replayer(candidate))

    def replayer(self, candidate: Candidate) -> Replay:
        """Of a candidate whose steps were measured."""

        def replay(point: LoadPoint, lesson: Lesson) -> LoadPoint:
            found = self.replay(candidate, point, lesson)
            assert found is not None
            return found

        return replay

    def exceeds(self, candidate: Candidate, score: float) -> bool:
        point = self.point(candidate, max(score, LOWEST_RATE))
        return point is not None and point.met

    def score(self, candidate: Candidate, at_least: float) -> float:
        """0 if even LOWEST_RATE is too much, or its steps were not measured."""
        if self.calibration(candidate) is None:
            return 0.0
        high = max(self.highest(candidate.variant), at_least)
        found = highest_rate(
            lambda rate: self._known_point(candidate, rate),
            low=max(at_least, LOWEST_RATE),
            high=high,
            start=at_least or min(FIRST_RATE, high),
            width=RESOLUTION,
            max_probes=MAX_PROBES,
        )
        return found.rate or 0.0

    def _known_point(self, candidate: Candidate, rate: float) -> LoadPoint:
        point = self.point(candidate, rate)
        assert point is not None
        return point
