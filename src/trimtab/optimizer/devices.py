"""How a run begins on each device, before anybody has measured anything."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from trimtab.config import Device, SchedulerConfig

# A GPU computes so many rows at once in about the time in which it reads its weights.
CUDA_STEPS: dict[str, Any] = {"max_batch_tokens": 2048, "max_num_requests": 256}


def default_scheduler(device: Device) -> SchedulerConfig:
    """What `trimtab serve MODEL` takes there, unless it is given or, on a CPU, fitted."""
    plain = SchedulerConfig()
    return replace(plain, **CUDA_STEPS) if device == "cuda" else plain
