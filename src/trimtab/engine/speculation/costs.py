"""What a step costs with so many rows: measured at start, corrected by every step since."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from time import perf_counter

import numpy as np

from trimtab.engine.speculation.steps import greedy_sampling
from trimtab.executors.base import Executor, StepBatch

SIZES = (
    1,
    5,
    9,
    17,
    33,
    2,
    3,
    65,
    4,
    13,
    25,
    49,
    97,
    129,
)  # in the order in which they are measured
CALIBRATION_SECONDS = 0.8
ROUNDS = 3
WEIGHT = 0.05  # of one step against what is known of its size
LEVEL_WEIGHT = 0.15  # against what is known of the machine as a whole
WARM_STEPS = 8
STEPS_A_TABLE = 16  # the table is made anew after so many steps
OUTLIER = 2.0  # times slower or faster than expected: something else had the machine, or let go


class StepCosts:
    """Seconds of a step as a function of its rows; linear between the sizes that were measured,
    and never falling. What counts is how the sizes compare, so a machine that slows down as a whole
    changes nothing."""

    def __init__(self, seconds: dict[int, float]) -> None:
        """`seconds` of steps by their rows: at least one size."""
        self._sizes = sorted(seconds)
        self._seconds = [seconds[size] for size in self._sizes]
        self._level = 1.0  # how slow the machine is now, in general
        self._num_learned = 0
        self._make()

    def seconds(self, num_rows: int) -> float:
        if num_rows < len(self._table):
            return self._table[num_rows]
        last = len(self._table) - 1
        return self._table[last] + self._slope * (num_rows - last)

    def learn(self, num_rows: int, seconds: float) -> None:
        """A step of decodes took so long."""
        ratio = seconds / self.seconds(num_rows)
        self._num_learned += 1
        if self._num_learned <= WARM_STEPS:  # how this machine, now, compares with the calibration
            self._level += (ratio - self._level) / self._num_learned
            return
        off = min(max(ratio / self._level, 1 / OUTLIER), OUTLIER)
        self._level *= 1 + LEVEL_WEIGHT * (off - 1)
        if num_rows <= self._sizes[-1]:
            self._correct(num_rows, WEIGHT * (off - 1))
        if self._num_learned % STEPS_A_TABLE == 0:
            self._make()

    def _correct(self, num_rows: int, share: float) -> None:
        """Of a size between two that were measured, each takes its part."""
        place = bisect_right(self._sizes, num_rows) - 1
        below = self._sizes[place]
        if below == num_rows:
            self._seconds[place] *= 1 + share
            return
        weight = (num_rows - below) / (self._sizes[place + 1] - below)
        self._seconds[place] *= 1 + share * (1 - weight)
        self._seconds[place + 1] *= 1 + share * weight

    def _make(self) -> None:
        rising = np.maximum.accumulate(self._seconds)
        rows = np.arange(self._sizes[-1] + 1)
        self._table: list[float] = np.interp(rows, self._sizes, rising).tolist()
        first = max(0, len(self._table) - 33)
        width = len(self._table) - 1 - first
        slope = (self._table[-1] - self._table[first]) / width if width else self._table[-1]
        # Beyond what was measured, a row costs at least half its share of the largest step.
        self._slope: float = max(slope, 0.5 * self._table[-1] / self._sizes[-1])


def measure_costs(executor: Executor, sizes: Sequence[int] = SIZES) -> StepCosts:
    """Run steps of one sequence, each row with logits, on blocks whose contents do not matter yet.

    Takes about CALIBRATION_SECONDS, or as long as three steps if that is longer.
    """
    capacity = executor.capacity
    most = min(capacity.num_tokens, executor.spec.max_context)
    best: dict[int, float] = {}
    started = perf_counter()
    executor.execute(_rows(1, capacity.block_size))  # the first step is slower
    for _ in range(ROUNDS):
        for size in sizes:
            if size > most:
                continue
            if len(best) >= 3 and perf_counter() - started > CALIBRATION_SECONDS:
                return StepCosts(best)
            batch = _rows(size, capacity.block_size)
            start = perf_counter()
            executor.execute(batch)
            seconds = perf_counter() - start
            best[size] = min(best.get(size, seconds), seconds)
    return StepCosts(best)


def _rows(count: int, block_size: int) -> StepBatch:
    """A step of `count` rows at positions 0, 1 ... of one sequence, greedy."""
    positions = np.arange(count, dtype=np.int32)
    num_blocks = -(-count // block_size)
    return StepBatch(
        token_ids=np.zeros(count, np.int32),
        positions=positions,
        seq_starts=np.array([0, count], np.int32),
        block_starts=np.array([0, num_blocks], np.int32),
        block_ids=np.arange(num_blocks, dtype=np.int32),
        logit_rows=positions,
        sampling=greedy_sampling(positions + np.int32(1)),
    )
