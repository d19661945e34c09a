"""On what machine, and with what versions, something was measured."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trimtab.config import DEVICES
from trimtab.errors import ConfigError
from trimtab.executors.devices import THE_CPU, DeviceFacts

ROOT = Path("/")
SAME_MEMORY = 0.10  # two readings of one machine differ by less


@dataclass(frozen=True)
class Fingerprint:
    """What numbers of a machine depend on most."""

    cpu: str
    cores: int  # that may be used
    isa: str  # kernel path
    memory_gib: float  # of the machine, or of the cgroup where that is less
    device: str = "cpu"
    gpu: str = ""  # these of device=cuda
    driver: str = ""
    gpu_memory_gib: float = 0.0

    def differences(self, other: Fingerprint) -> list[str]:
        """What `other`, at hand, has different, for people."""
        found = [
            f"{name} {theirs} instead of {ours}"
            for name, ours, theirs in (
                ("device", self.device, other.device),
                ("GPU", self.gpu or "none", other.gpu or "none"),
                ("driver", self.driver or "unknown", other.driver or "unknown"),
                ("CPU", self.cpu, other.cpu),
                ("cores", self.cores, other.cores),
                ("ISA path", self.isa, other.isa),
            )
            if ours != theirs
        ]
        if abs(self.memory_gib - other.memory_gib) > SAME_MEMORY * self.memory_gib:
            found.append(f"{other.memory_gib:g} GiB of memory instead of {self.memory_gib:g}")
        if abs(self.gpu_memory_gib - other.gpu_memory_gib) > 0.1:
            found.append(
                f"{other.gpu_memory_gib:g} GiB on the GPU instead of {self.gpu_memory_gib:g}"
            )
        return found

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def this_machine(root: Path = ROOT, device: DeviceFacts = THE_CPU) -> Fingerprint:
    from trimtab.bench.machine import cpu_name
    from trimtab.executors.cpu import select_isa
    from trimtab.executors.resources import available_cpus

    memory = round(total_memory(root) / (1 << 30), 1)
    return Fingerprint(
        cpu_name(),
        available_cpus(),
        select_isa(),
        memory,
        device.device,
        device.gpu,
        device.driver,
        round(device.memory_bytes / (1 << 30), 1),
    )


def total_memory(root: Path = ROOT) -> int:
    """Bytes of the machine, or what a cgroup of this process may have at most; 0 if unknown."""
    found = []
    try:
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemTotal:"):
                found.append(int(line.split()[1]) << 10)
    except (OSError, ValueError, IndexError):
        pass
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            found.append(int((root / "sys/fs/cgroup" / name).read_text()))
        except (OSError, ValueError):  # "max", or no such file
            continue
    return min(found, default=0)


def versions(device: DeviceFacts = THE_CPU) -> dict[str, str]:
    """Of everything that the numbers of a device depend on."""
    from trimtab import __version__
    from trimtab.executors.cpu import NUMERICS_REVISION

    found = {
        "trimtab": __version__,
        "numerics": str(NUMERICS_REVISION),
        "python": platform.python_version(),
    }
    if device.device != "cpu":
        found |= {"numerics": f"torch {device.revision}", "torch": device.torch}
    return found


def changed_versions(then: Mapping[str, str], device: DeviceFacts = THE_CPU) -> list[str]:
    """For people: what is another version now than in `then`."""
    return [
        f"{name} {now} instead of {then[name]}"
        for name, now in versions(device).items()
        if name in then and then[name] != now
    ]


def check_fingerprint(value: Fingerprint) -> Fingerprint:
    """Raises ConfigError for numbers that cannot be."""
    if value.cores < 1:
        raise ConfigError(f"cores: {value.cores} must be at least 1")
    for name in ("memory_gib", "gpu_memory_gib"):
        if not 0 <= getattr(value, name) < 1 << 30:
            raise ConfigError(f"{name}: {getattr(value, name)} must not be negative")
    if value.device not in DEVICES:
        raise ConfigError(f"device: {value.device!r} must be one of {', '.join(DEVICES)}")
    return value
