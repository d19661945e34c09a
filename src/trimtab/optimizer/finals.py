"""The last stage: survivors on the real server, then the choice and the default in turn.

search           the highest rate of each (rate_search.py)
lesson           how loads differ from steps at rest, for the predictions that follow
luck             rates are lowered to what nearly every load holds, and by the headroom
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
from trimtab.optimizer.lesson import Load, learn
from trimtab.optimizer.points import LoadPoint
from trimtab.optimizer.rate_search import RateSearch
from trimtab.optimizer.reliable import Gap, Loads, gaps_of, reliable_rate, spread_of
from trimtab.optimizer.repeats import Repeats
from trimtab.optimizer.trials import simulated_seeds

if TYPE_CHECKING:
    from trimtab.optimizer.found import Found
    from trimtab.optimizer.run import Optimization

MOST_RELIABLE = 3  # candidates whose scatter is simulated, the default besides
LEAST_LUCK_SECONDS, LUCK_SHARE = 6.0, 0.1  # of the budget, that all of those simulations take
GUESSED = 0.75  # of a rate that was found, where no simulation says how loads scatter
OVERRUN = 0.1  # of the budget, that repeats may take beyond it before they are as few as can be
LASTING_REQUESTS = 200  # of a load that lasts
LASTING = 6, 0.95  # simulated ones, and how many of them shall hold
AS_MEASURED = 20, 0.9  # likewise; in short ones a few requests decide
COMMON_SHARE = 0.5  # of the default's rate: where latencies are compared


@dataclass
class Finals:
    """Measures, and leaves `chosen`, `default`, `rate` and the frontier in what was found."""

    run: Optimization

    def __post_init__(self) -> None:
        self.found: Found = self.run.found
        self.trials = self.found.trials
        self.order = self.run.order
        if self.order.need.objective == "energy" and not EnergyMeter().is_available:
            raise UserError("--minimize energy: this machine does not tell what it takes")

    def play(self) -> None:
        with tempfile.TemporaryDirectory(prefix="trimtab-optimize-") as directory:
            self.search = RateSearch(self.run, Path(directory))
            self.search.play()
            self._learn()
            count = len(self._to_compare())
            self.search.lengthen(*((count, 0) if self._is_fine else (0, count)))
            self._trim_luck()
            self._compare()
            self._decide()
            self._repeat(Path(directory))

    def _repeat(self, directory: Path) -> None:
        ends = time.monotonic() + self.run.budget.left + OVERRUN * self.order.budget_seconds
        repeats = Repeats(
            self.found,
            directory,
            self.search.seconds_of,
            self.run.progress,
            lambda: time.monotonic() > ends,
        )
        repeats.play(with_default=not self.run.is_brief or self.run.budget.left > 0)

    # ---- luck

    def _trim_luck(self) -> None:
        """Rates become those that nearly every load holds (reliable.py). What a search finds is as
        high as its own requests were kind: the luckiest would be chosen. Those of which nothing is
        known, far behind, never simulated or out of time, are lowered as much as the most lowered
        of the others; all by GUESSED if they are all. Of that the headroom is kept free."""
        if self.order.need.rate is not None:
            return
        able = sorted((e for e in self.found.entries.all if e.rate > 0), key=lambda e: -e.rate)
        known = [e for e in able if self.found.predictor.calibration(e.candidate) is not None]
        default = self.found.default
        compared = self.search.compared
        alone = [e for e in known if e.id not in compared]
        looked_at = [e for e in alone if e is default or e in alone[:MOST_RELIABLE]]
        shares: dict[str, float] = {}
        ends = time.monotonic() + max(LEAST_LUCK_SECONDS, LUCK_SHARE * self.order.budget_seconds)
        gaps = [gaps_of(self._pairs(entry)) for entry in looked_at]
        spread = spread_of(gaps)
        for place, entry in enumerate(looked_at):
            now = time.monotonic()
            share = (ends - now) / (len(looked_at) - place)
            rate = self._reliable(entry, gaps[place], spread, now + share)
            if rate is not None:
                shares[entry.id] = rate / entry.rate
        rest = min(shares.values(), default=GUESSED)
        for entry in able:
            assert entry.measured is not None
            share = shares.get(compared.get(entry.id, entry.id), rest)
            entry.measured.rate *= share * (1 - self.order.need.headroom)
            entry.measured.expected = entry.measured.rate

    def _pairs(self, entry: Entry) -> list[tuple[LoadPoint, LoadPoint]]:
        """Loads, measured and simulated."""
        assert entry.measured is not None
        replay = self.found.predictor.replay
        pairs = [(point, replay(entry.candidate, point)) for point in entry.measured.points]
        return [(real, simulated) for real, simulated in pairs if simulated is not None]

    def _reliable(self, entry: Entry, gaps: list[Gap], spread: float, ends: float) -> float | None:
        predictor, candidate = self.found.predictor, entry.candidate
        self.run.progress(f"how much loads of {candidate.label} scatter")
        seeds = simulated_seeds(self.order.seed)

        def margin(rate: float, number: int, requests: int = 0) -> float:
            seconds = max(self.search.seconds_of(rate), requests / rate)
            played = predictor.play(candidate, rate, seeds[number], seconds)
            assert played is not None
            return played.margin

        lasting = Loads(partial(margin, requests=LASTING_REQUESTS), *LASTING)
        lengths = (lasting, Loads(margin, *AS_MEASURED))
        return reliable_rate(entry.rate, gaps, spread, lengths, lambda: time.monotonic() > ends)

    # ---- what the loads teach

    def _learn(self) -> None:
        predictor = self.found.predictor
        loads: list[Load] = []
        for entry in self.found.entries.all:
            candidate = entry.candidate
            if entry.measured is None or predictor.calibration(candidate) is None:
                continue
            key, replay = predictor.key_of(candidate), predictor.replayer(candidate)
            loads += [Load(key, point, replay) for point in entry.measured.points]
            self.found.taught |= {(entry.id, p.rate, p.seed) for p in entry.measured.points}
        ends = time.monotonic() + max(3.0, 0.05 * self.order.budget_seconds)
        self.run.progress("fitting predictions to the loads")
        predictor.teach(learn(loads, lambda: time.monotonic() > ends))

    # ---- latencies at one rate

    @property
    def _is_fine(self) -> bool:
        """Latencies decide."""
        return self.order.need.objective == "latency"

    def _to_compare(self) -> list[Entry]:
        return [
            entry
            for entry in self.found.entries.all
            if entry.rate > 0 and entry.id not in self.search.compared
        ]

    def _compare(self) -> None:
        default = self.found.default
        rate = self.order.need.rate
        if rate is None:
            slowest = min((e.rate for e in self.found.entries.all if e.rate > 0), default=0.0)
            rate = COMMON_SHARE * slowest
        self.common_rate = rate
        is_late = self.search.is_late() and not self._is_fine
        if not rate or default is None or is_late:
            return
        length = self.search.seconds_of if self._is_fine else self.search.searched_seconds_of
        for entry in self._to_compare():
            assert entry.measured is not None
            known = [p for p in entry.measured.points if p.rate == rate]
            if known or (self.search.is_late() and entry is not self.search.best()):
                continue
            load = self.trials.loader(entry.candidate, length)
            with self.trials.server(entry.candidate, self.search.directory) as server:
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
                    meets_need=entry.rate >= (need.rate or 1e-9) and self.search.is_good(entry),
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
