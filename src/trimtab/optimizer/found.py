"""What the stages of a run hand on to one another, and to the results."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from trimtab.bench.footprint import Footprint, footprint
from trimtab.bench.machine import MachineLimits
from trimtab.checkpoints.base import Checkpoint
from trimtab.executors.formats import ModelFormats
from trimtab.models.spec import ModelSpec
from trimtab.optimizer.entries import Entries, Entry
from trimtab.optimizer.held import formats_held
from trimtab.optimizer.order import Order
from trimtab.optimizer.predict import Predictor
from trimtab.optimizer.space import Candidate
from trimtab.optimizer.stages import Budget
from trimtab.optimizer.trials import Trials


@dataclass
class Found:
    """results.py makes the document of it."""

    order: Order
    entries: Entries
    trials: Trials
    budget: Budget
    machine: MachineLimits
    noise: float  # coefficient of variation of the bandwidth: the smallest effect that shows
    checkpoint: Checkpoint
    predictor: Predictor
    max_context: int
    num_cores: int
    memory_limit: int
    chosen: Entry | None = None
    default: Entry | None = None
    rate: float = 0.0  # that the choice was verified at
    load_seconds: float = 0.0  # of the loads that verified it
    taught: set[tuple[str, float, int]] = field(default_factory=set)  # entry, rate, seed
    sensitivity: list[dict[str, Any]] = field(default_factory=list)

    @property
    def spec(self) -> ModelSpec:
        return self.checkpoint.spec

    def formats(self, candidate: Candidate) -> ModelFormats:
        """That its matrices are held in, as far as is known before it is built."""
        variant = candidate.variant
        built = self.trials.built(variant)
        return formats_held(variant, self.checkpoint, candidate.executor(self.trials.base), built)

    def footprint(self, candidate: Candidate) -> Footprint:
        config = candidate.executor(self.trials.base)
        return footprint(self.spec, config, self.formats(candidate))
