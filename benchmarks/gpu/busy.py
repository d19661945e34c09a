"""What share of a run of decode steps the device is busy for: the union of its kernels and copies,
as torch's profiler (CUPTI) saw them, over the time from the first of them to the end of the last.

What the profiler costs the host makes the share look worse, never better.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

from gpu.context import Context
from gpu.shapes import Case
from gpu.streams import Driver

STEPS = 24
WORK = ("kernel", "gpu_memcpy", "gpu_memset")  # categories of the trace
PROMPT = 32


def busy_share(driver: Driver, streams: int, context: Context) -> dict[str, Any]:
    """RuntimeError where nothing of the device is in the trace (no CUPTI, or no GPU)."""
    from torch.profiler import ProfilerActivity, profile

    cuda = context.settings.device == "cuda"
    driver.offline(Case(streams, PROMPT, 4))
    engine = driver.engine
    for ids in driver.prompts(streams, PROMPT):
        engine.add_request(driver.request(ids, STEPS + 8))
    for _ in range(6):  # all prompts are in, and the engine is in its stride
        engine.step()
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as profiler:
        start = time.perf_counter()
        for _ in range(STEPS):
            engine.step()
        host = time.perf_counter() - start
    while engine.num_live_requests:
        engine.step()
    if not cuda:
        return {"note": "no GPU: nothing to be busy", "host_step_s": host / STEPS}
    with tempfile.TemporaryDirectory() as directory:
        trace = Path(directory) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        return {**busy_of(json.loads(trace.read_text())), "host_step_s": host / STEPS}


def busy_of(trace: dict[str, Any]) -> dict[str, Any]:
    """Of a trace in Chrome's format: times in microseconds."""
    spans = sorted(
        (float(event["ts"]), float(event["ts"]) + float(event["dur"]))
        for event in trace["traceEvents"]
        if event.get("cat") in WORK and "dur" in event
    )
    if not spans:
        raise RuntimeError("the profiler saw no work of the device")
    busy, edge = 0.0, spans[0][0]
    for begin, end in spans:
        busy += max(0.0, end - max(begin, edge))
        edge = max(edge, end)
    return {"share": busy / (edge - spans[0][0]), "num_kernels": len(spans)}
