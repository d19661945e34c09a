"""What processes hold of the memory, as /proc says it; zeros where there is no /proc."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
KIB = 1024


@dataclass(frozen=True)
class ProcessMemory:
    """Bytes. Of pages that several processes share, `proportional` counts a part."""

    resident: int
    proportional: int
    anonymous: int  # of the resident: heap, KV cache, weights that were packed into memory
    mapped: int  # of the resident: files, such as packed weights
    peak_resident: int  # the most since the process began


def process_memory(pid: int, proc: Path = PROC) -> ProcessMemory | None:
    """From smaps_rollup and status; None if there is no such process, or it must not be asked."""
    try:
        rollup = _fields(proc / str(pid) / "smaps_rollup")
        status = _fields(proc / str(pid) / "status")
    except OSError:
        return None
    if "Rss" not in rollup:
        return None
    anonymous = rollup.get("Anonymous", 0)
    return ProcessMemory(
        resident=rollup["Rss"],
        proportional=rollup.get("Pss", rollup["Rss"]),
        anonymous=anonymous,
        mapped=max(0, rollup["Rss"] - anonymous),
        peak_resident=max(status.get("VmHWM", 0), rollup["Rss"]),
    )


def tree_resident_bytes(pid: int, proc: Path = PROC) -> int:
    """Resident bytes of a process and of all that it has started."""
    total = 0
    for one in process_tree(pid, proc):
        try:
            total += _fields(proc / str(one) / "status").get("VmRSS", 0)
        except OSError:
            continue
    return total


def process_tree(pid: int, proc: Path = PROC) -> list[int]:
    """The process and its descendants that run at this moment."""
    found, waiting = [], [pid]
    while waiting:
        one = waiting.pop()
        found.append(one)
        try:
            for children in (proc / str(one) / "task").glob("*/children"):
                waiting += [int(text) for text in children.read_text().split()]
        except (OSError, ValueError):
            continue
    return found


def _fields(path: Path) -> dict[str, int]:
    """`Name: 123 kB` lines, in bytes."""
    values = {}
    for line in path.read_text().splitlines():
        name, _, rest = line.partition(":")
        parts = rest.split()
        if len(parts) == 2 and parts[1] == "kB":
            values[name] = int(parts[0]) * KIB
    return values
