"""The choice among what was measured, the frontier, and what to say if nothing meets the need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trimtab.optimizer.report.formatting import seconds

TIE = 0.01  # differences of scores that are not worth a change of the defaults


@dataclass(frozen=True)
class Standing:
    """How a measured configuration stands in the three things that are weighed."""

    id: str
    rate: float  # requests a second that meet the SLO: cost falls with it
    latency: float  # seconds
    loss: float  # of quality: KL divergence from the unmodified model
    num_changes: int  # from the defaults
    meets_need: bool


def frontier(standings: Sequence[Standing]) -> set[str]:
    """Ids of those that no other one beats: at least as good in all, better in one."""
    return {
        one.id
        for one in standings
        if one.rate > 0 and not any(_beats(other, one) for other in standings)
    }


def _beats(one: Standing, other: Standing) -> bool:
    mine = (one.rate, -one.latency, -one.loss)
    theirs = (other.rate, -other.latency, -other.loss)
    return all(a >= b for a, b in zip(mine, theirs, strict=True)) and mine != theirs


def choose(standings: Sequence[Standing], score: str = "rate") -> Standing | None:
    """The best that meets the need; within TIE of it, the one with the fewest changes, then the
    smallest loss of quality. `score`: rate (largest) or latency (smallest)."""
    able = [one for one in standings if one.meets_need]
    if not able:
        return None
    if score == "latency":
        limit = min(one.latency for one in able) * (1 + TIE)
        tied = [one for one in able if one.latency <= limit]
    else:
        limit = max(one.rate for one in able) * (1 - TIE)
        tied = [one for one in able if one.rate >= limit]
    return min(tied, key=lambda one: (one.num_changes, one.loss, -one.rate))


@dataclass(frozen=True)
class Shortfall:
    """A term of the need that a configuration misses."""

    term: str  # as it was written
    asked: float
    found: float
    unit: str  # s, requests/s, or "" of shares and nats

    @property
    def excess(self) -> float:
        """How far, as a factor of at least 1."""
        low, high = sorted((max(self.asked, 1e-12), max(self.found, 1e-12)))
        return high / low

    def in_words(self) -> str:
        return (
            f"{self.term}: {_show(self.found, self.unit)} instead of {_show(self.asked, self.unit)}"
        )


@dataclass(frozen=True)
class Miss:
    """A measured configuration and everything in which it falls short."""

    id: str
    shortfalls: tuple[Shortfall, ...]

    @property
    def worst(self) -> Shortfall:
        return max(self.shortfalls, key=lambda one: one.excess)


def closest(misses: Sequence[Miss]) -> Miss | None:
    """The one whose worst shortfall is the smallest."""
    return min(misses, key=lambda one: one.worst.excess) if misses else None


def _show(value: float, unit: str) -> str:
    if unit == "s":
        return seconds(value)
    if unit == "bytes":
        return f"{value / (1 << 30):.3g} GiB"
    return f"{value:.3g} {unit}".rstrip()
