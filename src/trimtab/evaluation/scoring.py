"""Log-probabilities of windows, and whole rows of logits, straight from an executor.

Steps are ragged batches of as many whole windows as fit `max_rows`; a longer window takes steps of
its own. How windows share steps changes no result (docs/numerics.md).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from trimtab.engine.batch import BatchBuilder, logit_span
from trimtab.engine.request import Request
from trimtab.engine.sampling_params import SamplingParams
from trimtab.engine.scheduler import Chunk
from trimtab.errors import ConfigError, TrimtabError
from trimtab.evaluation.windows import Window
from trimtab.executors.base import Executor, Float32Array


@dataclass(frozen=True)
class ScoredRows:
    """Consecutive scored tokens of one window."""

    window: int
    first: int  # of the window's scored tokens
    logprobs: Float32Array  # [n] of the tokens themselves
    logits: Float32Array | None  # [n, vocab] that they were drawn from


def blocks_needed(windows: Sequence[Window], block_size: int, max_rows: int) -> int:
    """KV blocks that `score` needs at most at a time."""
    steps = _whole_windows(windows, max_rows)
    return max(
        sum(-(-len(windows[index].token_ids) // block_size) for index in step) for step in steps
    )


def score(
    executor: Executor, windows: Sequence[Window], max_rows: int, with_logits: bool = False
) -> Iterator[ScoredRows]:
    """In the order of the windows. No request may live in the executor: its blocks are overwritten.

    Raises ConfigError if a window is longer than the model's context or the KV cache, TrimtabError
    if the model's logits are not finite.
    """
    block_size = executor.capacity.block_size
    longest = max(len(window.token_ids) for window in windows)
    if longest > executor.spec.max_context:
        raise ConfigError(
            f"windows of {longest} tokens are longer than the model's context of "
            f"{executor.spec.max_context}: use shorter ones"
        )
    if blocks_needed(windows, block_size, max_rows) > executor.capacity.num_blocks:
        raise ConfigError(
            f"windows of {longest} tokens need more than the {executor.capacity.num_blocks} blocks "
            "of KV cache: use shorter ones, or a larger kv_cache_gib"
        )
    builder = BatchBuilder()
    for step in _whole_windows(windows, max_rows):
        requests, used = [], 0
        for index in step:
            request = _request(windows[index], used, block_size)
            used += len(request.block_ids)
            requests.append(request)
        longest = max(len(request.token_ids) for request in requests)
        for start in range(0, longest, max_rows):
            chunks = [
                Chunk(request, start, min(max_rows, len(request.token_ids) - start), emits=False)
                for request in requests
            ]
            yield from _run(executor, builder, step, chunks, with_logits)


def _run(
    executor: Executor,
    builder: BatchBuilder,
    step: Sequence[int],
    chunks: list[Chunk],
    with_logits: bool,
) -> Iterator[ScoredRows]:
    batch = builder.build(chunks)
    result = executor.execute(replace(batch, return_logits=with_logits))
    logprobs = result.target_logprobs
    if logprobs is None:
        return  # the last token of a window alone: there is nothing behind it to score
    if not np.isfinite(logprobs).all():
        raise TrimtabError("the model's logits are not finite: its weights are damaged")
    row = 0
    for index, chunk in zip(step, chunks, strict=True):
        first, last = logit_span(chunk)
        rows = slice(row, row + last - first)
        row += last - first
        if last > first:
            logits = result.logits[rows] if result.logits is not None else None
            yield ScoredRows(index, chunk.start + first, logprobs[rows], logits)


def _whole_windows(windows: Sequence[Window], max_rows: int) -> list[list[int]]:
    """Indices of the windows of each step."""
    steps: list[list[int]] = [[]]
    rows = 0
    for index, window in enumerate(windows):
        if steps[-1] and rows + len(window.token_ids) > max_rows:
            steps.append([])
            rows = 0
        steps[-1].append(index)
        rows += len(window.token_ids)
    return steps


def _request(window: Window, first_block: int, block_size: int) -> Request:
    count = len(window.token_ids)
    num_blocks = -(-count // block_size)
    return Request(
        request_id="window",
        params=SamplingParams(temperature=0),
        token_ids=array("i", window.token_ids),
        num_prompt_tokens=count,
        max_total_tokens=count,
        stop_ids=frozenset(),
        seed=0,
        order=(0, 0),
        cache_root=b"",
        num_prompt_logprobs=0,
        completes=False,
        block_ids=array("i", range(first_block, first_block + num_blocks)),
    )
