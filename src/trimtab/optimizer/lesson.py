"""What loads on the real server taught about it, beyond the steps of an engine at rest.

Steps are measured while nothing else runs. Under load the front process, the client and whoever
else shares the cores take their part, the engine's own code is not in the caches, and guesses are
right more or less often than on a few prompts. Near its limit a server multiplies such
differences: steps that are 5 % longer can make waiting 30 % longer. So what the engine counts for
itself is taken from there, load by load, and only the rest from latencies:

    small       executor's seconds, counted over simulated, in steps of at most SMALL_ROWS rows
    large       and in larger ones: of each load, and on the average
    around      the engine's own seconds around steps, likewise
    guessing    tokens that were guessed right, likewise; on the average: of loads together, since
                in most of them it is a few, and in some many
    request     seconds until the engine has a request: fitted to TTFT (median), ITL and E2E
                (means); residuals are logs of predicted over measured, by Levenberg's method.
                An engine that is busy all the time multiplies whatever a simulation is wrong about
                by 1 / (share of the time that it is idle), so a load counts by that share: of long
                queues a delay of many requests would be made, which others do not have

Where nobody counted, one factor on all steps is fitted, too.

Each load is simulated request by request, at its own pace. What is expected of others is the
average over all. For who had loads of its own it is the average of those, to which the general one
counts as one load more: steps of each variant were measured in other minutes, and a few prompts do
not tell how often its answers repeat themselves. The longest loads teach: servers begin slowly, and
short ones hardly see more than that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from trimtab.optimizer.points import LoadPoint, Work
from trimtab.simulator.simulate import SimulatedServer

ROUNDS = 5
TURNS = 6  # at most, until counted and simulated work agree
AGREED = 0.02
MOST_LOADS = 8  # that teach what is general
OWN_LOADS = 4  # and at most what is of one variant,
OWN_SHARE = 0.5  # if they are as long as that share of the longest
PACE_TRUST = 0.5  # log factor that is as unlikely as a residual of 1
GUESSES_TRUST = 20.0
LEAST_IDLE = 0.05  # share of a load's time, that counts
REACHES = (0.5, 0.05)  # of finite differences
MOST_FACTOR = 8.0  # of a pace and its like: beyond it something else is wrong
MOST_GUESSING = 64.0
COUNTED = {
    "small": "small_seconds",
    "large": "large_seconds",
    "around": "around_seconds",
    "guessing": "num_accepted",
}
METRICS = (("ttft", "p50"), ("itl", "mean"), ("e2e", "mean"))
Floats = npt.NDArray[np.float64]
Replay = Callable[[LoadPoint, "Lesson"], LoadPoint]  # measured -> simulated


@dataclass(frozen=True)
class Lesson:
    small: float = 1.0  # factor on the seconds of steps of at most SMALL_ROWS rows
    large: float = 1.0  # and of larger ones
    around: float = 1.0  # factor on what the engine does around a step
    guessing: float = 1.0  # factor on how many steps have something to guess
    request: float = 0.0  # seconds until the engine has a request

    def applied(self, server: SimulatedServer) -> SimulatedServer:
        known = server.overheads
        overheads = replace(
            known,
            step=known.step * self.around,
            sequence=known.sequence * self.around,
            row=known.row * self.around,
            behind_prompt=known.behind_prompt * self.around,
            request=known.request + self.request,
        )
        speculation = server.speculation
        return replace(
            server,
            overheads=overheads,
            speculation=speculation and speculation.scaled(self.guessing),
            small_pace=server.small_pace * self.small,
            large_pace=server.large_pace * self.large,
        )

    def with_factors(self, factors: Mapping[str, float]) -> Lesson:
        """Kept within bounds."""
        most = {name: MOST_GUESSING if name == "guessing" else MOST_FACTOR for name in factors}
        kept = {name: min(most[name], max(1 / most[name], f)) for name, f in factors.items()}
        return replace(self, **kept)

    def at_pace_of(self, point: LoadPoint, replay: Replay) -> Lesson:
        """With the factors under which a simulation does the work that was counted in this load;
        the same if nobody counted."""
        found = self
        for _ in range(TURNS if point.work is not None else 0):
            done = replay(point, found).work
            if done is None or point.work is None:
                break
            ratios = {name: _ratio(point.work, done, counted) for name, counted in COUNTED.items()}
            if all(abs(ratio - 1) < AGREED for ratio in ratios.values()):
                break
            factors = {name: getattr(found, name) * ratio for name, ratio in ratios.items()}
            found = found.with_factors(factors)
        return found


@dataclass(frozen=True)
class Lessons:
    general: Lesson = field(default_factory=Lesson)
    own: Mapping[Hashable, Lesson] = field(default_factory=dict)

    def of(self, key: Hashable) -> Lesson:
        return self.own.get(key, self.general)


class Load(NamedTuple):
    """Measured."""

    key: Hashable  # whose it was
    point: LoadPoint
    replay: Replay


def is_instructive(point: LoadPoint) -> bool:
    """Far beyond its limit a load is all queue, and says little about a step."""
    known = all(point.latencies[metric][key] for metric, key in METRICS)
    return point.valid and known and point.margin > -0.4


def learn(loads: Sequence[Load], stop: Callable[[], bool]) -> Lessons:
    """The general lesson of at most MOST_LOADS of them, the longest first. Without any: nothing was
    taught."""
    able = sorted((one for one in loads if is_instructive(one.point)), key=_shortness)
    if not able or stop():
        return Lessons()
    fit = _Fit(able[:MOST_LOADS])
    place, here = np.zeros(len(REACHES)), fit.residuals(np.zeros(len(REACHES)))
    damping = 0.1
    for _ in range(ROUNDS):
        slopes = np.stack([fit.slope(place, here, axis) for axis in range(fit.axes)], axis=1)
        matrix = slopes.T @ slopes + damping * np.eye(fit.axes)
        there = place.copy()
        there[: fit.axes] -= np.linalg.solve(matrix, slopes.T @ here)
        there[0] = max(there[0], 0.0)
        found = fit.residuals(there)
        if found @ found < here @ here:
            settled = here @ here - found @ found < 0.01 * (here @ here)
            place, here, damping = there, found, damping / 4
            if settled:
                break
        else:
            damping *= 8
        if stop():
            break
    general = fit.lesson(place)
    own: dict[Hashable, Lesson] = {}
    least = OWN_SHARE * able[0].point.seconds
    counted = [one for one in able if one.point.work is not None and one.point.seconds >= least]
    for key in dict.fromkeys(one.key for one in counted):
        mine = [one for one in counted if one.key == key][:OWN_LOADS]
        seen = [fit.seen(one) or (None if stop() else _Seen.of(one)) for one in mine]
        if known := [one for one in seen if one is not None]:
            own[key] = _own(general, known)
    return Lessons(general, own)


def _shortness(one: Load) -> float:
    return -one.point.seconds


class _Seen(NamedTuple):
    """What a load shows of the work that was done in it."""

    pace: Lesson
    seconds: float  # its weight; 0: nobody counted
    accepted: float  # tokens that were guessed right
    expected: float  # as many as were to be expected

    @classmethod
    def of(cls, load: Load) -> _Seen:
        point, work = load.point, load.point.work
        if work is None:
            return cls(Lesson(), 0.0, 0.0, 0.0)
        done = load.replay(point, Lesson()).work
        expected = 0.0 if done is None else float(done.num_accepted)
        pace = Lesson().at_pace_of(point, load.replay)
        return cls(pace, point.seconds, float(work.num_accepted), expected)


def _average(seen: Sequence[_Seen], known: Lesson, weight: float) -> dict[str, float]:
    """Factors; drawn to those that are known, by as much as a load of `weight` seconds, and
    GUESSES_TRUST tokens."""
    total = weight + math.fsum(one.seconds for one in seen)
    found = {}
    for name in COUNTED:
        logs = math.fsum(one.seconds * math.log(getattr(one.pace, name)) for one in seen)
        logs += weight * math.log(getattr(known, name))
        found[name] = math.exp(logs / total) if total else 1.0
    accepted = GUESSES_TRUST * known.guessing + math.fsum(one.accepted for one in seen)
    expected = GUESSES_TRUST + math.fsum(one.expected for one in seen)
    return found | {"guessing": accepted / expected}


def _own(general: Lesson, seen: Sequence[_Seen]) -> Lesson:
    weight = math.fsum(one.seconds for one in seen) / len(seen)
    return general.with_factors(_average(seen, general, weight))


class _Fit:
    """Places are: seconds of a request, as a share of an ITL; the log of the pace where nobody
    counted."""

    def __init__(self, loads: Sequence[Load]) -> None:
        self._loads = loads
        means = [one.point.latencies["itl"]["mean"] or 0.0 for one in loads]
        self._scale = math.fsum(means) / len(means)
        self._seen = [_Seen.of(one) for one in loads]
        self._idle = [_idle(one.point) for one in loads]
        self.axes = 1 if all(one.seconds for one in self._seen) else 2  # anything to fit on

    def seen(self, load: Load) -> _Seen | None:
        """If it is one of those that are fitted."""
        known = [seen for one, seen in zip(self._loads, self._seen, strict=True) if one is load]
        return known[0] if known else None

    def lesson(self, place: Floats) -> Lesson:
        """What to expect of a load that nothing is known of."""
        counted = [one for one in self._seen if one.seconds]
        expected = Lesson().with_factors(_average(counted, Lesson(), 0.0))
        return self._with(place, expected, is_counted=bool(counted))

    def residuals(self, place: Floats) -> Floats:
        found = [place[0] / 10.0, place[1] / PACE_TRUST]
        for load, seen, idle in zip(self._loads, self._seen, self._idle, strict=True):
            point = load.point
            predicted = load.replay(point, self._with(place, seen.pace, seen.seconds > 0))
            for metric, key in METRICS:
                guess, real = predicted.latencies[metric][key], point.latencies[metric][key]
                found.append(idle * math.log(guess / real) if guess and real else 0.0)
        return np.array(found, float)

    def slope(self, place: Floats, here: Floats, axis: int) -> Floats:
        there = place.copy()
        there[axis] += REACHES[axis]
        change: Floats = (self.residuals(there) - here) / REACHES[axis]
        return change

    def _with(self, place: Floats, own: Lesson, is_counted: bool) -> Lesson:
        request, log_pace = place.tolist()
        found = replace(own, request=request * self._scale)
        if is_counted:
            return found
        pace = math.exp(min(3.0, max(-3.0, log_pace)))
        return found.with_factors({"small": pace, "large": pace})


def _idle(point: LoadPoint) -> float:
    """Share of a load's time in which the engine had nothing to do; 1 if nobody counted."""
    if point.work is None:
        return 1.0
    work = point.work
    busy = work.small_seconds + work.large_seconds + work.around_seconds
    return max(LEAST_IDLE, 1 - busy / point.seconds)


def _ratio(counted: Work, simulated: Work, name: str) -> float:
    """1 where one of the two has nothing of it."""
    real, guess = getattr(counted, name), getattr(simulated, name)
    return real / guess if real > 0 and guess > 0 else 1.0
