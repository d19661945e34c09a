"""Who is worth a search of its own: short loads, the same for all, and fewer in each round.

A search draws requests of its own and ends in a rate that is as high as they were kind; that
scatters more than configurations differ. Here everybody gets the same requests at the same two
rates, and what is compared is how much room each leaves:

    log rate   =   mean over its loads of   log(offered rate) + margin / steepness - kindness
                                            + slowness * apart
    standing   =   that, and what was predicted, weighed like PREDICTED_LOADS loads

`margin` is log(limit / observed); `steepness`, how fast it falls with log rate, is of all loads
together; `kindness` is of a load; `apart` is the share of it in which the machine's cores lay apart
(trimtab.executors.placement), `slowness` what that costs. A third of the field goes on to the next
round, around the leader's rate. (Successive halving: Jamieson and Talwalkar, AISTATS 2016; common
random numbers.)
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import NamedTuple

from trimtab.optimizer.points import LoadPoint
from trimtab.optimizer.served import TrialFailedError

REQUESTS = 24  # of a load
REACH = 1.35  # the two rates are the leader's, divided by it and times it
FAR = 1.5  # margins beyond it say that a rate is far from the limit, and no more
STEEPNESS = 2.5  # until loads say otherwise, and as much as PRIOR_SPREAD of them
LEAST_STEEPNESS, MOST_STEEPNESS = 0.5, 8.0
PRIOR_SPREAD = 0.2
TURNS = 30
SLOWNESS = 0.2  # log rate; until loads say otherwise, and as much as SLOWNESS_PRIOR of them
SLOWNESS_PRIOR = 1.0
PREDICTED_LOADS = 2
KEPT = 3  # one in so many goes on
LAST = 2  # of a round behind which there is none
AIM_LOADS = 5  # at most, to find the leader's rate
FAR_STEP = 3.0  # from where it is far
AIMED = 0.5  # |margin| that is near enough


class Probe(NamedTuple):
    """Of a load. `rate` and `seed` are the same for all who had it."""

    rate: float  # offered
    margin: float
    seed: int
    apart: float = 0.0  # share of the time in which the cores lay apart


def steepness_of(probes: Mapping[str, Sequence[Probe]]) -> float:
    """How fast margins fall with log rate, within each one's loads."""
    spread, fall = PRIOR_SPREAD, PRIOR_SPREAD * STEEPNESS
    for own in probes.values():
        x = [math.log(one.rate) for one in own]
        y = [_room(one) for one in own]
        middle, height = fmean(x), fmean(y)
        spread += math.fsum((a - middle) ** 2 for a in x)
        fall -= math.fsum((a - middle) * (b - height) for a, b in zip(x, y, strict=True))
    return min(MOST_STEEPNESS, max(LEAST_STEEPNESS, fall / spread))


class _Limit(NamedTuple):
    load: tuple[float, int]
    apart: float
    value: float  # log of the rate at which the margin would be 0


def rates_held(probes: Mapping[str, Sequence[Probe]]) -> dict[str, float]:
    """By name, requests a second: where its margin would be 0. Each needs a probe. How kind the
    requests of a load were counts for nobody: it is what all who had it have in common (two-way
    fit, by turns)."""
    steepness = steepness_of(probes)
    known = {
        name: [
            _Limit((one.rate, one.seed), one.apart, math.log(one.rate) + _room(one) / steepness)
            for one in own
        ]
        for name, own in probes.items()
    }
    loads = {one.load for own in known.values() for one in own}
    kind = dict.fromkeys(loads, 0.0)
    slowness = 0.0
    held: dict[str, float] = {}
    for _ in range(TURNS if loads else 0):
        held = {
            name: fmean([one.value + slowness * one.apart - kind[one.load] for one in own])
            for name, own in known.items()
        }
        gaps: dict[tuple[float, int], list[float]] = {load: [] for load in loads}
        for name, own in known.items():
            for one in own:
                gaps[one.load].append(one.value + slowness * one.apart - held[name])
        kind = {load: fmean(values) for load, values in gaps.items()}
        typical = fmean(list(kind.values()))
        kind = {load: value - typical for load, value in kind.items()}
        weight, sum_ = SLOWNESS_PRIOR, SLOWNESS_PRIOR * SLOWNESS
        for name, own in known.items():
            for one in own:
                weight += one.apart**2
                sum_ += one.apart * (held[name] + kind[one.load] - one.value)
        slowness = sum_ / weight
    return {name: math.exp(value) for name, value in held.items()}


def standings(
    probes: Mapping[str, Sequence[Probe]], predicted: Mapping[str, float]
) -> dict[str, float]:
    """`rates_held`, each drawn to what was predicted of it against the others. The offset of all
    predictions is of no account."""
    held = rates_held(probes)
    known = [name for name in held if predicted.get(name)]
    gaps = {name: math.log(held[name] / predicted[name]) for name in known}
    weights = {name: float(len(probes[name])) for name in known}
    total = math.fsum(weights.values())
    offset = math.fsum(weights[name] * gaps[name] for name in known) / total if total else 0.0
    for name in known:
        share = PREDICTED_LOADS / (PREDICTED_LOADS + weights[name])
        held[name] *= math.exp(share * (offset - gaps[name]))
    return held


@dataclass
class Runner:
    """Somebody who takes part."""

    name: str
    predicted: float  # requests a second
    aimed: list[LoadPoint] = field(default_factory=list)  # loads that only the first one gets
    points: list[LoadPoint] = field(default_factory=list)
    failed: str | None = None

    @property
    def probes(self) -> list[Probe]:
        return [
            Probe(point.rate, point.margin, point.seed, point.apart)
            for point in self.points
            if point.valid
        ]


Offered = Sequence[tuple[float, int]]  # rates and seeds
Load = Callable[[Runner, Offered], list[LoadPoint]]  # TrialFailedError if its server fails


def play(
    runners: Sequence[Runner], rate: float, load: Load, seeds: Iterator[int], ends: float
) -> dict[str, float]:
    """Rounds until LAST have played one, or it is `ends` (time.monotonic()). In each, who stands
    first is loaded first, at the beginning as `runners` come; `rate`: around which. Gives requests
    a second by name, of those that were loaded."""
    left = list(runners)
    predicted = {one.name: one.predicted for one in runners}
    rate = _aim(left, rate, load, seeds)
    while True:
        offered = [(rate / REACH, next(seeds)), (rate * REACH, next(seeds))]
        for place, one in enumerate(left):
            if place and time.monotonic() > ends:
                break
            one.points += _loaded(one, offered, load)
        found = standings({o.name: o.probes for o in runners if _counts(o)}, predicted)
        able = sorted((o for o in left if o.name in found), key=lambda o: -found[o.name])
        if time.monotonic() > ends or len(able) < 2 or len(left) <= LAST:
            return found
        left = able[: max(LAST, math.ceil(len(able) / KEPT))]
        rate = found[left[0].name]


def _counts(one: Runner) -> bool:
    return one.failed is None and bool(one.probes)


def _loaded(one: Runner, offered: Offered, load: Load) -> list[LoadPoint]:
    try:
        return load(one, offered)
    except TrialFailedError as error:
        one.failed = str(error)
        return []


def _aim(runners: Sequence[Runner], rate: float, load: Load, seeds: Iterator[int]) -> float:
    """Near the limit of the first one that can be loaded: before there were any loads, predictions
    may be far off."""
    for one in runners:
        for _ in range(AIM_LOADS):
            one.aimed += _loaded(one, [(rate, next(seeds))], load)
            if one.failed or not one.aimed[-1].valid:
                break
            margin = one.aimed[-1].margin
            if abs(margin) >= FAR:
                rate *= FAR_STEP if margin > 0 else 1 / FAR_STEP
                continue
            rate *= math.exp(margin / STEEPNESS)
            if abs(margin) <= AIMED:
                return rate
        if not one.failed:
            return rate
    return rate


def _room(probe: Probe) -> float:
    return min(FAR, max(-FAR, probe.margin))
