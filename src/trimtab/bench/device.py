"""The limits of a device of torch, in the CPU's terms: bytes and multiply-adds a second.

Bandwidth is the better of torch's copy (bytes read and written) and a sum; arithmetic is the
vendor's own matrix product in each format that the device and this torch have one for.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trimtab.bench.machine import MachineLimits, cpu_name, measure_bandwidth, measure_machine
from trimtab.config import Device, ExecutorConfig
from trimtab.executors.devices import THE_CPU, DeviceFacts
from trimtab.executors.formats import HeldFormat

COPY_BYTES: dict[str, int] = {"cuda": 1 << 30, "torch-cpu": 64 << 20}
PRODUCT_SIZE: dict[str, int] = {"cuda": 8192, "torch-cpu": 512}
SAMPLE_SECONDS = 0.05  # on a GPU: clocks under load


@dataclass(frozen=True)
class DeviceLimits(MachineLimits):
    """`cpu` and `threads` are of the host; `isa` is empty."""

    facts: DeviceFacts = THE_CPU

    @property
    def title(self) -> str:
        """For people: `NVIDIA H200 (cuda)`."""
        return f"{self.facts.gpu or self.cpu} ({self.facts.device})"

    def linear_macs_per_s(self, weights: HeldFormat) -> float:
        """Of products in this format (`footprint.arithmetic_of`); in bf16 where there are none. On
        a CPU of the fastest: plain torch computes in what it likes."""
        if self.facts.device == "torch-cpu":
            return max(self.macs_per_s.values())
        return self.macs_per_s.get(weights, self.macs_per_s["bf16"])

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> DeviceLimits:
        """What `as_json` gave."""
        return cls(**{**value, "facts": DeviceFacts(**value["facts"])})


def measure_limits(config: ExecutorConfig) -> MachineLimits:
    """Of what this executor would run on; takes some seconds. Raises ConfigError for a device that
    is not there."""
    if config.device != "cpu":
        return measure_device(config.device)
    from trimtab.executors.cpu import choose_threads, select_isa

    return measure_machine(select_isa(), choose_threads(config.threads))


def bandwidth_samples(config: ExecutorConfig) -> list[float]:
    """Bytes a second, some values."""
    if config.device != "cpu":
        return _bandwidth(config.device)
    from trimtab.executors.cpu import choose_threads, select_isa

    return measure_bandwidth(select_isa(), choose_threads(config.threads), repeats=3)


def measure_device(device: Device) -> DeviceLimits:
    """Opens a context on a GPU. Raises ConfigError for a device that is not there."""
    from trimtab.executors.devices import device_facts

    facts = device_facts(device)
    import torch

    bandwidth = _bandwidth(device)
    return DeviceLimits(
        cpu=cpu_name(),
        isa="",
        threads=torch.get_num_threads(),
        read_bytes_per_s=max(bandwidth),
        read_bytes_per_s_median=statistics.median(bandwidth),
        read_bytes_per_s_low=min(bandwidth),
        macs_per_s=_products(device),
        facts=facts,
    )


def _bandwidth(device: Device) -> list[float]:
    """Samples of whichever is faster, copying or reading."""
    import torch

    from trimtab.executors.gpu.devices import open_device
    from trimtab.executors.gpu.rates import copy_samples, read_samples

    place, count = open_device(device), COPY_BYTES[device]
    with torch.inference_mode():
        series = [measure(place, count, SAMPLE_SECONDS) for measure in (copy_samples, read_samples)]
    return max(series, key=statistics.median)


def _products(device: Device) -> dict[HeldFormat, float]:
    import torch

    from trimtab.executors.gpu.devices import open_device
    from trimtab.executors.gpu.rates import PRODUCTS, Product, product_samples

    kinds: tuple[Product, ...] = PRODUCTS if device == "cuda" else ("f32", "bf16")
    place = open_device(device)
    found: dict[HeldFormat, float] = {}
    for kind in kinds:
        try:
            with torch.inference_mode():
                samples = product_samples(place, PRODUCT_SIZE[device], kind, SAMPLE_SECONDS)
        except RuntimeError:
            if kind in ("f32", "bf16"):
                raise
            continue  # this card, or this torch, has no such product
        found[kind] = max(samples)
    return found
