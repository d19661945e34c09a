"""What loads on the real server taught about it, beyond the steps of an engine at rest.

Steps are measured while nothing else runs. Under load the front process, the client and whoever
else shares the cores take their part, and guesses are right more or less often than on a few
prompts. Five numbers say how much, fitted to loads of the search, each replayed request by request:
residuals are logs of predicted over measured TTFT (median), ITL and E2E (means), and the numbers
are found by Levenberg's method, held near "no difference" by as much as one load of medium trust.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from trimtab.optimizer.points import LoadPoint
from trimtab.simulator.simulate import SimulatedServer

ROUNDS = 5
MOST_LOADS = 8
FACTOR_TRUST = 0.5  # log factor that is as unlikely as a residual of 1
GUESSING_TRUST = 2.0
APART_TRUST = 1.0
REACHES = (0.05, 0.05, 0.5, -0.3, 0.1)  # of finite differences
METRICS = (("ttft", "p50"), ("itl", "mean"), ("e2e", "mean"))
Floats = npt.NDArray[np.float64]
Replay = Callable[[LoadPoint, "Lesson"], LoadPoint]  # measured -> simulated


@dataclass(frozen=True)
class Lesson:
    factor: float = 1.0  # on the seconds of a step
    token: float = 0.0  # seconds by which each token that goes out delays the steps
    request: float = 0.0  # seconds until the engine has a request
    guessing: float = 1.0  # factor on the share of steps in which there is something to guess
    apart: float = 1.0  # factor on the seconds of a step while the cores lie apart

    def applied(self, server: SimulatedServer, apart: float = 0.0) -> SimulatedServer:
        """`apart`: the share of the time of it, beyond that of the calibration."""
        overheads = replace(
            server.overheads,
            token=server.overheads.token + self.token,
            request=server.overheads.request + self.request,
        )
        speculation = server.speculation
        if speculation is not None:
            share = min(1.0, speculation.share * self.guessing)
            speculation = replace(speculation, share=share)
        factor = self.factor * self.apart**apart
        times = server.step_times if factor == 1 else server.step_times.scaled(factor)
        return replace(server, step_times=times, overheads=overheads, speculation=speculation)


def is_instructive(point: LoadPoint) -> bool:
    """Far beyond its limit a load is all queue, and says little about a step."""
    known = all(point.latencies[metric][key] for metric, key in METRICS)
    return point.valid and known and point.margin > -0.4


def learn(points: Sequence[tuple[LoadPoint, Replay]], stop: Callable[[], bool]) -> Lesson:
    """Of at most MOST_LOADS of them, the shortest first. Without any: nothing was taught."""
    able = sorted((one for one in points if is_instructive(one[0])), key=_size)[:MOST_LOADS]
    if not able or stop():
        return Lesson()
    scale = math.fsum(point.latencies["itl"]["mean"] or 0.0 for point, _ in able) / len(able)
    count = len(REACHES)
    place, here = np.zeros(count), _residuals(able, Lesson(), np.zeros(count))
    damping = 0.1
    for _ in range(ROUNDS):
        slopes = np.stack([_slope(able, place, here, scale, axis) for axis in range(count)], axis=1)
        matrix = slopes.T @ slopes + damping * np.eye(count)
        step = -np.linalg.solve(matrix, slopes.T @ here)
        there = place + step
        there[1:3] = np.maximum(there[1:3], 0.0)
        found = _residuals(able, _lesson(there, scale), there)
        if found @ found < here @ here:
            settled = here @ here - found @ found < 0.01 * (here @ here)
            place, here, damping = there, found, damping / 4
            if settled:
                break
        else:
            damping *= 8
        if stop():
            break
    return _lesson(place, scale)


def _lesson(place: Floats, scale: float) -> Lesson:
    """`place`: log factor, the seconds of a token and of a request as shares of an ITL, logs of the
    factors on guessing and of cores that lie apart."""
    log_factor, token, request, log_guessing, log_apart = place.tolist()
    return Lesson(
        math.exp(min(2.0, max(-1.0, log_factor))),
        token * scale,
        request * scale,
        math.exp(min(1.0, max(-4.0, log_guessing))),
        math.exp(min(1.0, max(-1.0, log_apart))),
    )


def _slope(
    points: Sequence[tuple[LoadPoint, Replay]],
    place: Floats,
    here: Floats,
    scale: float,
    axis: int,
) -> Floats:
    reach = REACHES[axis]
    there = place.copy()
    there[axis] += reach
    change: Floats = (_residuals(points, _lesson(there, scale), there) - here) / reach
    return change


def _residuals(points: Sequence[tuple[LoadPoint, Replay]], lesson: Lesson, place: Floats) -> Floats:
    trusts = (FACTOR_TRUST, 1.0, 10.0, GUESSING_TRUST, APART_TRUST)
    found = [value / trust for value, trust in zip(place.tolist(), trusts, strict=True)]
    for point, replay in points:
        predicted = replay(point, lesson)
        for metric, key in METRICS:
            guess, real = predicted.latencies[metric][key], point.latencies[metric][key]
            found.append(math.log(guess / real) if guess and real else 0.0)
    return np.array(found, float)


def _size(one: tuple[LoadPoint, Replay]) -> int:
    return one[0].num_requests
