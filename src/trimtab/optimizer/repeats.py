"""Whether the choice keeps its word: loads with seeds that nothing else had, the default beside it.

    rates     what nearly every load should hold (reliable.py), or the rate that was asked for
    repeats   choice and default in turn, A B B A A B
    lowered   the rate of whoever missed one, by how far it missed; its repeats begin again

What a client spoiled counts neither way, and without at least two that count nothing was verified.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.optimizer.entries import Entry
from trimtab.optimizer.measure import LazyServer, lowered, verify
from trimtab.optimizer.points import LoadPoint
from trimtab.optimizer.reliable import reliable_rate
from trimtab.optimizer.stages import Progress
from trimtab.optimizer.trials import repeat_seeds, simulated_seeds
from trimtab.optimizer.usage import use_of

if TYPE_CHECKING:
    from trimtab.optimizer.run import Found

LEAST_REPEATS = 3
LEAST_VALID = 2
MAX_ATTEMPTS = 6  # to find a rate that holds every time
GUESSED = 0.85  # of a rate that was found from noisy probes, where no simulation says how noisy


@dataclass
class _Contestant:
    entry: Entry
    server: LazyServer
    rate: float
    points: list[LoadPoint] = field(default_factory=list)

    @property
    def missed(self) -> list[LoadPoint]:
        return [point for point in self.points if point.valid and not point.met]

    @property
    def num_valid(self) -> int:
        return sum(point.valid for point in self.points)


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
        with contextlib.ExitStack() as stack:
            contestants = [
                _Contestant(
                    one,
                    stack.enter_context(self.found.trials.server(one.candidate, self.directory)),
                    self._first_rate(one),
                )
                for one in entries
            ]
            self._say(contestants[0])
            self._in_turn(contestants)
            for one in contestants:
                self._settle(one)
                self._keep(one)
        if chosen.dropped is not None:
            self.found.chosen = None
        self.found.rate = contestants[0].rate
        self.found.load_seconds = self.seconds_of(contestants[0].rate)

    def _first_rate(self, entry: Entry) -> float:
        need, predictor = self.found.order.need, self.found.predictor
        assert entry.measured is not None
        if need.rate is not None:
            return need.rate
        candidate = entry.candidate
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

    def _in_turn(self, contestants: list[_Contestant]) -> None:
        by_server = {id(one.server): one for one in contestants}

        def load(server: LazyServer, rate: float, seed: int) -> LoadPoint:
            return self._load(by_server[id(server)], seed)

        servers = [one.server for one in contestants]
        rates = [one.rate for one in contestants]
        found = verify(servers, rates, load, self.seeds, LEAST_REPEATS)
        for one, points in zip(contestants, found, strict=True):
            one.points = points

    def _settle(self, one: _Contestant) -> None:
        """Lower its rate until all its repeats hold; drop it if that has no end."""
        for _ in range(MAX_ATTEMPTS):
            if not one.missed or self.found.order.need.rate is not None:
                break
            one.rate *= lowered(min(point.margin for point in one.missed))
            self._say(one)
            self._again(one, self.seeds)
        if one.missed:
            one.entry.drop("measured", f"does not hold {one.rate:.3g}/s every time")
        elif one.num_valid < LEAST_VALID:
            one.entry.drop("measured", f"could not be verified: {one.points[-1].why}")

    def _again(self, one: _Contestant, seeds: Iterator[int]) -> None:
        """Until one misses."""
        one.points = []
        if one.server.is_started:
            one.server.get().lap()
        while len(one.points) < LEAST_REPEATS and not one.missed:
            one.points.append(self._load(one, next(seeds)))

    def _load(self, one: _Contestant, seed: int) -> LoadPoint:
        return self.found.trials.load(
            one.entry.candidate, self.seconds_of, one.server, one.rate, seed
        )

    def _keep(self, one: _Contestant) -> None:
        measured = one.entry.measured
        assert measured is not None
        measured.repeats = one.points
        measured.rate = one.rate if one.entry.dropped is None else 0.0
        if one.server.is_started:
            measured.usage = use_of(self.found, one.entry, one.server.get().lap(), one.points)

    def _say(self, one: _Contestant) -> None:
        self.progress(
            f"checking {one.rate:.3g} requests/s of {one.entry.candidate.label} "
            f"{LEAST_REPEATS} times"
        )
