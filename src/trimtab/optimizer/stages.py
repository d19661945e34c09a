"""How the time of a run is shared out, and what each stage made of the field."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

Progress = Callable[[str], None]

# Of the whole budget; a stage that needs less leaves its rest to those behind it.
SHARES = {"quality": 0.25, "calibrate": 0.15, "simulate": 0.15, "measure": 0.45}


@dataclass
class Stage:
    name: str
    seconds: float = 0.0
    tried: int = 0
    left: int = 0

    def as_json(self) -> dict[str, Any]:
        return dict(self.__dict__)


class Budget:
    """Of wall time. Stages end when their share is spent; the first trial of each always runs."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = seconds
        self.stages: list[Stage] = []
        self._clock = clock
        self._start = clock()

    @property
    def spent(self) -> float:
        return self._clock() - self._start

    @property
    def left(self) -> float:
        return max(0.0, self.seconds - self.spent)

    def of_stage(self, name: str) -> float:
        """Seconds for a stage that begins now: its share of what is left for it and for those
        behind it."""
        names = list(SHARES)
        behind = sum(SHARES[other] for other in names[names.index(name) :])
        return self.left * SHARES[name] / behind

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        stage = Stage(name)
        self.stages.append(stage)
        start = self._clock()
        try:
            yield stage
        finally:
            stage.seconds = round(self._clock() - start, 3)
