"""Runs sections, each in a process of its own, and keeps the results file current.

A section that fails, hangs or takes the device with it is a result; the next one begins. Time is
shared out as it goes: a section may take its share of what is left, so what one saves, the others
get. The file is rewritten (whole, then renamed) whenever a section says something.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu.context import Settings, settings_json
from gpu.sections import Section

HERE = Path(__file__).resolve().parents[1]
POLL_SECONDS = 0.1
GRACE_SECONDS = 12.0  # beyond a section's deadline, for a case that was begun before it
LOG_LINES = 12


@dataclass
class Runner:
    settings: Settings
    seconds: float  # for everything
    path: Path  # of the results
    scratch: Path
    document: dict[str, Any]
    say: Callable[[str], None]
    on_change: Callable[[], None] = lambda: None

    def run(self, sections: Sequence[Section]) -> None:
        started = time.monotonic()
        self.document["sections"] = {}
        for index, section in enumerate(sections):
            left = self.seconds - (time.monotonic() - started)
            weights = sum(one.weight for one in sections[index:])
            limit = section.weight / weights * left
            if self.settings.tiny:
                limit = min(section.in_tiny_seconds, left)
            entry: dict[str, Any] = {
                "kind": section.kind,
                "status": "running",
                "limit_seconds": round(limit, 1),
                "arguments": section.arguments,
                "results": {},
                "left_out": [],
            }
            self.document["sections"][section.name] = entry
            if limit < 2:
                entry |= {"status": "not run", "error": "no time left"}
                continue
            self._run(section, entry, limit)
            self.document["seconds"] = round(time.monotonic() - started, 1)
            self.write()
            self.on_change()
            self.say(summary(section.name, entry))
        self.write()

    def write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        draft = self.path.with_name(self.path.name + ".part")
        draft.write_text(json.dumps(self.document, indent=1) + "\n")
        draft.replace(self.path)

    def _run(self, section: Section, entry: dict[str, Any], limit: float) -> None:
        slug = section.name.replace(" ", "-")
        events = self.scratch / f"{slug}.events"
        log = self.scratch / f"{slug}.log"
        events.write_text("")
        self.write()
        begin = time.monotonic()
        job = {
            "module": section.module,
            "settings": settings_json(self.settings),
            "arguments": section.arguments,
            "known": str(self.path),
            "events": str(events),
            "seconds": limit,
        }
        with log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, str(HERE / "gpu_check.py"), "--job", json.dumps(job)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=self._environment(),
            )
            try:
                timed_out = self._follow(process, events, entry, begin + limit + GRACE_SECONDS)
            finally:
                end_group(process)
        entry["seconds"] = round(time.monotonic() - begin, 1)
        entry.pop("planned", None) if entry["status"] == "skipped" else self._missing(entry)
        if entry["status"] == "skipped":
            return
        if timed_out:
            entry["status"] = "timed out"
            entry["error"] = f"did not end within {limit + GRACE_SECONDS:.0f} s"
        elif process.returncode:
            entry["status"] = "failed"
            entry["error"] = last_line(log) or f"exit status {process.returncode}"
        else:
            passed = all(one.get("passed", True) for one in entry["results"].values())
            entry["status"] = "ok" if passed else "failed"
        if entry["status"] != "ok":
            entry["log"] = log.read_text(errors="replace").splitlines()[-LOG_LINES:]

    def _follow(
        self, process: subprocess.Popen[bytes], events: Path, entry: dict[str, Any], until: float
    ) -> bool:
        """Takes in what it tells, until it ends; True if it had not by then."""
        with events.open() as file:
            while True:
                ended = process.poll() is not None
                told = False
                while line := file.readline():
                    take(entry, json.loads(line))
                    told = True
                if told:
                    self.write()
                if ended:
                    return False
                if time.monotonic() > until:
                    return True
                time.sleep(POLL_SECONDS)

    def _missing(self, entry: dict[str, Any]) -> None:
        """Planned cases that have no result and no reason."""
        known = {*entry["results"], *(one["case"] for one in entry["left_out"])}
        for case in entry.pop("planned", []):
            if case not in known:
                entry["left_out"].append({"case": case, "why": "the section ended before it"})

    def _environment(self) -> dict[str, str]:
        source = str(HERE.parent / "src")
        path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH", "")]))
        own = {
            "PYTHONPATH": path,
            "TRITON_CACHE_DIR": str(HERE.parent / "build" / "triton-cache"),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "TRIMTAB_PACKED_CACHE": "off",
        }
        if self.settings.device == "cpu":
            own["TRITON_INTERPRET"] = "1"
        return {**own, **os.environ, "PYTHONPATH": path}


def take(entry: dict[str, Any], event: dict[str, Any]) -> None:
    kind = event["event"]
    if kind == "plan":
        entry["planned"] = event["cases"]
    elif kind == "result":
        entry["results"][event["case"]] = event["values"]
    elif kind == "left out":
        entry["left_out"].append({"case": event["case"], "why": event["why"]})
    elif kind == "skipped":
        entry |= {"status": "skipped", "error": event["why"]}


def end_group(process: subprocess.Popen[bytes]) -> None:
    """The process and whatever it started, if it still runs."""
    if process.poll() is not None:
        return
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, signal_number)
        except ProcessLookupError:
            break
        try:
            process.wait(timeout=3)
            break
        except subprocess.TimeoutExpired:
            continue


def last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "")[:300]


def summary(name: str, entry: dict[str, Any]) -> str:
    results = entry["results"]
    checks = [one["passed"] for one in results.values() if "passed" in one]
    parts = [f"{name}: {entry['status']}", f"{entry.get('seconds', 0):.0f} s"]
    if entry["kind"] == "check" and checks:
        parts.append(f"{sum(checks)} of {len(checks)} checks passed")
    else:
        parts.append(f"{len(results)} results")
    if entry["left_out"]:
        parts.append(f"{len(entry['left_out'])} left out")
    if entry.get("error"):
        parts.append(entry["error"])
    failed = [case for case, one in results.items() if one.get("passed") is False]
    if failed:
        parts.append("failed: " + "; ".join(failed[:4]) + ("; ..." if len(failed) > 4 else ""))
    return ", ".join(parts)
