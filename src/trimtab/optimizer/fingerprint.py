"""On what machine, and with what versions, something was measured."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trimtab.errors import ConfigError

ROOT = Path("/")
SAME_MEMORY = 0.10  # two readings of one machine differ by less


@dataclass(frozen=True)
class Fingerprint:
    """What numbers of a machine depend on most."""

    cpu: str
    cores: int  # that may be used
    isa: str  # kernel path
    memory_gib: float  # of the machine, or of the cgroup where that is less

    def differences(self, other: Fingerprint) -> list[str]:
        """What `other`, at hand, has different, for people."""
        found = [
            f"{name} {theirs} instead of {ours}"
            for name, ours, theirs in (
                ("CPU", self.cpu, other.cpu),
                ("cores", self.cores, other.cores),
                ("ISA path", self.isa, other.isa),
            )
            if ours != theirs
        ]
        if abs(self.memory_gib - other.memory_gib) > SAME_MEMORY * self.memory_gib:
            found.append(f"{other.memory_gib:g} GiB of memory instead of {self.memory_gib:g}")
        return found

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def this_machine(root: Path = ROOT) -> Fingerprint:
    from trimtab.bench.machine import cpu_name
    from trimtab.executors.cpu import select_isa
    from trimtab.executors.resources import available_cpus

    memory = round(total_memory(root) / (1 << 30), 1)
    return Fingerprint(cpu_name(), available_cpus(), select_isa(), memory)


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


def versions() -> dict[str, str]:
    """Of everything that the numbers depend on."""
    from trimtab import __version__
    from trimtab.executors.cpu import NUMERICS_REVISION

    return {
        "trimtab": __version__,
        "numerics": str(NUMERICS_REVISION),
        "python": platform.python_version(),
    }


def changed_versions(then: Mapping[str, str]) -> list[str]:
    """For people: what is another version now than in `then`."""
    return [
        f"{name} {now} instead of {then[name]}"
        for name, now in versions().items()
        if name in then and then[name] != now
    ]


def check_fingerprint(value: Fingerprint) -> Fingerprint:
    """Raises ConfigError for numbers that cannot be."""
    if value.cores < 1:
        raise ConfigError(f"cores: {value.cores} must be at least 1")
    if not 0 <= value.memory_gib < 1 << 30:
        raise ConfigError(f"memory_gib: {value.memory_gib} must not be negative")
    return value
