"""What this machine can do, measured: read bandwidth, and arithmetic for each weight format."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trimtab.config import CPU_WEIGHT_FORMATS, WeightFormat
from trimtab.executors.formats import HeldFormat


@dataclass(frozen=True)
class MachineLimits:
    """The best of several short readings, with all compute threads at work at once: what slows a
    reading on a shared machine is not the machine's limit."""

    cpu: str
    isa: str
    threads: int
    read_bytes_per_s: float
    read_bytes_per_s_median: float
    read_bytes_per_s_low: float
    macs_per_s: Mapping[HeldFormat, float]  # multiply-accumulates in registers

    def linear_macs_per_s(self, weights: HeldFormat) -> float:
        """The fastest arithmetic that weights of this format can be computed in: their own dot
        products, or those of a wider format that they are widened to."""
        formats: tuple[HeldFormat, ...] = CPU_WEIGHT_FORMATS
        wider = formats[: formats.index(weights) + 1]
        return max(self.macs_per_s[name] for name in wider)

    @property
    def title(self) -> str:
        """For people: `Intel Xeon, avx512, 2 threads`."""
        return f"{self.cpu}, {self.isa}, {self.threads} threads"

    @property
    def attention_macs_per_s(self) -> float:
        """Attention over a bf16 or f32 cache; the faster of the two kinds of arithmetic."""
        return max(self.macs_per_s["bf16"], self.macs_per_s["f32"])

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def cpu_name() -> str:
    """From /proc/cpuinfo; "unknown CPU" elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown CPU"
    values = dict(line.split(":", 1) for line in lines if ":" in line)
    by_key = {key.strip(): value.strip() for key, value in values.items()}
    name = by_key.get("model name", "unknown CPU")
    if "cpu family" in by_key:
        name += f" (family {by_key['cpu family']} model {by_key.get('model', '?')})"
    return name


def measure_bandwidth(isa: str, threads: int, repeats: int = 7) -> list[float]:
    """Bytes a second, one value a repeat: every thread reads its own part of a buffer far larger
    than any cache, with the widest loads of the ISA path."""
    from trimtab import _native

    return _native.probe_bandwidth(isa, threads, 256 << 20, repeats)


def measure_arithmetic(isa: str, threads: int, weights: WeightFormat, repeats: int = 5) -> float:
    """Multiply-accumulates a second in registers, the best of `repeats`."""
    from trimtab import _native

    return max(_native.probe_arithmetic(isa, threads, weights, repeats))


def measure_machine(isa: str, threads: int) -> MachineLimits:
    """Takes about two seconds."""
    bandwidth = measure_bandwidth(isa, threads)
    return MachineLimits(
        cpu=cpu_name(),
        isa=isa,
        threads=threads,
        read_bytes_per_s=max(bandwidth),
        read_bytes_per_s_median=statistics.median(bandwidth),
        read_bytes_per_s_low=min(bandwidth),
        macs_per_s={name: measure_arithmetic(isa, threads, name) for name in CPU_WEIGHT_FORMATS},
    )
