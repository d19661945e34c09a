"""What a token costs on a machine of a price, at the rate that meets the users' need.

A second of the machine is paid by the tokens that it served: computed prompt tokens, prompt tokens
out of the prefix cache, and output tokens, each in proportion to the time that one takes (the
marginal cost of a row of a prefill, of a decode), so that the three prices add up to the bill.
"""

from __future__ import annotations

from dataclasses import dataclass

PER_MILLION = 1e6
HOUR = 3600.0


@dataclass(frozen=True)
class TokenSeconds:
    """What one token of each kind keeps the machine busy for."""

    computed_input: float
    cached_input: float
    output: float


@dataclass(frozen=True)
class Traffic:
    """Of one request, on average."""

    computed_input: float
    cached_input: float
    output: float


@dataclass(frozen=True)
class Cost:
    """In the currency of the price."""

    per_million_input: float
    per_million_cached: float
    per_million_output: float
    per_request: float

    def as_json(self) -> dict[str, float]:
        return dict(self.__dict__)


def cost_of(price_per_hour: float, rate: float, traffic: Traffic, seconds: TokenSeconds) -> Cost:
    """`rate`: requests a second that met the need, above 0."""
    per_request = price_per_hour / HOUR / rate
    weight = (
        traffic.computed_input * seconds.computed_input
        + traffic.cached_input * seconds.cached_input
        + traffic.output * seconds.output
    )
    unit = per_request / weight * PER_MILLION  # of a second of work, a million times
    return Cost(
        per_million_input=unit * seconds.computed_input,
        per_million_cached=unit * seconds.cached_input,
        per_million_output=unit * seconds.output,
        per_request=per_request,
    )
