"""Devices as the optimizer sees them: how a run begins there, and what they can do.

Whoever asks a GPU holds some of its memory until they end, and the trials would have that much
less: so it is asked in a process of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from trimtab.bench.device import DeviceLimits, measure_device, measure_limits
from trimtab.bench.machine import MachineLimits
from trimtab.config import Device, ExecutorConfig, SchedulerConfig
from trimtab.executors.devices import THE_CPU, DeviceFacts, device_facts
from trimtab.optimizer.trial import run_trial

# A GPU computes so many rows at once in about the time in which it reads its weights.
CUDA_STEPS: dict[str, Any] = {"max_batch_tokens": 2048, "max_num_requests": 256}
ASK_SECONDS = 300.0


def default_scheduler(device: Device) -> SchedulerConfig:
    """What `trimtab serve MODEL` takes there, unless it is given or, on a CPU, fitted."""
    plain = SchedulerConfig()
    return replace(plain, **CUDA_STEPS) if device == "cuda" else plain


def ask_device(device: Device) -> DeviceFacts:
    """Raises UserError, one line, if nothing can run there."""
    return THE_CPU if device == "cpu" else DeviceFacts(**_asked("facts", device))


def probe_limits(device: Device) -> MachineLimits:
    """Takes some seconds. Raises as `ask_device`."""
    if device == "cpu":
        return measure_limits(ExecutorConfig())
    return DeviceLimits.from_json(_asked("limits", device))


def facts_of(limits: MachineLimits) -> DeviceFacts:
    """Of the device that they were measured on."""
    return limits.facts if isinstance(limits, DeviceLimits) else THE_CPU


def _asked(function: str, device: Device) -> dict[str, Any]:
    asked = f"trimtab.optimizer.devices:{function}"
    found: dict[str, Any] = run_trial(asked, {"device": device}, seconds=ASK_SECONDS).value()
    return found


def facts(arguments: dict[str, Any], progress: Callable[[str], None]) -> dict[str, Any]:
    return device_facts(arguments["device"]).as_json()


def limits(arguments: dict[str, Any], progress: Callable[[str], None]) -> dict[str, Any]:
    return measure_device(arguments["device"]).as_json()
