"""The highest rates that the survivors hold on the real server, the most promising first."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.optimizer import heats
from trimtab.optimizer.entries import Entry
from trimtab.optimizer.measure import MAX_PROBES, RESOLUTION, STEP, Measured, measure_rate
from trimtab.optimizer.points import LoadPoint
from trimtab.optimizer.repeats import LEAST_REPEATS
from trimtab.optimizer.search import Ranked
from trimtab.optimizer.search import shortlist as ranked_candidates
from trimtab.optimizer.space import neighbours
from trimtab.optimizer.trials import heat_seeds, search_seeds

if TYPE_CHECKING:
    from trimtab.optimizer.found import Found
    from trimtab.optimizer.run import Optimization

MOST_SECONDS = 60.0  # of a load
REQUESTS = 60  # that a load should have, if time allows
PROBES = 4  # that a finalist takes, about
LEAST_PROBES = 3  # in a run of a minute two are enough that enclose the limit
MOST_FINALISTS = 6
RESERVE = 0.35  # of the time, for what comes behind the search
NEAR_BEST = 0.8  # of the best rate: below it a prediction is not worth a measurement
BEYOND = 3.0  # times the rate that was asked for: what is beyond it is of no interest
START_SECONDS = 1.0  # of a server, a load's share of it; before the warm-up and the last answers
LONGER = 1.25  # times its share of the time, that a load may take for the sake of REQUESTS
SHORT_REPEAT = 5.0  # seconds of a load that verifies, which it may always have for as many
SERVER_SECONDS = 2.0  # of one that is started
HEATS_SHARE = 0.65  # of the time for the search
ROUNDS_SHARE = 1.5  # all rounds of heats, over the first
LEAST_RUNNERS, MOST_RUNNERS = 4, 24


class RateSearch:
    """Measures, and leaves the default in what was found. One that does not hold what the best one
    so far holds is asked no further; each result corrects the predictions that are left."""

    def __init__(self, run: Optimization, directory: Path) -> None:
        self.run = run
        self.directory = directory
        self.found: Found = run.found
        self.trials = self.found.trials
        self.order = run.order
        self.started = time.monotonic()
        self.budget = run.budget.left
        self.least_seconds = min(3.0, max(0.5, self.order.budget_seconds / 25))  # of a load
        self.compared: dict[str, str] = {}  # ids of those who only ran heats -> whose search counts
        self.correction = 1.0  # measured over predicted, of what was measured so far
        self.around = START_SECONDS  # a load's arrivals
        self.least_repeat = 0.0  # of a load, if that many requests want it

    def play(self) -> None:
        found = self.found
        found.default = default = found.entries.of(self.run.default)
        if (first := self._promising()) is not None:
            self.around += 2 * self._answer_seconds(found.entries.of(first.candidate))
        count = self._num_runners()
        finalists = self._finalists(count or self._num_affordable())
        # Those that are predicted to be far behind the first are hardly asked anything.
        near = sum(self._expected(e) >= NEAR_BEST * self._expected(finalists[0]) for e in finalists)
        loads = PROBES * (near + 1) + 2 * LEAST_REPEATS
        self.load_seconds = min(
            MOST_SECONDS, max(self.least_seconds, self.budget / loads - self.around)
        )
        self.searched_seconds = self.load_seconds
        affordable = self.budget * (1 - RESERVE) / (near + 1) / (self.load_seconds + self.around)
        self.max_probes = int(min(MAX_PROBES, max(LEAST_PROBES, affordable)))
        self.width = 1.01 * (STEP - 1) if self.run.is_brief else RESOLUTION
        if count:
            self._play_heats(finalists)
            waiting = []
        else:
            waiting = finalists
        while waiting and (not self.is_late() or not self.best()):
            waiting.sort(key=self._expected, reverse=True)
            entry = waiting.pop(0)
            best = self.best()
            floor = best.rate if best else 0.0
            if best and self._expected(entry) < NEAR_BEST * floor:
                entry.drop("measured", f"not measured: expected {self._expected(entry):.3g}/s")
                continue
            self._measure(entry, floor)
        for entry in waiting:
            entry.drop("measured", "not measured: the time for it was spent")
        if default.measured is None and self._is_worth_a_load(default):
            self._measure(default, floor=0.0)
        self._turn_measured_knobs()
        self._measure_rung()

    def _answer_seconds(self, entry: Entry) -> float:
        """Without much of a queue: as in a warm-up, and as long as the last answer of a load."""
        if not entry.predicted_rate:
            return 0.0
        easy = self.found.predictor.point(entry.candidate, entry.predicted_rate / 2)
        return 0.0 if easy is None else easy.latencies["e2e"]["mean"] or 0.0

    def _finalists(self, count: int) -> list[Entry]:
        """By predicted rate, each variant once before any comes twice; without the default."""
        entries = self.found.entries
        able = [entries.of(one) for one in ranked_candidates(self._ranked(), len(entries.all))]
        able = [one for one in able if one.candidate != self.run.default]
        for entry in able[count:]:
            entry.drop("simulated", f"predicted to hold {entry.predicted_rate:.3g}/s: not measured")
        return able[:count]

    def _ranked(self) -> list[Ranked]:
        return [
            Ranked(one.candidate, one.predicted_rate, one.censored)
            for one in self.found.entries.all
            if one.predicted_rate and not one.dropped
        ]

    def _promising(self) -> Ranked | None:
        able = [one for one in self._ranked() if not one.censored]
        return max(able, key=lambda one: one.score, default=None)

    def _num_affordable(self) -> int:
        """Candidates that a search each is made for, the default besides. Loads of fewer requests
        than those of heats say little: rather fewer candidates, if there is no time for both."""
        first = self._promising()
        rate = self.order.need.rate or (first.score if first else math.inf)
        load = self._heat_seconds(rate)
        each = SERVER_SECONDS + PROBES * (min(MOST_SECONDS, load) + self.around)
        affordable = round(self.budget * (1 - RESERVE) / each)
        return max(1, min(MOST_FINALISTS, affordable - 1))

    # ---- heats

    def _num_runners(self) -> int:
        """Candidates that take part in heats; 0: a search for each tells more. Heats say who holds
        most, and nothing about latency at a rate that somebody asked for."""
        need = self.order.need
        first = self._promising()
        if need.rate is not None or need.objective == "latency" or first is None:
            return 0
        each = SERVER_SECONDS + 2 * (self._heat_seconds(first.score) + START_SECONDS)
        count = int(self.budget * (1 - RESERVE) * HEATS_SHARE / (ROUNDS_SHARE * each))
        return 0 if count < LEAST_RUNNERS else min(count, MOST_RUNNERS)

    def _heat_seconds(self, rate: float) -> float:
        """Of a load: what is over before anybody has waited would hold any rate."""
        return round(max(self.least_seconds, heats.REQUESTS / rate), 3)

    def _play_heats(self, finalists: list[Entry]) -> None:
        """The best one is searched; what the others hold follows from how they compare with it."""
        by_id = {entry.id: entry for entry in finalists}
        runners = [heats.Runner(one.id, one.predicted_rate or 1.0) for one in finalists]
        ends = self.started + self.budget * (1 - RESERVE) * HEATS_SHARE

        def load(runner: heats.Runner, offered: heats.Offered) -> list[LoadPoint]:
            candidate = by_id[runner.name].candidate
            self.run.progress(f"the same loads for {candidate.label}")
            run = self.trials.loader(candidate, self._heat_seconds)
            with self.trials.server(candidate, self.directory) as server:
                return [run(server, rate, seed) for rate, seed in offered]

        held = heats.play(runners, runners[0].predicted, load, heat_seeds(self.order.seed), ends)
        leaders = sorted(held, key=lambda name: -held[name])
        best = None
        for name in leaders:
            best = by_id[name]
            self.correction = held[name] / (best.predicted_rate or held[name])
            self._measure(best, floor=0.0)
            if best.rate > 0:
                break
        for runner in runners:
            self._keep(runner, by_id[runner.name], held, best)

    def _keep(
        self,
        runner: heats.Runner,
        entry: Entry,
        held: Mapping[str, float],
        best: Entry | None,
    ) -> None:
        points = [*runner.aimed, *runner.points]
        if entry.measured is not None:
            entry.measured.points += points
        elif runner.failed is not None:
            entry.measured = Measured(0.0, points=points, failed=runner.failed)
            entry.drop("measured", runner.failed)
        elif runner.name not in held:
            why = points[-1].why if points else "the time for it was spent"
            entry.drop("measured", f"not measured: {why}")
        elif best is not None:
            rate = best.rate * held[runner.name] / held[best.id]
            entry.measured, entry.stage = Measured(rate, rate, points=points), "measured"
            self.compared[entry.id] = best.id

    # ---- searches

    def _turn_measured_knobs(self) -> None:
        from trimtab.optimizer.run import MEASURED_KNOBS

        for knob in self.run.knobs:
            best = self.best()
            if knob.name not in MEASURED_KNOBS or best is None or self.is_late():
                continue
            for candidate in neighbours(best.candidate, knob)[:1]:
                entry = self.found.entries.of(candidate)
                entry.quality, entry.memory = best.quality, best.memory
                if entry.measured is None:
                    self._measure(entry, floor=best.rate)

    def _measure_rung(self) -> None:
        """The best one's variant with default knobs: what the variant alone gains."""
        best = self.best()
        if best is None or not best.candidate.run_changes or self.is_late():
            return
        entry = self.found.entries.of(best.candidate.unturned)
        if entry.measured is None:
            self._measure(entry, floor=0.0)

    def _measure(self, entry: Entry, floor: float) -> None:
        self.run.progress(f"measuring {entry.candidate.label}")
        best = self.best()
        known = floor or (best.rate if best else 1.0)
        start = entry.predicted_rate * self.correction if entry.predicted_rate else known
        most, asked = self.found.predictor.highest(entry.candidate.variant), self.order.need.rate
        if asked is not None:
            start, most = asked, min(most, BEYOND * asked)
        load = self.trials.loader(entry.candidate, self.seconds_of)
        with self.trials.server(entry.candidate, self.directory) as server:
            seeds = search_seeds(self.order.seed)
            measured = measure_rate(
                server, load, seeds, start, floor, most, self.max_probes, self.width
            )
            if server.is_started:
                measured.peak_memory_bytes = server.get().peak_memory_bytes()
        entry.measured, entry.stage, entry.dropped = measured, "measured", None
        if measured.failed is not None:
            entry.drop("measured", measured.failed)
        elif measured.censored_at is not None:
            entry.censored = True
            entry.drop("measured", f"does not hold {measured.censored_at:.3g}/s")
        elif measured.rate <= 0:
            entry.drop("measured", "does not meet the SLO at any rate")
        elif entry.predicted_rate and asked is None:
            ratio = measured.rate / entry.predicted_rate
            self.correction = math.sqrt(self.correction * ratio)

    def _is_worth_a_load(self, default: Entry) -> bool:
        """It may hold a rate, as one may whose steps could not be measured; or nobody was loaded,
        and by how much the need is missed is to be said."""
        dropped = default.dropped
        if dropped is None or default.predicted_rate or dropped["stage"] == "calibrate":
            return True
        nobody = all(entry.measured is None for entry in self.found.entries.all)
        return nobody and not default.lacks

    def seconds_of(self, rate: float) -> float:
        """Of a load: long enough for REQUESTS of them, within what the budget allows."""
        return self._seconds(rate, self.load_seconds, self.least_repeat)

    def searched_seconds_of(self, rate: float) -> float:
        """The same before `lengthen`."""
        return self._seconds(rate, self.searched_seconds)

    def _seconds(self, rate: float, usual: float, least: float = 0.0) -> float:
        most = max(self.least_seconds, least, min(MOST_SECONDS, LONGER * usual))
        return round(min(max(usual, REQUESTS / rate), most), 3)

    def _expected(self, entry: Entry) -> float:
        return (entry.predicted_rate or 0.0) * self.correction

    def best(self) -> Entry | None:
        able = [e for e in self.found.entries.all if e.rate > 0 and self.is_good(e)]
        return max(able, key=lambda one: one.rate) if able else None

    def is_good(self, entry: Entry) -> bool:
        """In quality and memory; the unmodified model always is."""
        if entry.candidate.variant == self.found.entries.baseline:
            return True
        return entry.quality is not None and entry.quality.meets

    def is_late(self) -> bool:
        return time.monotonic() - self.started > self.budget * (1 - RESERVE)

    def lengthen(self, num_alike: int, num_shorter: int) -> None:
        """What time is left makes the loads that verify longer; besides, so many of their length
        are to come, and so many of the one before."""
        left = self.budget - (time.monotonic() - self.started)
        left -= num_shorter * (self.searched_seconds + self.around)
        each = left / (2 * LEAST_REPEATS + num_alike) - self.around
        self.load_seconds = max(self.load_seconds, min(MOST_SECONDS, each))
        self.least_repeat = SHORT_REPEAT
