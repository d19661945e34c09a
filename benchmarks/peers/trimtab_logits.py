"""trimtab's executor, for the logits of every row: `FORMAT` or `FORMAT kv=FORMAT`."""

from __future__ import annotations

from array import array
from dataclasses import replace
from pathlib import Path

import numpy as np
from trimtab_engine import BLOCK, version
from worker import Options

from trimtab.checkpoints import open_checkpoint, resolve_model
from trimtab.config import ExecutorConfig, parse_weights
from trimtab.engine.batch import BatchBuilder
from trimtab.engine.request import Request
from trimtab.engine.sampling_params import SamplingParams
from trimtab.engine.scheduler import Chunk
from trimtab.executors.cpu import CpuExecutor


class TrimtabExecutor:
    def __init__(self, model: Path, options: Options) -> None:
        name, _, kv_cache = options.format.partition(" kv=")
        weights, group_size = parse_weights(name)
        config = ExecutorConfig(
            weights=weights,
            group_size=group_size,
            kv_cache=kv_cache or "bf16",  # type: ignore[arg-type]
            threads=options.threads,
            num_blocks=-(-options.max_tokens // BLOCK),
        )
        self._executor = CpuExecutor(open_checkpoint(resolve_model(str(model))), config)
        self._batches = BatchBuilder()
        self.about = f"{version()}; path {self._executor.isa}, {self._executor.threads} threads"

    def logits(self, window: list[int]) -> np.ndarray:
        # Scoring a prompt needs the logits of all its tokens but the last.
        request = Request(
            request_id="window",
            params=SamplingParams(temperature=0),
            token_ids=array("i", [*window, 0]),
            num_prompt_tokens=len(window) + 1,
            max_total_tokens=len(window) + 1,
            stop_ids=frozenset(),
            seed=0,
            order=(0, 0),
            cache_root=b"",
            num_prompt_logprobs=0,
            completes=False,
            block_ids=array("i", range(-(-len(window) // BLOCK))),
        )
        batch = self._batches.build([Chunk(request, 0, len(window), emits=False)])
        result = self._executor.execute(replace(batch, return_logits=True))
        assert result.logits is not None
        return result.logits


def load(model: Path, options: Options) -> TrimtabExecutor:
    return TrimtabExecutor(model, options)
