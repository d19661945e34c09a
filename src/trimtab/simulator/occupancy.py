"""How full the simulated server was."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from trimtab.simulator.nnls import Float64Array

MAX_POINTS = 1024


@dataclass
class Occupancy:
    """Means are over the whole time, idle parts included."""

    num_blocks: int
    seconds: float = 0.0  # of the virtual clock
    busy_seconds: float = 0.0
    small_seconds: float = 0.0  # of these, the executor's in steps of at most SMALL_ROWS rows
    large_seconds: float = 0.0  # and of more
    around_seconds: float = 0.0  # the engine's around steps
    num_steps: int = 0
    num_bulk_steps: int = 0  # of these, those that were not planned one by one
    num_step_tokens: int = 0  # rows of all steps
    num_preemptions: int = 0
    num_refused: int = 0  # requests that met a full queue, or can never fit
    num_prompt_tokens: int = 0
    num_cached_prompt_tokens: int = 0
    num_drafted: int = 0
    num_accepted: int = 0
    extrapolated_seconds: float = 0.0  # in steps larger than what was measured
    peak_running: int = 0
    peak_waiting: int = 0
    peak_blocks: int = 0
    # (time, running, waiting, blocks in use) at the starts of steps, thinned out evenly
    series: list[tuple[float, int, int, int]] = field(default_factory=list)
    _running: float = 0.0  # integrals over time
    _waiting: float = 0.0
    _blocks: float = 0.0
    _interval: float = 0.0

    def add(self, start: float, seconds: float, running: int, waiting: int, blocks: int) -> None:
        """A step, or several of the same kind, from `start` on."""
        self.busy_seconds += seconds
        self._running += running * seconds
        self._waiting += waiting * seconds
        self._blocks += blocks * seconds
        self.peak_running = max(self.peak_running, running)
        self.peak_waiting = max(self.peak_waiting, waiting)
        self.peak_blocks = max(self.peak_blocks, blocks)
        if not self.series or start >= self.series[-1][0] + self._interval:
            self.series.append((start, running, waiting, blocks))
            if len(self.series) > MAX_POINTS:
                self.series = self.series[::2]
                self._interval = 2 * self._interval or start / MAX_POINTS

    def add_steps(
        self,
        starts: Float64Array,
        seconds: Float64Array,
        running: int,
        waiting: int,
        blocks: Float64Array,
    ) -> None:
        """Steps in a row [n], between which nothing but the blocks in use changes."""
        total = float(seconds.sum())
        self._blocks += float(seconds @ blocks) - blocks[0] * total
        self.add(float(starts[0]), total, running, waiting, int(blocks[0]))
        self.peak_blocks = max(self.peak_blocks, int(blocks.max()))

    @property
    def busy_share(self) -> float:
        return self.busy_seconds / self.seconds if self.seconds else 0.0

    @property
    def mean_running(self) -> float:
        return self._running / self.seconds if self.seconds else 0.0

    @property
    def mean_waiting(self) -> float:
        return self._waiting / self.seconds if self.seconds else 0.0

    @property
    def mean_blocks(self) -> float:
        return self._blocks / self.seconds if self.seconds else 0.0

    def as_json(self) -> dict[str, Any]:
        names = [name for name in self.__dataclass_fields__ if not name.startswith("_")]
        means = ("busy_share", "mean_running", "mean_waiting", "mean_blocks")
        return {name: getattr(self, name) for name in (*names, *means)}
