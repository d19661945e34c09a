"""Whether the choice keeps its word: loads with seeds that nothing else had, the default beside it.

    rates     what nearly every load should hold (reliable.py), or the rate that was asked for
    repeats   choice and default in turn, A B B A A B
    lowered   the rate of whoever missed one, by how far it missed; its repeats begin again

What a client spoiled counts neither way, and without at least two that count nothing was verified.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.optimizer.entries import Entry
from trimtab.optimizer.measure import LazyServer, lowered
from trimtab.optimizer.points import LoadPoint
from trimtab.optimizer.reliable import reliable_rate
from trimtab.optimizer.stages import Progress
from trimtab.optimizer.trials import repeat_seeds, simulated_seeds
from trimtab.optimizer.usage import use_of

if TYPE_CHECKING:
    from trimtab.optimizer.run import Found

LEAST_REPEATS = 3
LEAST_VALID = 2
LONG_BUDGET = 180.0  # seconds of a run
MAX_ATTEMPTS = 6  # to find a rate that holds every time
GUESSED = 0.85  # of a rate that was found from noisy probes, where no simulation says how noisy


@dataclass
class Contestant:
    """Somebody whose rate is verified."""

    entry: Entry
    server: LazyServer
    rate: float
    points: list[LoadPoint] = field(default_factory=list)  # at this rate
    num_lowered: int = 0
    failed: str | None = None

    @property
    def num_valid(self) -> int:
        return sum(point.valid for point in self.points)

    @property
    def is_settled(self) -> bool:
        return self.failed is not None or self.num_valid >= LEAST_REPEATS

    def take(self, point: LoadPoint, may_lower: bool) -> None:
        self.points.append(point)
        if point.valid and not point.met:
            if may_lower and self.num_lowered < MAX_ATTEMPTS:
                self.num_lowered += 1
                self.points = []
                self.rate *= lowered(point.margin)
            else:
                self.failed = f"does not hold {self.rate:.3g}/s every time"
        elif len(self.points) >= 2 * LEAST_REPEATS and self.num_valid < LEAST_VALID:
            self.failed = f"could not be verified: {point.why}"


Load = Callable[[Contestant, int], LoadPoint]  # at its rate, with a seed


def verify(
    contestants: Sequence[Contestant], load: Load, seeds: Iterator[int], may_lower: bool
) -> None:
    """Until all are settled, the same seeds for all, A B B A A B ...: a machine that drifts does so
    for everybody."""
    forth = True
    while not all(one.is_settled for one in contestants):
        seed = next(seeds)
        for one in contestants if forth else reversed(contestants):
            if not one.is_settled:
                one.take(load(one, seed), may_lower)
        forth = not forth


class Repeats:
    """Leaves `rate` in what was found, and no `chosen` if the choice holds no rate every time."""

    def __init__(
        self,
        found: Found,
        directory: Path,
        seconds_of: Callable[[float], float],
        progress: Progress,
    ) -> None:
        self.found = found
        self.directory = directory
        self.seconds_of = seconds_of
        self.progress = progress
        self.seeds = repeat_seeds(found.order.seed)

    def play(self) -> None:
        chosen, default = self.found.chosen, self.found.default
        if chosen is None or chosen.measured is None:
            return
        entries = [chosen]
        if default is not None and default is not chosen and default.rate > 0:
            entries.append(default)
        first = self._first_rates(entries)
        with contextlib.ExitStack() as stack:
            contestants = [
                Contestant(
                    one,
                    stack.enter_context(self.found.trials.server(one.candidate, self.directory)),
                    rate,
                )
                for one, rate in zip(entries, first, strict=True)
            ]
            self.progress(f"checking {first[0]:.3g} requests/s, {LEAST_REPEATS} times and more")
            may_lower = self.found.order.need.rate is None
            verify(contestants, self._load, self.seeds, may_lower)
            for one in contestants:
                self._keep(one)
        if chosen.dropped is not None:
            self.found.chosen = None
        self.found.rate = contestants[0].rate
        self.found.load_seconds = self.seconds_of(contestants[0].rate)

    def _first_rates(self, entries: Sequence[Entry]) -> list[float]:
        """Of a short run, that of the default is lowered as much as that of the choice."""
        asked = self.found.order.need.rate
        if asked is not None:
            return [asked] * len(entries)
        rates = [self._reliable(entries[0])]
        for other in entries[1:]:
            if self.found.order.budget_seconds >= LONG_BUDGET:
                rates.append(self._reliable(other))
            else:
                rates.append(rates[0] / entries[0].rate * other.rate)
        return rates

    def _reliable(self, entry: Entry) -> float:
        predictor, candidate = self.found.predictor, entry.candidate
        assert entry.measured is not None
        if predictor.calibration(candidate) is None:
            return GUESSED * entry.rate
        self.progress(f"how much loads of {candidate.label} scatter")
        pairs = []
        for point in entry.measured.points:
            simulated = predictor.replay(candidate, point)
            assert simulated is not None
            pairs.append((point, simulated))
        seeds = simulated_seeds(self.found.order.seed)

        def margin(rate: float, number: int) -> float:
            played = predictor.play(candidate, rate, seeds[number], self.seconds_of(rate))
            assert played is not None
            return played.margin

        ends = time.monotonic() + max(5.0, 0.05 * self.found.order.budget_seconds)
        rate = reliable_rate(entry.rate, pairs, margin, lambda: time.monotonic() > ends)
        return rate or GUESSED * entry.rate

    def _load(self, one: Contestant, seed: int) -> LoadPoint:
        if not one.points and one.server.is_started:
            one.server.get().lap()  # what it used is counted from here
        return self.found.trials.load(
            one.entry.candidate, self.seconds_of, one.server, one.rate, seed
        )

    def _keep(self, one: Contestant) -> None:
        measured = one.entry.measured
        assert measured is not None
        measured.repeats = one.points
        measured.rate = 0.0 if one.failed else one.rate
        if one.failed is not None:
            one.entry.drop("measured", one.failed)
        if one.server.is_started:
            measured.usage = use_of(self.found, one.entry, one.server.get().lap(), one.points)
