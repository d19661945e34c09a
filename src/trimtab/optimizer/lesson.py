"""What loads on the real server taught about it, beyond the steps of an engine at rest.

Steps are measured while nothing else runs. Under load the front process, the client and whoever
else shares the cores take their part, the engine's own code is not in the caches, and guesses are
right more or less often than on a few prompts. Near its limit a server multiplies such
differences: steps that are 5 % longer can make waiting 30 % longer. So what the engine counts for
itself is taken from there, load by load, and only the rest from latencies:

    small       executor's seconds, counted over simulated, in steps of at most SMALL_ROWS rows
    large       and in larger ones: of each load, and on the average
    around      the engine's own seconds around steps, likewise
    guessing    tokens that were guessed right, likewise; on the average: of all loads together,
                since in most of them it is a few, and in some many
    request     seconds until the engine has a request: fitted to TTFT (median), ITL and E2E
                (means); residuals are logs of predicted over measured, by Levenberg's method

Where nobody counted, one factor on all steps is fitted, too.

Each load is simulated request by request, at its own pace; what is expected of others is the
average. The longest loads teach: servers begin slowly, and short ones hardly see more than that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from trimtab.optimizer.points import LoadPoint, Work
from trimtab.simulator.simulate import SimulatedServer

ROUNDS = 5
TURNS = 6  # at most, until counted and simulated work agree
AGREED = 0.02
MOST_LOADS = 8
PACE_TRUST = 0.5  # log factor that is as unlikely as a residual of 1
GUESSES_TRUST = 20.0
REACHES = (0.5, 0.05)  # of finite differences
MOST_FACTOR = 8.0  # of a pace and its like: beyond it something else is wrong
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
            factors = {name: _bounded(getattr(found, name) * ratios[name]) for name in ratios}
            found = replace(found, **factors)
        return found


def is_instructive(point: LoadPoint) -> bool:
    """Far beyond its limit a load is all queue, and says little about a step."""
    known = all(point.latencies[metric][key] for metric, key in METRICS)
    return point.valid and known and point.margin > -0.4


def learn(points: Sequence[tuple[LoadPoint, Replay]], stop: Callable[[], bool]) -> Lesson:
    """Of at most MOST_LOADS of them, the longest first. Without any: nothing was taught."""
    able = [one for one in points if is_instructive(one[0])]
    able = sorted(able, key=lambda one: -one[0].seconds)[:MOST_LOADS]
    if not able or stop():
        return Lesson()
    fit = _Fit(able)
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
    return fit.lesson(place)


class _Fit:
    """Places are: seconds of a request, as a share of an ITL; the log of the pace where nobody
    counted."""

    def __init__(self, points: Sequence[tuple[LoadPoint, Replay]]) -> None:
        self._points = points
        means = [point.latencies["itl"]["mean"] or 0.0 for point, _ in points]
        self._scale = math.fsum(means) / len(means)
        self._paces = [Lesson().at_pace_of(point, replay) for point, replay in points]
        self._weights = [0.0 if p.work is None else p.seconds for p, _ in points]
        self.axes = 1 if all(self._weights) else 2  # that there is anything to fit on

    def lesson(self, place: Floats) -> Lesson:
        """What to expect of a load that nothing is known of."""
        counted = [one for one, weight in zip(self._paces, self._weights, strict=True) if weight]
        weights = [weight for weight in self._weights if weight]
        means = {name: _mean([getattr(one, name) for one in counted], weights) for name in COUNTED}
        expected = Lesson(**means | {"guessing": self._guessing()})
        return self._with(place, expected, is_counted=bool(counted))

    def _guessing(self) -> float:
        """Drawn to 1 by as much as GUESSES_TRUST tokens."""
        real = expected = GUESSES_TRUST
        for point, replay in self._points:
            done = replay(point, Lesson()).work
            if point.work is not None and done is not None:
                real += point.work.num_accepted
                expected += done.num_accepted
        return _bounded(real / expected)

    def residuals(self, place: Floats) -> Floats:
        found = [place[0] / 10.0, place[1] / PACE_TRUST]
        for (point, replay), own in zip(self._points, self._paces, strict=True):
            predicted = replay(point, self._with(place, own, point.work is not None))
            for metric, key in METRICS:
                guess, real = predicted.latencies[metric][key], point.latencies[metric][key]
                found.append(math.log(guess / real) if guess and real else 0.0)
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
        pace = _bounded(math.exp(min(3.0, max(-3.0, log_pace))))
        return replace(found, small=pace, large=pace)


def _ratio(counted: Work, simulated: Work, name: str) -> float:
    """1 where one of the two has nothing of it."""
    real, guess = getattr(counted, name), getattr(simulated, name)
    return real / guess if real > 0 and guess > 0 else 1.0


def _bounded(factor: float) -> float:
    return min(MOST_FACTOR, max(1 / MOST_FACTOR, factor))


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    """Geometric; 1 of nothing."""
    total = math.fsum(w * math.log(v) for v, w in zip(values, weights, strict=True))
    return math.exp(total / (math.fsum(weights) or 1.0))
