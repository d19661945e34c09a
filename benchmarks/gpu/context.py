"""What a section of the GPU check is given, and how it tells what it found.

A section is a function of a Context that runs in a process of its own. It names its cases before it
begins, so that what was not reached is known however the process ends; everything that it tells is
in the results file a moment later.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Settings:
    """The same for all sections of a run."""

    device: str  # "cuda" or "cpu"
    tiny: bool  # shapes that a CPU can compute, Triton interpreted
    seed: int = 0

    @property
    def executor_device(self) -> Literal["cuda", "torch-cpu"]:
        """`ExecutorConfig.device`"""
        return "cuda" if self.device == "cuda" else "torch-cpu"


@dataclass
class Context:
    settings: Settings
    arguments: dict[str, Any]  # of this section
    known: dict[str, Any]  # the results file as it was when the section began
    deadline: float  # of time.monotonic(): what would end later is to be left out
    events: Path
    planned: list[str] = field(default_factory=list)

    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    def plan(self, cases: Iterable[str]) -> None:
        self.planned = list(cases)
        self._tell({"event": "plan", "cases": self.planned})

    def result(self, case: str, **values: Any) -> None:
        """A later one of the same case replaces it. Of a check, `passed` says whether it did."""
        self._tell({"event": "result", "case": case, "values": values})

    def leave_out(self, case: str, why: str) -> None:
        self._tell({"event": "left out", "case": case, "why": why})

    def skip(self, why: str) -> None:
        """The section as a whole cannot be run here."""
        self._tell({"event": "skipped", "why": why})

    def has_time(self, case: str, seconds: float) -> bool:
        """Whether a case that takes about so long still fits; if not, it is left out, and why."""
        if seconds <= self.left():
            return True
        self.leave_out(case, f"no time: about {seconds:.1f} s, {max(0, self.left()):.1f} s left")
        return False

    def attempt(self, case: str, work: Callable[[], dict[str, Any]]) -> bool:
        """The result of `work`, or the error of it in its place: the next case goes on. Not of
        errors after which a device can no longer be used."""
        try:
            self.result(case, **work())
        except Exception as error:
            self.result(case, passed=False, error=one_line(error))
            if is_fatal(error):
                raise
            return False
        return True

    def roofline(self, name: str) -> float | None:
        """A rate that the roofline section measured, in bytes or operations a second."""
        section = self.known.get("sections", {}).get("roofline", {})
        value = section.get("results", {}).get(name, {}).get("per_s")
        return float(value) if value else None

    def _tell(self, event: dict[str, Any]) -> None:
        with self.events.open("a") as file:
            file.write(json.dumps(event) + "\n")


def one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300]


def is_fatal(error: BaseException) -> bool:
    """A CUDA context is lost after an illegal access or an assertion on the device."""
    text = str(error)
    return any(words in text for words in ("CUDA error", "device-side assert", "illegal memory"))


def settings_json(settings: Settings) -> dict[str, Any]:
    return asdict(settings)
