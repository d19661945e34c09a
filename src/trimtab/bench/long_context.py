"""Decode after a long context, without the prefill of it.

What a step costs does not depend on the values in the KV cache, only on how many there are. So one
block is computed and copied to all the others of the context: seconds where a prefill on a CPU
takes from minutes to hours.
"""

from __future__ import annotations

import time
from array import array
from typing import TYPE_CHECKING

import numpy as np

from trimtab.errors import ConfigError

if TYPE_CHECKING:
    from trimtab.executors.base import Executor

STEPS = 32  # measured, after two that are not
_WARM_UP = 2


def context_blocks(context: int, block_size: int) -> int:
    """KV blocks that `decode_rate` needs."""
    return -(-(context + _WARM_UP + STEPS) // block_size)


def check_context(executor: Executor, context: int) -> None:
    """Raises ConfigError if the context is longer than the model's or than the KV cache."""
    capacity, longest = executor.capacity, executor.spec.max_context
    after = _WARM_UP + STEPS
    if context + after > longest:
        raise ConfigError(
            f"a context of {context} and the {after} tokens after it are more than the {longest} "
            "of the model: use shorter contexts"
        )
    num_blocks = context_blocks(context, capacity.block_size)
    if num_blocks > capacity.num_blocks:
        raise ConfigError(
            f"a context of {context} needs {num_blocks} blocks of KV cache, there are "
            f"{capacity.num_blocks}: set a larger kv_cache_gib or num_blocks"
        )


def decode_rate(executor: Executor, context: int, seed: int = 0) -> float:
    """Greedy tokens a second of one stream whose `context` tokens lie in the KV cache.

    Overwrites the executor's blocks: no request may live. Raises ConfigError as `check_context`.
    """
    from trimtab.engine.batch import BatchBuilder
    from trimtab.engine.request import Request
    from trimtab.engine.sampling_params import SamplingParams
    from trimtab.engine.scheduler import Chunk

    check_context(executor, context)
    size, total = executor.capacity.block_size, context + _WARM_UP + STEPS
    num_blocks = context_blocks(context, size)
    vocab_size = executor.spec.vocab_size
    request = Request(
        request_id="long-context",
        params=SamplingParams(temperature=0, ignore_eos=True),
        token_ids=array("i", np.random.default_rng(seed).integers(0, vocab_size, total)),
        num_prompt_tokens=total,
        max_total_tokens=total,
        stop_ids=frozenset(),
        seed=seed,
        order=(0, 0),
        cache_root=b"",
        block_ids=array("i", range(num_blocks)),
    )
    builder = BatchBuilder()
    executor.execute(builder.build([Chunk(request, 0, min(size, context), emits=False)]))
    copies = np.arange(1, num_blocks, dtype=np.int32)
    executor.copy_blocks(np.zeros_like(copies), copies)
    for position in range(context, context + _WARM_UP):
        executor.execute(builder.build([Chunk(request, position, 1, emits=True)]))
    start = time.perf_counter()
    for position in range(context + _WARM_UP, total):
        executor.execute(builder.build([Chunk(request, position, 1, emits=True)]))
    return STEPS / (time.perf_counter() - start)
