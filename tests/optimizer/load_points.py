"""Loads made by hand."""

from __future__ import annotations

from trimtab.optimizer.cost import Traffic
from trimtab.optimizer.points import LoadPoint


def point(rate: float, margin: float, seed: int = 0, valid: bool = True) -> LoadPoint:
    return LoadPoint(
        rate=rate,
        seed=seed,
        seconds=5.0,
        achieved=rate,
        goodput=rate if margin > 0 else rate / 2,
        attainment={"value": 1.0, "low": 0.9, "high": 1.0},
        met=margin > 0,
        margin=margin,
        margin_error=0.02,
        latencies={},
        output_tokens_per_s=1.0,
        num_requests=50,
        terms=[],
        traffic=Traffic(1.0, 0.0, 1.0),
        valid=valid,
    )
