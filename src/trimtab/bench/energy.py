"""Energy, where the machine counts it: Intel's and AMD's RAPL packages, through Linux powercap."""

from __future__ import annotations

from pathlib import Path

POWERCAP = Path("/sys/class/powercap")


class EnergyMeter:
    """Joules that all processor packages take, whoever uses them."""

    def __init__(self, root: Path = POWERCAP) -> None:
        self._domains = sorted(root.glob("intel-rapl:[0-9]*"))
        self._domains = [one for one in self._domains if one.name.count(":") == 1]
        self._last = self._read()

    @property
    def is_available(self) -> bool:
        return self._last is not None

    def lap(self) -> float | None:
        """Joules since the last lap, or since the start; None where nothing counts them."""
        before, self._last = self._last, self._read()
        if before is None or self._last is None:
            return None
        ranges = [self._number(one / "max_energy_range_uj") or 0 for one in self._domains]
        used = 0
        for earlier, later, full in zip(before, self._last, ranges, strict=True):
            used += later - earlier + (full if later < earlier else 0)  # the counter wraps
        return used / 1e6

    def _read(self) -> list[int] | None:
        values = [self._number(one / "energy_uj") for one in self._domains]
        known = [value for value in values if value is not None]
        return known if known and len(known) == len(values) else None

    @staticmethod
    def _number(path: Path) -> int | None:
        try:
            return int(path.read_text())
        except (OSError, ValueError):
            return None  # not readable by this user, or no such counter
