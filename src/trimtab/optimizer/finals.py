"""The last stage: survivors on the real server, then the choice and the default in turn.

default          its highest rate
shortlist        the best predicted first; one that does not hold what the best one so far holds
                 is asked no further. Each result corrects the predictions that are left
measured knobs   what the simulator does not know, turned on the best one
lesson           how loads differ from steps at rest, for the predictions that follow
luck             rates are lowered to what nearly every load holds
at one rate      all of them, for latencies that can be compared
repeats          choice and default, fresh seeds (repeats.py)
"""

from __future__ import annotations

import math
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.bench.energy import EnergyMeter
from trimtab.errors import UserError
from trimtab.optimizer.decide import Standing, choose, frontier
from trimtab.optimizer.entries import Entry
from trimtab.optimizer.lesson import Lesson, Replay, learn
from trimtab.optimizer.measure import MAX_PROBES, measure_rate
from trimtab.optimizer.points import LoadPoint
from trimtab.optimizer.reliable import reliable_rate
from trimtab.optimizer.repeats import LEAST_REPEATS, Repeats
from trimtab.optimizer.search import Ranked
from trimtab.optimizer.search import shortlist as ranked_candidates
from trimtab.optimizer.space import Candidate, neighbours
from trimtab.optimizer.trials import search_seeds, simulated_seeds

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
MOST_RELIABLE = 3  # candidates whose scatter is simulated, the default besides
GUESSED = 0.75  # of a rate that was found, where no simulation says how loads scatter
COMMON_SHARE = 0.5  # of the default's rate: where latencies are compared


@dataclass
class Finals:
    """Measures, and leaves `chosen`, `default`, `rate` and the frontier in what was found."""

    run: Optimization

    def __post_init__(self) -> None:
        self.found: Found = self.run.found
        self.trials = self.found.trials
        self.order = self.run.order
        self.started = time.monotonic()
        self.budget = self.run.budget.left
        self.least_seconds = min(3.0, max(0.5, self.order.budget_seconds / 20))  # of a load
        self.correction = 1.0  # measured over predicted, of what was measured so far
        if self.order.need.objective == "energy" and not EnergyMeter().is_available:
            raise UserError("--minimize energy: this machine does not tell what it takes")

    def play(self) -> None:
        with tempfile.TemporaryDirectory(prefix="trimtab-optimize-") as directory:
            self.directory = Path(directory)
            self._search()
            self._learn()
            self._lengthen()
            self._trim_luck()
            self._compare()
            self._decide()
            Repeats(self.found, self.directory, self.seconds_of, self.run.progress).play()

    # ---- the search

    def _search(self) -> None:
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
        while waiting and (not self._is_late() or not self._best()):
            waiting.sort(key=self._expected, reverse=True)
            entry = waiting.pop(0)
            best = self._best()
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
            best = self._best()
            if knob.name not in MEASURED_KNOBS or best is None or self._is_late():
                continue
            for candidate in neighbours(best.candidate, knob)[:1]:
                entry = self.found.entries.of(candidate)
                entry.quality, entry.memory = best.quality, best.memory
                if entry.measured is None:
                    self._measure(entry, floor=best.rate)

    def _measure_rung(self) -> None:
        """The best one's variant with default knobs: what the variant alone gains."""
        best = self._best()
        if best is None or not best.candidate.run_changes or self._is_late():
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

    def _best(self) -> Entry | None:
        able = [e for e in self.found.entries.all if e.rate > 0 and self._is_good(e)]
        return max(able, key=lambda one: one.rate) if able else None

    def _is_good(self, entry: Entry) -> bool:
        """In quality and memory; the unmodified model always is."""
        if entry.candidate.variant == self.found.entries.baseline:
            return True
        return entry.quality is not None and entry.quality.meets

    def _is_late(self) -> bool:
        return time.monotonic() - self.started > self.budget * (1 - RESERVE)

    def _lengthen(self) -> None:
        """What time is left makes the loads that verify longer."""
        left = self.budget - (time.monotonic() - self.started)
        self.load_seconds = max(
            self.load_seconds, min(MOST_SECONDS, left / (2 * LEAST_REPEATS) - START_SECONDS)
        )

    def _trim_luck(self) -> None:
        """Rates become those that nearly every load holds (reliable.py). What a search finds is as
        high as its own requests were kind: the luckiest would be chosen. Those that are not looked
        at, far behind or never simulated, are lowered as much as the most lowered of the others;
        all by GUESSED where there is no time for it."""
        if self.order.need.rate is not None:
            return
        able = sorted((e for e in self.found.entries.all if e.rate > 0), key=lambda e: -e.rate)
        known = [e for e in able if self.found.predictor.calibration(e.candidate) is not None]
        default = self.found.default
        looked_at = [e for e in known if e is default or e in known[:MOST_RELIABLE]]
        shares: dict[str, float] = {}
        for entry in looked_at:
            rate = self._reliable(entry)
            if rate is None:
                shares.clear()
                break
            shares[entry.id] = rate / entry.rate
        rest = min(shares.values(), default=GUESSED)
        for entry in able:
            assert entry.measured is not None
            entry.measured.rate *= shares.get(entry.id, rest)

    def _reliable(self, entry: Entry) -> float | None:
        predictor, candidate = self.found.predictor, entry.candidate
        assert entry.measured is not None
        self.run.progress(f"how much loads of {candidate.label} scatter")
        pairs = []
        for point in entry.measured.points:
            simulated = predictor.replay(candidate, point)
            assert simulated is not None
            pairs.append((point, simulated))
        seeds = simulated_seeds(self.order.seed)

        def margin(rate: float, number: int) -> float:
            played = predictor.play(candidate, rate, seeds[number], self.seconds_of(rate))
            assert played is not None
            return played.margin

        ends = time.monotonic() + max(5.0, 0.05 * self.order.budget_seconds)
        return reliable_rate(entry.rate, pairs, margin, lambda: time.monotonic() > ends)

    # ---- what the loads teach

    def _learn(self) -> None:
        """The same for all candidates: it is of the machine and of what stands before an engine."""
        points: list[tuple[LoadPoint, Replay]] = []
        for entry in self.found.entries.all:
            if entry.measured is None or self.found.predictor.calibration(entry.candidate) is None:
                continue
            replay = partial(self._replay, entry.candidate)
            points += [(point, replay) for point in entry.measured.points if point.met]
            self.found.taught |= {(entry.id, p.rate, p.seed) for p in entry.measured.points}
        ends = time.monotonic() + max(3.0, 0.05 * self.order.budget_seconds)
        self.run.progress("fitting predictions to the loads")
        self.found.predictor.teach(learn(points, lambda: time.monotonic() > ends))

    def _replay(self, candidate: Candidate, point: LoadPoint, lesson: Lesson) -> LoadPoint:
        found = self.found.predictor.replay(candidate, point, lesson)
        assert found is not None
        return found

    # ---- latencies at one rate

    def _compare(self) -> None:
        default = self.found.default
        rate = self.order.need.rate
        if rate is None:
            slowest = min((e.rate for e in self.found.entries.all if e.rate > 0), default=0.0)
            rate = COMMON_SHARE * slowest
        self.common_rate = rate
        if not rate or default is None:
            return
        for entry in self.found.entries.all:
            if entry.rate <= 0 or entry.measured is None:
                continue
            known = [p for p in entry.measured.points if p.rate == rate]
            if known or (self._is_late() and entry is not self._best()):
                continue
            load = self.trials.loader(entry.candidate, self.seconds_of)
            with self.trials.server(entry.candidate, self.directory) as server:
                entry.measured.points.append(load(server, rate, self.order.seed + 1))

    # ---- the choice

    def standings(self) -> list[Standing]:
        need = self.order.need
        found = []
        for entry in self.found.entries.all:
            if entry.measured is None or entry.measured.failed is not None:
                continue
            found.append(
                Standing(
                    id=entry.id,
                    rate=entry.rate,
                    latency=self._latency(entry),
                    loss=_loss(entry),
                    num_changes=len(self.found.entries.changes(entry.candidate)),
                    meets_need=entry.rate >= (need.rate or 1e-9) and self._is_good(entry),
                )
            )
        return found

    def _latency(self, entry: Entry) -> float:
        """p95 of E2E at the common rate."""
        assert entry.measured is not None
        for point in entry.measured.points:
            if point.rate == self.common_rate:
                return point.latencies["e2e"]["p95"] or math.inf
        return math.inf

    def _decide(self) -> None:
        standings = self.standings()
        best = frontier(standings)
        for entry in self.found.entries.all:
            entry.on_frontier = entry.id in best
        score = "latency" if self.order.need.objective == "latency" else "rate"
        chosen = choose(standings, score)
        by_id = {entry.id: entry for entry in self.found.entries.all}
        self.found.chosen = None if chosen is None else by_id[chosen.id]


def _loss(entry: Entry) -> float:
    """KL divergence from the unmodified model; of that itself 0."""
    if entry.quality is None:
        return 0.0
    found: Any = entry.quality.summary.get("kl:mean")
    return 0.0 if found is None else float(found["value"])
