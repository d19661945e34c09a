"""What this process may use: cores and memory, the limits of its cgroups included.

Each function takes the root of the file system, so that tests can hand in one of their own.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

ROOT = Path("/")


def available_cpus(root: Path = ROOT) -> int:
    """Cores to compute on: those of the affinity mask, but no more than the CPU quota of any
    cgroup that this process is in (rounded up: half a core still needs a thread)."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    cpus = len(affinity(0)) if affinity else os.cpu_count() or 1
    quotas = [_quota_v2(path) for path in _cgroup_directories(root, "cpu.max", "")]
    quotas += [_quota_v1(path) for path in _cgroup_directories(root, "cpu.cfs_quota_us", "cpu")]
    return max(1, min([cpus, *(math.ceil(quota) for quota in quotas if quota is not None)]))


def available_memory(root: Path = ROOT) -> int | None:
    """Bytes that can be allocated without swapping, no more than what is left below the memory
    limit of any cgroup that this process is in; None where the system does not say."""
    free = [_meminfo_available(root)]
    for path in _cgroup_directories(root, "memory.max", ""):
        free.append(_memory_left(path, "memory.max", "memory.current", "inactive_file"))
    for path in _cgroup_directories(root, "memory.limit_in_bytes", "memory"):
        free.append(
            _memory_left(
                path, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
            )
        )
    known = [value for value in free if value is not None]
    return max(0, min(known)) if known else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return None


def _cgroup_directories(root: Path, limit_file: str, controller: str) -> list[Path]:
    """Directories that hold `limit_file` for this process: its own cgroup and all above it.

    controller "" is the one hierarchy of version 2; otherwise the name of a version 1 controller.
    Inside a container the listed path often does not exist below the mount: then only the mount
    itself, which is the container's own cgroup, is left.
    """
    mount = root / "sys/fs/cgroup"
    own = ""
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if (controller == "" and controllers == "") or controller in controllers.split(","):
            own = path.strip("/")
            break
    base = mount / controller if controller else mount
    parts = [part for part in own.split("/") if part not in ("", "..")]
    candidates = [base.joinpath(*parts[:depth]) for depth in range(len(parts) + 1)]
    return [path for path in candidates if (path / limit_file).is_file()]


def _integer(text: str | None) -> int | None:
    try:
        return int(text or "")
    except ValueError:
        return None


def _quota_v2(directory: Path) -> float | None:
    fields = (_read(directory / "cpu.max") or "").split()
    if not fields or fields[0] == "max":
        return None
    quota = _integer(fields[0])
    period = _integer(fields[1]) if len(fields) > 1 else 100_000
    return quota / period if quota and period and quota > 0 else None


def _quota_v1(directory: Path) -> float | None:
    quota = _integer(_read(directory / "cpu.cfs_quota_us"))
    period = _integer(_read(directory / "cpu.cfs_period_us")) or 100_000
    return quota / period if quota is not None and quota > 0 and period > 0 else None


def _meminfo_available(root: Path) -> int | None:
    for line in (_read(root / "proc/meminfo") or "").splitlines():
        if line.startswith("MemAvailable:"):
            kib = _integer(line.split()[1])
            return None if kib is None else kib << 10
    return None


def _memory_left(directory: Path, limit: str, usage: str, cache_key: str) -> int | None:
    """The limit less what is in use; file cache that can be dropped at once is not in use."""
    most = _integer(_read(directory / limit))
    used = _integer(_read(directory / usage))
    if most is None or used is None or most >= 1 << 62:
        return None
    for line in (_read(directory / "memory.stat") or "").splitlines():
        key, _, value = line.partition(" ")
        if key == cache_key:
            used -= min(used, _integer(value) or 0)
    return most - used
