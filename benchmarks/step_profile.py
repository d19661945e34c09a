"""Where a decode step's time goes: scheduling, the border, matrices, attention, sampling.

    python benchmarks/step_profile.py MODEL --weights int4
    python benchmarks/step_profile.py MODEL --batches 1 16 --sampling greedy nucleus plain --json

An engine in this process decodes batches of random prompts. Each step is timed from outside, and
inside by the native core's own clock at each phase; rows are medians over the steps, each with its
share of the whole step:

    scheduling     the engine's Python: plan, batch arrays, commit
    border         from the executor's Python into the core and back: checks, views, results
    program        the core's own plan of the step
    inputs         norms, and quantization of what matrices read
    projections    the matrices of the layers           head   the output matrix
    rotation       norms of heads, rotary embedding, K and V into the cache
    attention, norms (after a block), embedding, sampling

"other" is all but projections, head and attention. The engine thread's work between steps (taking
requests in, handing tokens out) is measured with --threaded, on an AsyncEngine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trimtab.config import ExecutorConfig, SchedulerConfig
from trimtab.engine.async_engine import AsyncEngine
from trimtab.engine.client import EngineRequest
from trimtab.engine.engine import Engine
from trimtab.engine.loading import load_engine
from trimtab.engine.sampling_params import SamplingParams
from trimtab.errors import UserError
from trimtab.executors.cpu import CpuExecutor

SAMPLING: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "plain": {"temperature": 1.0},
    "nucleus": {"temperature": 0.8, "top_p": 0.95},
    "top-k": {"temperature": 0.8, "top_k": 50},
}
INSIDE = ("projections", "head", "attention")  # what a step is for
SKIPPED = 4  # decode steps at either end of a run: batches there are new or not full


@dataclass
class Clock:
    """Wraps an engine so that each step leaves its times, in seconds."""

    engine: Engine
    steps: list[dict[str, float]] = field(default_factory=list)
    _execute_seconds: float = 0.0
    _left: float | None = None  # when the latest step returned

    def __post_init__(self) -> None:
        executor = self.engine.executor
        assert isinstance(executor, CpuExecutor)
        executor.set_timed(True)
        self._times = executor.step_times
        self._execute, self._step = executor.execute, self.engine.step
        executor.execute = self._timed_execute  # type: ignore[method-assign]
        self.engine.step = self._timed_step  # type: ignore[method-assign]

    def _timed_execute(self, batch: Any) -> Any:
        start = time.perf_counter()
        try:
            return self._execute(batch)
        finally:
            self._execute_seconds = time.perf_counter() - start

    def _timed_step(self) -> Any:
        start = time.perf_counter()
        outputs = self._step()
        end = time.perf_counter()
        inside = self._times()
        row = {
            "between": start - self._left if self._left is not None else 0.0,
            "scheduling": end - start - self._execute_seconds,
            "border": self._execute_seconds - sum(inside.values()),
            **inside,
        }
        self.steps.append(row)
        self._left = time.perf_counter()
        return outputs


def requests(count: int, tokens: int, vocab_size: int, sampling: str) -> list[EngineRequest]:
    random = np.random.default_rng(time.time_ns())
    params = SamplingParams(max_tokens=tokens, ignore_eos=True, **SAMPLING[sampling])
    prompts = random.integers(0, vocab_size, (count, 128)).tolist()
    return [EngineRequest(f"{time.time_ns()}-{i}", ids, params) for i, ids in enumerate(prompts)]


def run_inline(clock: Clock, batch: list[EngineRequest]) -> None:
    for request in batch:
        clock.engine.add_request(request)
    clock._left = None
    while clock.engine.num_live_requests:
        for output in clock.engine.step():
            if output.error is not None:
                raise RuntimeError(output.error)


def run_threaded(client: AsyncEngine) -> Callable[[Clock, list[EngineRequest]], None]:
    async def consume(request: EngineRequest) -> None:
        async for output in client.generate(request):
            if output.error is not None:
                raise RuntimeError(output.error)

    async def consume_all(batch: list[EngineRequest]) -> None:
        await asyncio.gather(*map(consume, batch))

    return lambda _, batch: asyncio.run(consume_all(batch))


def profile(steps: list[dict[str, float]], threaded: bool) -> dict[str, float]:
    """Median seconds of each row, of the whole step, and `other` as a share of it."""
    if not threaded:
        for step in steps:
            step.pop("between", None)
    rows = {name: statistics.median(step[name] for step in steps) for name in steps[0]}
    whole = statistics.median(sum(step.values()) for step in steps)
    other = [1 - sum(step[name] for name in INSIDE) / sum(step.values()) for step in steps]
    sampling = [step["sampling"] / sum(step.values()) for step in steps]
    return rows | {
        "step": whole,
        "other_share": statistics.median(other),
        "sampling_share": statistics.median(sampling),
    }


def show(label: str, result: dict[str, float]) -> None:
    print(f"\n{label}: {result['step'] * 1e3:.2f} ms a step")
    for name, seconds in result.items():
        if name != "step" and not name.endswith("_share"):
            print(f"  {name:12} {seconds * 1e6:9.1f} us  {seconds / result['step']:6.2%}")
    print(f"  {'other':12} {'':12}  {result['other_share']:6.2%}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--weights", default="int4")
    parser.add_argument("--kv-cache", default="bf16")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--sampling", nargs="+", choices=SAMPLING, default=["greedy", "nucleus"])
    parser.add_argument("--steps", type=int, default=60, help="measured of each run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threaded", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    config = ExecutorConfig(
        weights=options.weights, kv_cache=options.kv_cache, threads=options.threads, num_blocks=512
    )
    try:
        engine = load_engine(
            options.model, config, SchedulerConfig(prefix_cache=False, speculative="off")
        )
    except UserError as error:
        print(f"step_profile: {error}", file=sys.stderr)
        return 2
    clock = Clock(engine)
    client = AsyncEngine(engine) if options.threaded else None
    run = run_threaded(client) if client is not None else run_inline
    collected: dict[str, list[dict[str, float]]] = {}
    for _ in range(options.rounds):
        for batch in options.batches:
            for sampling in options.sampling:
                clock.steps.clear()
                tokens = options.steps + 2 * SKIPPED
                run(clock, requests(batch, tokens, engine.info.vocab_size, sampling))
                found = collected.setdefault(f"batch {batch}, {sampling}", [])
                found.extend(clock.steps[-options.steps - SKIPPED : -SKIPPED])
    if client is not None:
        client.shutdown()
    results = {label: profile(steps, options.threaded) for label, steps in collected.items()}
    if options.json:
        print(json.dumps(results))
    else:
        print(engine.info.executor)
        for label, result in results.items():
            show(label, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
