"""How long work on a device takes; what samples of it a table shows."""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.executors.gpu.timing import Work, device_seconds, host_seconds, median, synchronize

__all__ = ["Work", "device_seconds", "host_seconds", "median", "spread", "synchronize"]


def spread(values: Sequence[float]) -> dict[str, float]:
    """What a table shows of samples."""
    return {"median": median(values), "low": min(values), "high": max(values)}
