"""The highest rates that the survivors hold on the real server, the most promising first."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.optimizer.entries import Entry
from trimtab.optimizer.measure import MAX_PROBES, measure_rate
from trimtab.optimizer.repeats import LEAST_REPEATS
from trimtab.optimizer.search import Ranked
from trimtab.optimizer.search import shortlist as ranked_candidates
from trimtab.optimizer.space import neighbours
from trimtab.optimizer.trials import search_seeds

if TYPE_CHECKING:
    from trimtab.optimizer.run import Found, Optimization

MOST_SECONDS = 60.0  # of a load
REQUESTS = 60  # that a load should have, if time allows
PROBES = 4  # that a finalist takes, about
LEAST_PROBES = 3
MOST_FINALISTS = 6
RESERVE = 0.35  # of the time, for what comes behind the search
NEAR_BEST = 0.8  # of the best rate: below it a prediction is not worth a measurement
HEADROOM = 3.0  # times the rate that was asked for: what is beyond it is of no interest
START_SECONDS = 1.0  # of a server, a load's share of it


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
        self.least_seconds = min(3.0, max(0.5, self.order.budget_seconds / 20))  # of a load
        self.correction = 1.0  # measured over predicted, of what was measured so far

    def play(self) -> None:
        found = self.found
        found.default = default = found.entries.of(self.run.default)
        finalists = self._finalists()
        # Those that are predicted to be far behind the first are hardly asked anything.
        near = sum(self._expected(e) >= NEAR_BEST * self._expected(finalists[0]) for e in finalists)
        loads = PROBES * (near + 1) + 2 * LEAST_REPEATS
        self.load_seconds = min(
            MOST_SECONDS, max(self.least_seconds, self.budget / loads - START_SECONDS)
        )
        affordable = self.budget * (1 - RESERVE) / (near + 1) / (self.load_seconds + START_SECONDS)
        self.max_probes = int(min(MAX_PROBES, max(LEAST_PROBES, affordable)))
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
        if default.measured is None and (default.dropped is None or default.predicted_rate):
            self._measure(default, floor=0.0)
        self._turn_measured_knobs()
        self._measure_rung()

    def _finalists(self) -> list[Entry]:
        """By predicted rate, the default's variant included; as many as the time allows."""
        entries = self.found.entries
        ranked = [
            Ranked(one.candidate, one.predicted_rate, one.censored)
            for one in entries.all
            if one.predicted_rate and not one.dropped
        ]
        affordable = int(self.budget * (1 - RESERVE) / (PROBES * (self.least_seconds + 2)))
        count = max(1, min(MOST_FINALISTS, affordable - 1))
        able = [entries.of(one) for one in ranked_candidates(ranked, len(ranked))]
        able = [one for one in able if one.candidate != self.run.default]
        for entry in able[count:]:
            entry.drop("simulated", f"predicted to hold {entry.predicted_rate:.3g}/s: not measured")
        return able[:count]

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
        start = (entry.predicted_rate or floor or 1.0) * self.correction
        most, asked = self.found.predictor.highest(entry.candidate.variant), self.order.need.rate
        if asked is not None:
            start, most = asked, min(most, HEADROOM * asked)
        load = self.trials.loader(entry.candidate, self.seconds_of)
        with self.trials.server(entry.candidate, self.directory) as server:
            seeds = search_seeds(self.order.seed)
            measured = measure_rate(server, load, seeds, start, floor, most, self.max_probes)
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

    def seconds_of(self, rate: float) -> float:
        """Of a load: long enough for REQUESTS of them, within what the budget allows."""
        most = max(self.least_seconds, min(MOST_SECONDS, 2 * self.load_seconds))
        return round(min(max(self.load_seconds, REQUESTS / rate), most), 3)

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

    def lengthen(self) -> None:
        """What time is left makes the loads that verify longer."""
        left = self.budget - (time.monotonic() - self.started)
        self.load_seconds = max(
            self.load_seconds, min(MOST_SECONDS, left / (2 * LEAST_REPEATS) - START_SECONDS)
        )
