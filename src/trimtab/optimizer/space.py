"""The configurations that may be chosen: what is done to the model, and how it is run.

Knobs and their values come from config.py (`knob(..., search=...)`), so that what the optimizer
tries is what the command line takes. A point of the space is a `Candidate`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from trimtab.config import ExecutorConfig, SchedulerConfig
from trimtab.optimizer.variants import Variant

_UNITS = {"max_batch_tokens": "tokens a step", "max_num_requests": "requests at once"}


@dataclass(frozen=True)
class Candidate:
    """A variant of the model and a way to run it. Hashable; equal ones are the same trial."""

    variant: Variant
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    threads: int = 0  # of ExecutorConfig

    def executor(self, base: ExecutorConfig) -> ExecutorConfig:
        """`base` has what no candidate changes: KV cache size, longest context."""
        return dataclasses.replace(self.variant.executor_config(base), threads=self.threads)

    @property
    def run_changes(self) -> dict[str, Any]:
        """Knobs of running it that differ from their defaults."""
        changes = {
            one.name: getattr(self.scheduler, one.name)
            for one in dataclasses.fields(SchedulerConfig)
            if getattr(self.scheduler, one.name) != one.default
        }
        return changes | ({"threads": self.threads} if self.threads else {})

    @property
    def label(self) -> str:
        """For people: `int8, KV bf16; speculative off, 256 tokens a step`."""
        parts = [_in_words(name, value) for name, value in self.run_changes.items()]
        return "; ".join([self.variant.label, ", ".join(parts)] if parts else [self.variant.label])


def _in_words(name: str, value: Any) -> str:
    if name in _UNITS:
        return f"{value} {_UNITS[name]}"
    text = {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value
    return f"{name.replace('_', ' ')} {text}"


@dataclass(frozen=True)
class Knob:
    """One thing about a run that can be turned, and the values worth trying, in their order."""

    name: str
    values: tuple[Any, ...]

    def turned(self, candidate: Candidate, value: Any) -> Candidate:
        if self.name == "threads":
            return dataclasses.replace(candidate, threads=value)
        scheduler = dataclasses.replace(candidate.scheduler, **{self.name: value})
        return dataclasses.replace(candidate, scheduler=scheduler)

    def value_of(self, candidate: Candidate) -> Any:
        return getattr(candidate if self.name == "threads" else candidate.scheduler, self.name)


def run_knobs(num_threads: int, max_context: int) -> list[Knob]:
    """All that can be turned without another model: those of SchedulerConfig, and the threads.

    Steps that hold more tokens than the longest prompt are left out, but for the smallest of them.
    """
    knobs = []
    for one in dataclasses.fields(SchedulerConfig):
        values = one.metadata.get("search", ())
        if one.name == "max_batch_tokens":
            values = tuple(v for v in values if v // 2 < max(max_context, 64))
        if values:
            knobs.append(Knob(one.name, values))
    if num_threads > 1:
        knobs.append(Knob("threads", (0, *sorted({num_threads // 2, num_threads - 1} - {0}))))
    return knobs


def neighbours(candidate: Candidate, knob: Knob) -> list[Candidate]:
    """The same with every other value of one knob, the nearest values first."""
    values = list(knob.values)
    own = knob.value_of(candidate)
    place = values.index(own) if own in values else 0
    order = sorted(range(len(values)), key=lambda i: (abs(i - place), i))
    return [knob.turned(candidate, values[i]) for i in order if values[i] != own]


def all_runs(variant: Variant, knobs: list[Knob]) -> Iterator[Candidate]:
    """Every combination for one variant, the default one first."""
    yield Candidate(variant)
    combinations = [Candidate(variant)]
    for knob in knobs:
        combinations = [knob.turned(one, value) for one in combinations for value in knob.values]
    yield from (one for one in combinations if one != Candidate(variant))
