"""Whether the choice keeps its word: loads with seeds that nothing else had, the default beside it.

    rates     what nearly every load should hold, or the rate that was asked for
    repeats   choice and default in turn, A B B A A B
    lowered   the rate of whoever missed one, by how far it missed; its repeats begin again

What a client spoiled counts neither way, and without at least two that count nothing was verified.
Two that held are enough, too, when the run is over its time; a run of a minute that is over it
repeats the choice alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.optimizer.entries import Entry
from trimtab.optimizer.measure import LazyServer, lowered
from trimtab.optimizer.points import LoadPoint
from trimtab.optimizer.stages import Progress
from trimtab.optimizer.trials import repeat_seeds
from trimtab.optimizer.usage import use_of

if TYPE_CHECKING:
    from trimtab.optimizer.found import Found

LEAST_REPEATS = 3
LEAST_VALID = 2
MOST_LOADS = 2 * LEAST_REPEATS  # at one rate, spoiled ones included
MAX_ATTEMPTS = 6  # to find a rate that holds every time


@dataclass
class Contestant:
    """Somebody whose rate is verified."""

    entry: Entry
    server: LazyServer
    rate: float
    points: list[LoadPoint] = field(default_factory=list)  # at this rate
    earlier: list[LoadPoint] = field(default_factory=list)  # at those that it did not hold
    num_lowered: int = 0
    failed: str | None = None

    @property
    def num_valid(self) -> int:
        return sum(point.valid for point in self.points)

    def is_settled(self, least: int = LEAST_REPEATS) -> bool:
        """Two of six do where the client spoiled the others."""
        enough = self.num_valid >= least or len(self.points) >= MOST_LOADS
        return self.failed is not None or enough

    def take(self, point: LoadPoint, may_lower: bool) -> None:
        self.points.append(point)
        if point.valid and not point.met:
            if may_lower and self.num_lowered < MAX_ATTEMPTS:
                self.num_lowered += 1
                self.earlier += self.points
                self.points = []
                self.rate *= lowered(point.margin)
            else:
                self.failed = f"does not hold {self.rate:.3g}/s every time"
        elif len(self.points) >= MOST_LOADS and self.num_valid < LEAST_VALID:
            self.failed = f"could not be verified: {point.why}"


Load = Callable[[Contestant, int], LoadPoint]  # at its rate, with a seed


def verify(
    contestants: Sequence[Contestant],
    load: Load,
    seeds: Iterator[int],
    may_lower: bool,
    is_late: Callable[[], bool] = lambda: False,
) -> None:
    """Until all are settled, the same seeds for all, A B B A A B ...: a machine that drifts does so
    for everybody."""
    forth, least = True, LEAST_REPEATS
    while not all(one.is_settled(least) for one in contestants):
        seed = next(seeds)
        for one in contestants if forth else reversed(contestants):
            if not one.is_settled(least):
                one.take(load(one, seed), may_lower)
        forth = not forth
        if is_late():
            least = LEAST_VALID


class Repeats:
    """Leaves `rate` in what was found, and no `chosen` if the choice holds no rate every time."""

    def __init__(
        self,
        found: Found,
        directory: Path,
        seconds_of: Callable[[float], float],
        progress: Progress,
        is_late: Callable[[], bool],
    ) -> None:
        self.found = found
        self.directory = directory
        self.seconds_of = seconds_of
        self.progress = progress
        self.is_late = is_late
        self.seeds = repeat_seeds(found.order.seed)

    def play(self, with_default: bool = True) -> None:
        """Without the default its rate is what nearly every load should hold, unverified."""
        chosen, default = self.found.chosen, self.found.default
        if chosen is None or chosen.measured is None:
            return
        entries = [chosen]
        if default is not None and default is not chosen and default.rate > 0 and with_default:
            entries.append(default)
        asked = self.found.order.need.rate
        first = [asked or one.rate for one in entries]
        with contextlib.ExitStack() as stack:
            contestants = [
                Contestant(
                    one,
                    stack.enter_context(self.found.trials.server(one.candidate, self.directory)),
                    rate,
                )
                for one, rate in zip(entries, first, strict=True)
            ]
            self.progress(f"checking {first[0]:.3g} requests/s, again and again")
            verify(contestants, self._load, self.seeds, asked is None, self.is_late)
            for one in contestants:
                self._keep(one)
        if chosen.dropped is not None:
            self.found.chosen = None
        self.found.rate = contestants[0].rate
        self.found.load_seconds = self.seconds_of(contestants[0].rate)

    def _load(self, one: Contestant, seed: int) -> LoadPoint:
        if not one.points and one.server.is_started:
            one.server.get().lap()  # what it used is counted from here
        return self.found.trials.load(
            one.entry.candidate, self.seconds_of, one.server, one.rate, seed, is_compared=False
        )

    def _keep(self, one: Contestant) -> None:
        measured = one.entry.measured
        assert measured is not None
        measured.repeats = one.points
        measured.points += one.earlier
        measured.rate = 0.0 if one.failed else one.rate
        if one.failed is not None:
            one.entry.drop("measured", one.failed)
        if one.server.is_started:
            measured.usage = use_of(self.found, one.entry, one.server.get().lap(), one.points)
