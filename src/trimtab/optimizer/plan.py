"""The plan: what to serve, how, on what it was measured, and what came out; `plan.yaml`.

    format     1
    model      name as given, content hash
    variant    what is done to the model (variants.py); artifact: content hash of what was built
    engine     every effective knob of ExecutorConfig and SchedulerConfig
    machine    fingerprint; versions
    need       slo, quality, workload, rate, price ..., as text
    measured   name -> value, and its interval where there is one
    predicted  name -> value, of the same names where both are known

A plan is read with every key checked: what it says is what is served, or one line says why not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from trimtab.config import ExecutorConfig, SchedulerConfig
from trimtab.errors import UserError
from trimtab.optimizer.cache import write_atomically
from trimtab.optimizer.fingerprint import Fingerprint
from trimtab.optimizer.variants import Variant

FORMAT = 1
MAX_BYTES = 4 << 20
FORMAT_KEY = "trimtab_plan"
NEEDS = (
    "slo",
    "quality",
    "workload",
    "rate",
    "headroom",
    "concurrency",
    "price_per_hour",
    "memory",
    "objective",
)


@dataclass(frozen=True)
class Measurement:
    """A number and the interval that it lies in, with the confidence of its definition."""

    value: float
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        """ValueError for what is no number."""
        for number in (self.value, self.low, self.high):
            if number is not None and not math.isfinite(number):
                raise ValueError(f"{self}: not finite")


@dataclass(frozen=True)
class Plan:
    """Everything that `trimtab serve plan.yaml` needs, and what was found of it."""

    model: str  # as given
    model_hash: str  # content_hash
    variant: Variant
    executor: ExecutorConfig  # with the formats of the variant
    scheduler: SchedulerConfig
    machine: Fingerprint
    artifact_hash: str | None = None  # of the built checkpoint; None: the model itself
    need: Mapping[str, str] = field(default_factory=dict)  # of NEEDS
    measured: Mapping[str, Measurement] = field(default_factory=dict)
    predicted: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    headline: str = ""  # one line for people
    created: str = ""  # UTC, ISO 8601

    def changed(self) -> dict[str, Any]:
        """The knobs that are not at their defaults."""
        knobs = {}
        for config, default in (
            (self.executor, ExecutorConfig()),
            (self.scheduler, SchedulerConfig()),
        ):
            for one in fields(config):
                value = getattr(config, one.name)
                if value != getattr(default, one.name):
                    knobs[one.name] = value
        return knobs

    def describe(self) -> str:
        """One line: what is served, and with which knobs of its own."""
        own = ("weights", "group_size", "kv_cache")
        knobs = [f"{name}={value}" for name, value in self.changed().items() if name not in own]
        return ", ".join([f"{self.model} as {self.variant.label}", *knobs])

    def to_yaml(self) -> str:
        """What `plan_from_yaml` makes the same plan of."""
        from trimtab.optimizer.plan_yaml import dump_plan

        return dump_plan(self)

    def write(self, path: Path) -> None:
        """Atomically. Raises UserError if it cannot be written."""
        try:
            write_atomically(path, self.to_yaml().encode())
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None

    def as_json(self) -> dict[str, Any]:
        """The same as plain data."""
        engine = {**asdict(self.executor), **asdict(self.scheduler)}
        document: dict[str, Any] = {
            FORMAT_KEY: FORMAT,
            "headline": self.headline,
            "created": self.created,
            "model": {"name": self.model, "hash": self.model_hash},
            "variant": self.variant.as_json(),
            "artifact": self.artifact_hash,
            "engine": engine,
            "machine": self.machine.as_json(),
            "versions": dict(self.versions),
            "need": dict(self.need),
            "measured": {
                name: {key: value for key, value in asdict(one).items() if value is not None}
                for name, one in self.measured.items()
            },
            "predicted": dict(self.predicted),
        }
        return document


def now() -> str:
    """For `Plan.created`."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def is_plan_file(model: str) -> bool:
    """Whether what a user gave as MODEL is a plan: a file that ends in .yaml or .yml."""
    path = Path(model)
    try:
        return path.suffix in (".yaml", ".yml") and path.expanduser().is_file()
    except (OSError, ValueError):
        return False


def read_plan(path: Path) -> Plan:
    """Raises UserError, one line, for whatever is wrong with the file."""
    from trimtab.optimizer.plan_yaml import plan_from_yaml

    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path}: too large for a plan")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8") from None
    return plan_from_yaml(text, str(path))
