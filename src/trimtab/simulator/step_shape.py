"""What a step's time depends on, besides the model and the machine."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from trimtab.engine.batch import logit_span
from trimtab.engine.scheduler import Chunk
from trimtab.models.spec import ModelSpec


class StepShape(NamedTuple):
    """
    rows        token rows of the step
    sequences   they belong to
    attended    positions that the rows read, summed over the rows; mean over the layers
    context     positions of the cache that are read, each counted once a sequence; likewise
    logit_rows  rows that go through the output head
    """

    rows: int
    sequences: int
    attended: float
    context: float
    logit_rows: int


class Reach:
    """How far back a row sees: everything, or a window in some of the layers."""

    def __init__(self, windows: tuple[tuple[int, float], ...] = ((0, 1.0),)) -> None:
        """`windows`: (positions that a row sees, its own included; share of the layers); 0 = all.
        Shares add up to 1."""
        self.windows = windows
        self.is_full = all(window == 0 for window, _ in windows)

    @classmethod
    def of(cls, spec: ModelSpec) -> Reach:
        counts: dict[int, int] = {}
        for layer in spec.layers:
            window = layer.sliding_window or 0
            counts[window] = counts.get(window, 0) + 1
        return cls(tuple((w, n / len(spec.layers)) for w, n in sorted(counts.items())))

    def attended(self, start: int, count: int) -> float:
        """Positions read by rows start .. start + count - 1 of a sequence, each row its own too."""
        if self.is_full:
            return count * start + count * (count + 1) / 2
        total = 0.0
        for window, share in self.windows:
            below = count if not window else max(0, min(count, window - start))
            within = below * start + below * (below + 1) / 2
            total += share * (within + (count - below) * window)
        return total

    def context(self, start: int, count: int) -> float:
        """Positions of the cache that these rows read, each counted once."""
        if self.is_full:
            return start + count
        end = start + count
        return sum(
            share * (end if not window else min(end, window + count - 1))
            for window, share in self.windows
        )

    def of_step(self, chunks: Iterable[Chunk]) -> StepShape:
        """The shape of a plan, drafts included."""
        rows = sequences = logit_rows = 0
        attended = context = 0.0
        is_full = self.is_full
        for chunk in chunks:
            start, count = chunk.start, chunk.num_rows
            first, last = logit_span(chunk)
            rows += count
            sequences += 1
            logit_rows += last - first
            if is_full:  # by far the most frequent, and asked for each row of a simulation
                attended += count * start + count * (count + 1) / 2
                context += start + count
            else:
                attended += self.attended(start, count)
                context += self.context(start, count)
        return StepShape(rows, sequences, attended, context, logit_rows)
