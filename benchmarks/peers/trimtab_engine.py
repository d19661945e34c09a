"""trimtab itself: the engine in the worker's process, as `trimtab bench` drives it."""

from __future__ import annotations

from pathlib import Path

from worker import Options

from trimtab.config import ExecutorConfig, SchedulerConfig
from trimtab.engine.client import EngineRequest
from trimtab.engine.loading import load_engine
from trimtab.engine.sampling_params import SamplingParams

BLOCK = 16


class TrimtabEngine:
    def __init__(self, model: Path, options: Options) -> None:
        weights, _, group = options.format.partition("-g")
        executor = ExecutorConfig(
            weights=weights,  # type: ignore[arg-type]
            group_size=int(group or 64),
            threads=options.threads,
            num_blocks=options.max_tokens // BLOCK + 2 * options.max_streams,
        )
        scheduler = SchedulerConfig(
            prefix_cache=False, max_num_requests=options.max_streams, max_queued_requests=1024
        )
        self._engine = load_engine(str(model), executor, scheduler)
        self._serial = 0

    def generate(self, prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
        params = SamplingParams(max_tokens=num_tokens, temperature=0, ignore_eos=True)
        outputs: dict[str, list[int]] = {}
        for prompt in prompts:
            self._serial += 1
            outputs[f"r{self._serial}"] = []
            self._engine.add_request(EngineRequest(f"r{self._serial}", prompt, params))
        running = len(prompts)
        while running:
            for result in self._engine.step():
                if result.error:
                    raise RuntimeError(result.error)
                outputs[result.request_id] += result.token_ids
                running -= result.finish_reason is not None
        return list(outputs.values())


def load(model: Path, options: Options) -> TrimtabEngine:
    return TrimtabEngine(model, options)
