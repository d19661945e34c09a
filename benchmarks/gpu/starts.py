"""How long a start takes, and what the second one saves: two processes, one after the other, with
the same new cache directory (trimtab.executors.gpu.warm_start).

From the beginning of Python to the first token: imports, weights and room for K and V (the largest
step is run, or remembered), capture of graphs, a first request. Both must size the KV cache alike
and answer alike.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from gpu.context import Context, Settings, settings_json
from gpu.shapes import Case

BENCHMARKS = Path(__file__).resolve().parents[1]
STARTS = ("first start", "second start")
REQUESTS = 64  # captured for
FIRST = Case(1, 128, 8)
TINY_FIRST = Case(1, 16, 4)
SAME_CAPACITY = 0.01  # others on the card take a little more or less


def run(context: Context) -> None:
    context.plan(STARTS)
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="trimtab-starts-") as directory:
        for name in STARTS:
            if context.has_time(name, 5.0):
                context.attempt(name, lambda: measured(context, Path(directory), found))


def measured(context: Context, directory: Path, found: list[dict[str, Any]]) -> dict[str, Any]:
    """Of one start; `found`: the earlier ones, to which it is added."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_CACHE_DIR"}
    environment["TRIMTAB_GPU_CACHE"] = str(directory)
    paths = [str(BENCHMARKS), str(BENCHMARKS.parent / "src"), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    job = {"settings": settings_json(context.settings), **context.arguments}
    begin = time.time()
    done = subprocess.run(
        [sys.executable, "-m", "gpu.starts", json.dumps({**job, "begin": begin})],
        env=environment,
        capture_output=True,
        text=True,
        timeout=max(1.0, context.left()),
        check=False,
    )
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no output"])[-1])
    values: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    found.append(values)
    first, again = found[0], len(found) > 1
    close = abs(values["kv_tokens"] - first["kv_tokens"]) <= SAME_CAPACITY * first["kv_tokens"]
    remembered = context.settings.device != "cuda" or values["step_is_remembered"] == again
    same = values["tokens"] == first["tokens"]
    return {**values, "passed": bool(close and remembered and same)}


def start(job: dict[str, Any]) -> dict[str, Any]:
    """In a process of its own."""
    from gpu.executors import batch_tokens, open_engine, open_executor, random_checkpoint

    settings = Settings(**job["settings"])
    times = [float(job["begin"]), time.time()]
    checkpoint = random_checkpoint(settings, job["shape"], job["weights"])
    checkpoint_seconds = time.time() - times[-1]
    executor = open_executor(settings, checkpoint, 0 if settings.device == "cuda" else 64)
    checkpoint.close()
    times.append(time.time())
    executor.capture(REQUESTS, lambda text: None)
    times.append(time.time())
    tokens, first_token = first_answer(open_engine(settings, executor), settings)
    executor.close()
    return {
        "import_s": times[1] - times[0],
        "executor_s": times[2] - times[1] - checkpoint_seconds,
        "capture_s": times[3] - times[2],
        "first_token_s": first_token,
        "start_s": times[3] - times[0] - checkpoint_seconds + first_token,
        "kv_tokens": executor.capacity.num_tokens,
        "step_rows": batch_tokens(settings),
        "step_is_remembered": executor.step_is_remembered,
        "tokens": tokens,
    }


def first_answer(engine: Any, settings: Settings) -> tuple[list[int], float]:
    """The tokens of the first request, and seconds until the first of them."""
    from gpu.streams import Driver

    case = TINY_FIRST if settings.tiny else FIRST
    driver = Driver(engine, settings.seed)
    request = driver.request(driver.prompts(1, case.prompt)[0], case.output)
    begin, first, tokens = time.perf_counter(), 0.0, []
    engine.add_request(request)
    while engine.num_live_requests:
        for output in engine.step():
            if output.finish_reason == "error":
                raise RuntimeError(output.error)
            tokens += [int(token) for token in output.token_ids]
        if tokens and not first:
            first = time.perf_counter() - begin
    return tokens, first


if __name__ == "__main__":
    print(json.dumps(start(json.loads(sys.argv[1]))))
