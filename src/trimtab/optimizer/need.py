"""What the users of a model need, in the field's words."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from trimtab.errors import UserError
from trimtab.optimizer.quality_need import QualityNeed, parse_quality
from trimtab.workloads.slo import Slo, parse_slo

Objective = Literal["cost", "latency", "energy", "goodput"]
MINIMIZE: tuple[Objective, ...] = ("cost", "latency", "energy")
MAXIMIZE: tuple[Objective, ...] = ("goodput",)

DEFAULT_SLO = "ttft:p95<500ms+1ms*in; itl:p95<100ms"  # faster than people read
DEFAULT_QUALITY = "kl:mean<0.02; top1>=0.97"
DEFAULT_WORKLOAD = "chat"
DEFAULT_HEADROOM = 0.2
MOST_HEADROOM = 0.9
ASSUMED_PRICE = 1.0

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_SIZES = {"": 1 << 30, "gib": 1 << 30, "g": 1 << 30, "gb": 10**9, "mib": 1 << 20, "mb": 10**6}


@dataclass(frozen=True)
class Need:
    slo: Slo
    quality: QualityNeed
    workload: str  # a name of workloads.make, or a file
    rate: float | None = None  # requests a second that it must hold; None: the highest
    headroom: float = DEFAULT_HEADROOM
    """Share of the highest rate that is kept free, for clients and others on the same machine, and
    for minutes in which it is slower. Of a rate that was asked for nothing is."""
    memory_bytes: int | None = None  # of everything; None: what the machine has
    price_per_hour: float | None = None
    objective: Objective = "cost"

    @property
    def price(self) -> float:
        return ASSUMED_PRICE if self.price_per_hour is None else self.price_per_hour

    @property
    def price_source(self) -> str:
        if self.price_per_hour is None:
            return f"{ASSUMED_PRICE:g} an hour is assumed; give yours with --price-per-hour"
        return "given"

    @property
    def objective_text(self) -> str:
        return f"{'maximize' if self.objective in MAXIMIZE else 'minimize'} {self.objective}"


def make_need(
    slo: str = "",
    quality: str = "",
    workload: str = "",
    rate: str = "",
    headroom: str = "",
    memory: str = "",
    price_per_hour: float | None = None,
    minimize: str = "",
    maximize: str = "",
) -> Need:
    """From the texts of the command line; empty ones are the defaults. UserError for what is not
    understood."""
    if rate and headroom:
        raise UserError("--rate and --headroom: use one of them; a rate is held as it is asked for")
    if price_per_hour is not None and not 0 < price_per_hour < 1e9:
        raise UserError(f"--price-per-hour {price_per_hour:g}: must be above 0")
    return Need(
        slo=parse_slo(slo or DEFAULT_SLO),
        quality=parse_quality(quality or DEFAULT_QUALITY),
        workload=workload or DEFAULT_WORKLOAD,
        rate=parse_rate(rate) if rate else None,
        headroom=parse_headroom(headroom) if headroom else DEFAULT_HEADROOM,
        memory_bytes=parse_memory(memory) if memory else None,
        price_per_hour=price_per_hour,
        objective=_objective(minimize, maximize),
    )


def parse_rate(text: str) -> float:
    """`4rps`, `4`, `240/min`: requests a second."""
    found = re.fullmatch(r"\s*([0-9.]+(?:e-?\d+)?)\s*(rps|/s|/min|/h|)\s*", text.lower())
    value = _number(found[1]) if found else 0.0
    if found is None or not 0 < value < 1e9:
        raise UserError(f"--rate {text!r}: use requests a second, as in 4rps, or 240/min")
    return value / {"/min": 60.0, "/h": 3600.0}.get(found[2], 1.0)


def parse_headroom(text: str) -> float:
    """`20%`, `0.2`, `0`: a share."""
    found = re.fullmatch(r"\s*([0-9.]+)\s*(%|)\s*", text)
    value = _number(found[1]) / (100 if found[2] else 1) if found else math.nan
    if not 0 <= value <= MOST_HEADROOM:
        most = f"{100 * MOST_HEADROOM:g}%"
        raise UserError(f"--headroom {text!r}: use a share from 0 to {most}, as in 20%")
    return value


def parse_duration(option: str, text: str) -> float:
    """`90`, `90s`, `10m`, `1h`: seconds."""
    found = re.fullmatch(r"\s*([0-9.]+)\s*(s|m|min|h|)\s*", text.lower())
    value = _number(found[1]) if found else 0.0
    if found is None or not value > 0:
        raise UserError(f"{option} {text!r}: use a duration, as in 90s, 10m or 1h")
    return value * _UNITS[found[2]]


def parse_memory(text: str) -> int:
    """`6GiB`, `6`, `800MiB`: bytes."""
    found = re.fullmatch(r"\s*([0-9.]+)\s*(gib|gb|g|mib|mb|)\s*", text.lower())
    value = _number(found[1]) if found else 0.0
    if found is None or not value > 0:
        raise UserError(f"--memory {text!r}: use GiB, as in 6GiB, or 800MiB")
    return int(value * _SIZES[found[2]])


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _objective(minimize: str, maximize: str) -> Objective:
    if minimize and maximize:
        raise UserError("--minimize and --maximize: use one of them")
    for option, given, known in (
        ("--minimize", minimize, MINIMIZE),
        ("--maximize", maximize, MAXIMIZE),
    ):
        for objective in known:
            if given == objective:
                return objective
        if given:
            raise UserError(f"{option} {given!r}: use {' or '.join(known)}")
    return "cost"
