"""The configurations that may be chosen: what is done to the model, and how it is run.

Knobs and their values come from config.py (`knob(..., search=...)`), so that what the optimizer
tries is what the command line takes. A point of the space is a `Candidate`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from trimtab.config import Device, ExecutorConfig, SchedulerConfig, search_values
from trimtab.optimizer.variants import Variant

OF_EXECUTOR = ("threads", "memory_share")  # of a Candidate; the others are SchedulerConfig's
_UNITS = {"max_batch_tokens": "tokens a step", "max_num_requests": "requests at once"}


@dataclass(frozen=True)
class Defaults:
    """How a model is run on a device before anything is turned."""

    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    memory_share: float = ExecutorConfig.memory_share


@dataclass(frozen=True)
class Candidate:
    """A variant of the model and a way to run it. Hashable; equal ones are the same trial."""

    variant: Variant
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    threads: int = 0  # of ExecutorConfig, as are those that follow
    memory_share: float = ExecutorConfig.memory_share
    defaults: Defaults = field(default_factory=Defaults, compare=False, repr=False)

    @classmethod
    def plain(cls, variant: Variant, defaults: Defaults) -> Candidate:
        """The default run of a variant."""
        return cls(variant, defaults.scheduler, 0, defaults.memory_share, defaults)

    @property
    def unturned(self) -> Candidate:
        """The default run of its variant."""
        return Candidate.plain(self.variant, self.defaults)

    def executor(self, base: ExecutorConfig) -> ExecutorConfig:
        """`base` has what no candidate changes: device, KV cache size, longest context."""
        own = {name: getattr(self, name) for name in OF_EXECUTOR}
        return dataclasses.replace(self.variant.executor_config(base), **own)

    @property
    def run_changes(self) -> dict[str, Any]:
        """Knobs of running it that differ from their defaults."""
        usual = self.unturned
        changes = {
            one.name: getattr(self.scheduler, one.name)
            for one in dataclasses.fields(SchedulerConfig)
            if getattr(self.scheduler, one.name) != getattr(usual.scheduler, one.name)
        }
        own = {name: getattr(self, name) for name in OF_EXECUTOR}
        return changes | {
            name: value for name, value in own.items() if value != getattr(usual, name)
        }

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
        if self.name in OF_EXECUTOR:
            own: dict[str, Any] = {self.name: value}
            return dataclasses.replace(candidate, **own)
        scheduler = dataclasses.replace(candidate.scheduler, **{self.name: value})
        return dataclasses.replace(candidate, scheduler=scheduler)

    def value_of(self, candidate: Candidate) -> Any:
        return getattr(candidate if self.name in OF_EXECUTOR else candidate.scheduler, self.name)


def run_knobs(
    num_threads: int,
    max_context: int,
    device: Device = "cpu",
    most_memory_share: float = 1.0,
) -> list[Knob]:
    """All that can be turned without another model: those of SchedulerConfig; threads on a CPU; on
    a GPU, the part of its memory, up to `most_memory_share`.

    Steps that hold more tokens than the longest prompt are left out, but for the smallest of them.
    """
    knobs = []
    for one in dataclasses.fields(SchedulerConfig):
        values = search_values(one, device)
        if one.name == "max_batch_tokens":
            values = tuple(v for v in values if v // 2 < max(max_context, 64)) or values[:1]
        if values:
            knobs.append(Knob(one.name, values))
    share = next(f for f in dataclasses.fields(ExecutorConfig) if f.name == "memory_share")
    if shares := search_values(share, device):
        own = min(ExecutorConfig.memory_share, most_memory_share)
        allowed = {value for value in shares if value <= most_memory_share} | {own}
        knobs.append(Knob("memory_share", tuple(sorted(allowed))))
    if num_threads > 1 and device == "cpu":
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
