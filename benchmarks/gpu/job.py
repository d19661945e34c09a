"""The process of one section."""

from __future__ import annotations

import importlib
import json
import time
from pathlib import Path
from typing import Any

from gpu.context import Context, Settings


def run_job(job: dict[str, Any]) -> None:
    """Whatever is raised ends the process with a traceback, whose last line is the result."""
    deadline = time.monotonic() + float(job["seconds"])
    context = Context(
        settings=Settings(**job["settings"]),
        arguments=job["arguments"],
        known=json.loads(Path(job["known"]).read_text()),
        deadline=deadline,
        events=Path(job["events"]),
    )
    importlib.import_module(f"gpu.{job['module']}").run(context)
