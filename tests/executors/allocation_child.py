"""Run by test_allocations with count_allocations.so preloaded: counts what steps allocate.

allocation_child.py SHIM WEIGHTS KV     prints {"interposed": b, "first": n, "later": [n, ...]}
"""

from __future__ import annotations

import ctypes
import json
import sys
from typing import Any

from cpu_models import memory_model

from trimtab.config import ExecutorConfig
from trimtab.engine.client import EngineRequest
from trimtab.engine.engine import Engine
from trimtab.engine.sampling_params import SamplingParams
from trimtab.executors.base import StepBatch, StepResult
from trimtab.executors.cpu import CpuExecutor

PROMPT = 40
GREEDY: dict[str, Any] = {"temperature": 0.0}
# One request each; together every option of the sampler.
OPTIONS: list[dict[str, Any]] = [
    GREEDY,
    {"temperature": 0.8},
    {"top_p": 0.3, "logprobs": 5},
    {"top_p": 0.95, "min_p": 0.01},
    {"top_k": 10, "top_p": 0.9, "min_tokens": 3, "stop_token_ids": (5,)},
    {"repetition_penalty": 1.2, "presence_penalty": 0.1, "frequency_penalty": 0.1},
    {"temperature": 0.0, "logit_bias": {3: 2.0}, "logprobs": 0},
]


def main() -> None:
    shim = ctypes.PyDLL(sys.argv[1])  # keeps the GIL: the marks are not part of what they mark
    shim.stop_counting.restype = ctypes.c_long
    executor = CpuExecutor(
        memory_model(),
        ExecutorConfig(weights=sys.argv[2], kv_cache=sys.argv[3], threads=2, num_blocks=512),
    )
    counts: list[int] = []
    execute = executor.execute

    def counted(batch: StepBatch) -> StepResult:
        shim.start_counting()
        try:
            return execute(batch)
        finally:
            counts.append(shim.stop_counting())

    executor.execute = counted  # type: ignore[method-assign]
    engine = Engine(executor)

    def run(label: str, options: list[dict[str, Any]], num_tokens: int) -> None:
        for index, option in enumerate(options):
            params = SamplingParams(max_tokens=num_tokens, seed=index, ignore_eos=True, **option)
            prompt = [(7 * index + i) % 77 for i in range(PROMPT)]
            engine.add_request(EngineRequest(f"{label}-{index}", prompt, params))
        while engine.num_live_requests:
            for output in engine.step():
                assert output.error is None, output.error

    run("warm", OPTIONS, 3)
    run("warm-alone", [GREEDY], 3)
    first = sum(counts)
    counts.clear()
    run("same", OPTIONS, 30)
    run("long", OPTIONS, 500)  # past the first partition of the context
    run("alone", [GREEDY], 1100)
    interposed = bool(shim.is_interposed())
    print(json.dumps({"interposed": interposed, "first": first, "later": counts}))


main()
