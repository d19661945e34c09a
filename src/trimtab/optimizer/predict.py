"""What a configuration is predicted to hold, by the simulator, out of steps measured here."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import Any

from trimtab.config import ExecutorConfig, SchedulerConfig
from trimtab.engine.client import EngineStats
from trimtab.optimizer.cost import TokenSeconds
from trimtab.optimizer.lesson import Lesson, Replay
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
MOST_GUESSED_TOKENS = 512  # of an answer on which guessing is tried
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
    guessing = None
    if arguments["prompts"] and config.device == "cpu":  # elsewhere `auto` guesses nothing
        guessing = _guessing(model, config, arguments)
    return {"calibration": calibration.as_json(), "speculation": guessing}


def _guessing(model: str, config: ExecutorConfig, arguments: dict[str, Any]) -> Any:
    """How good the guesses of `speculative auto` are on the prompts, one by one, in answers as long
    as the workload's: models repeat themselves in long ones. None if nobody guesses."""
    from trimtab.engine.llm import LLM
    from trimtab.engine.sampling_params import SamplingParams

    scheduler = SchedulerConfig(**arguments["guessing"])
    ends = time.monotonic() + arguments["seconds"] / 2
    runs = _Runs()
    with LLM(model, **asdict(config), **asdict(scheduler)) as llm:
        for prompt, num_tokens in arguments["prompts"]:
            ids = llm.tokenizer.encode(prompt)
            count = min(num_tokens, MOST_GUESSED_TOKENS, llm.engine.info.max_context - len(ids))
            if count < 1:
                continue
            params = SamplingParams(max_tokens=count, temperature=0, ignore_eos=True)
            with closing(llm.stream(ids, params)) as answer:
                runs.begin()
                for _ in answer:
                    runs.step(_num_drafts(llm.engine.stats()))
                    if time.monotonic() > ends:
                        break
            if time.monotonic() > ends:
                break
        stats = llm.engine.stats()
    if stats.speculation is None:
        return None
    num_decodes = stats.num_generated_tokens - stats.speculation.num_accepted
    found = SpeculationModel.from_stats(stats.speculation, num_decodes, stats.draft_seconds)
    return None if found is None else asdict(runs.applied(found))


def _num_drafts(stats: EngineStats) -> int:
    return 0 if stats.speculation is None else stats.speculation.num_drafts


class _Runs:
    """How often a step with a draft follows one without, and one with a draft."""

    def __init__(self) -> None:
        self._followed = [[0, 0], [0, 0]]  # [had a draft before][has one now]
        self._had = 0
        self._num_drafts = 0

    def begin(self) -> None:
        self._had = 0

    def step(self, num_drafts: int) -> None:
        """`num_drafts` since the start."""
        has = int(num_drafts > self._num_drafts)
        self._num_drafts = num_drafts
        self._followed[self._had][has] += 1
        self._had = has

    def applied(self, model: SpeculationModel) -> SpeculationModel:
        """Drawn to the share of all steps by as much as one step of each kind."""
        (never, begun), (ended, stayed) = self._followed
        return replace(
            model,
            share=(begun + model.share) / (never + begun + 1),
            stay=(stayed + model.share) / (ended + stayed + 1),
        )


@dataclass(frozen=True)
class Known:
    """Of a variant with one number of threads."""

    calibration: Calibration
    speculation: SpeculationModel | None
    memory_share: float = ExecutorConfig.memory_share  # that its KV cache was sized by

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Known:
        guessing = value["speculation"]
        if guessing is not None:
            rates = {name: tuple(guessing[name]) for name in ("acceptance", "lengths")}
            guessing = SpeculationModel(**{**guessing, **rates})
        return cls(Calibration.from_json(value["calibration"]), guessing)

    def server(self, scheduler: SchedulerConfig, memory_share: float) -> SimulatedServer:
        """With another share of a GPU's memory the KV cache is as much larger or smaller."""
        server = self.calibration.server(scheduler)
        memory_bytes = self.calibration.machine.get("memory_bytes", 0)
        more = (memory_share - self.memory_share) * memory_bytes
        blocks = round(more) // max(self.calibration.capacity.bytes_per_block, 1)
        server = replace(server, num_blocks=max(1, server.num_blocks + blocks))
        guesses = self.speculation is not None and scheduler.speculative != "off"
        return replace(server, speculation=self.speculation) if guesses else server


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
        self._lesson = Lesson()

    def under(self, make: MakeWorkload) -> Predictor:
        """The same steps under another load."""
        other = Predictor(self._slo, make, self._seed, self._num_requests)
        other._known = self._known
        other._limits = self._limits
        other._lesson = self._lesson
        return other

    def teach(self, lesson: Lesson) -> None:
        """What loads have taught; predictions from now on heed it."""
        self._lesson = lesson
        self._points.clear()

    def learn(self, candidate: Candidate, known: Known) -> None:
        """Of all candidates with this variant and number of threads."""
        known = replace(known, memory_share=candidate.memory_share)
        self._known[candidate.variant, candidate.threads] = known

    def limit(self, variant: Variant, rate: float) -> None:
        """No run of it can hold more: a load that ends before anybody has waited for long would
        seem to, under a generous SLO."""
        self._limits[variant] = rate

    def highest(self, variant: Variant) -> float:
        return max(LOWEST_RATE, min(HIGHEST_RATE, self._limits.get(variant, HIGHEST_RATE)))

    def calibration(self, candidate: Candidate) -> Calibration | None:
        known = self._known.get((candidate.variant, candidate.threads))
        return None if known is None else known.calibration

    def _server(self, candidate: Candidate, lesson: Lesson) -> SimulatedServer | None:
        known = self._known.get((candidate.variant, candidate.threads))
        if known is None:
            return None
        return lesson.applied(known.server(candidate.scheduler, candidate.memory_share))

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
    ) -> LoadPoint | None:
        """One simulated load. `lesson` instead of what was taught; None where the steps of such a
        candidate were not measured. `draw`: of the guesses that are right."""
        server = self._server(candidate, lesson or self._lesson)
        if server is None:
            return None
        done = simulate(server, self._make(rate, seed, seconds), draw=draw)
        found = done.occupancy
        work = Work(
            found.small_seconds, found.large_seconds, found.around_seconds, found.num_accepted
        )
        return load_point(rate, seed, seconds, done.records, self._slo, work)

    def replay(
        self, candidate: Candidate, point: LoadPoint, lesson: Lesson | None = None, draw: int = 0
    ) -> LoadPoint | None:
        """The load of a measured point, simulated: the very same requests."""
        return self.play(candidate, point.rate, point.seed, point.seconds, lesson, draw)

    def lesson_at_pace(self, candidate: Candidate, point: LoadPoint) -> Lesson:
        """For a machine as fast as it was during that load."""
        return self._lesson.at_pace_of(point, self.replayer(candidate))

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
