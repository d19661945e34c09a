"""The scripts that disturb a server, for seconds, on the built-in model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(script: str, *arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(BENCHMARKS.parent / "src")},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def test_killing_the_engine_changes_no_stream() -> None:
    arguments = ["--streams", "10", "--tokens", "40", "--kills", "2"]
    report = run("kill_engine.py", *arguments)
    assert (report["streams"], report["equal"], report["kills"]) == (10, 10, 2)


def test_a_short_soak() -> None:
    report = run("soak.py", "--minutes", "0.05", "--clients", "12", "--kill", "2")
    assert report["requests"] > 20
    assert not report["complaints"]
    assert report["blocks_not_free"] == report["live_at_the_end"] == 0
    assert set(report["memory"]) == {"front", "engine"}
    assert {"call_tools", "message", "respond_with_tools", "structured"} < set(report["statuses"])
