"""From a step's plan to the flat arrays of a StepBatch."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from itertools import accumulate

import numpy as np

from trimtab.engine.request import Request
from trimtab.engine.scheduler import Chunk
from trimtab.executors.base import Int32Array, SamplingBatch, StepBatch

_NO_MASK = np.zeros((0, 0), np.uint32)


def logit_positions(chunk: Chunk) -> range:
    """Positions whose logits the chunk needs: its last row if it emits, or all that are scored."""
    end = chunk.start + chunk.count
    if chunk.request.score_prompt:
        return range(chunk.start, min(end, chunk.request.num_prompt_tokens - 1))
    return range(end - 1, end) if chunk.emits else range(0)


def build_batch(chunks: Sequence[Chunk]) -> StepBatch:
    """The chunks in their order; logit rows ascending, `logit_positions` of each chunk in turn."""
    token_ids, positions, block_ids = array("i"), array("i"), array("i")
    logit_rows, targets = array("i"), array("i")
    sampled: list[Request] = []
    sampled_positions = array("i")
    scoring = False
    for chunk in chunks:
        request, first_row = chunk.request, len(token_ids)
        token_ids.extend(request.token_ids[chunk.start : chunk.start + chunk.count])
        positions.extend(range(chunk.start, chunk.start + chunk.count))
        block_ids.extend(request.block_ids)
        for position in logit_positions(chunk):
            logit_rows.append(first_row + position - chunk.start)
            targets.append(request.token_ids[position + 1] if request.score_prompt else -1)
            sampled.append(request)
            sampled_positions.append(position + 1)
        scoring = scoring or request.score_prompt
    return StepBatch(
        token_ids=_int32(token_ids),
        positions=_int32(positions),
        seq_starts=_starts(chunk.count for chunk in chunks),
        block_starts=_starts(len(chunk.request.block_ids) for chunk in chunks),
        block_ids=_int32(block_ids),
        logit_rows=_int32(logit_rows),
        sampling=build_sampling(sampled, sampled_positions),
        targets=_int32(targets) if scoring else None,
    )


def build_sampling(requests: Sequence[Request], positions: array[int]) -> SamplingBatch:
    """One row for each (request, position of the token to choose)."""
    params = [request.params for request in requests]
    bias_ids, banned_ids = array("i"), array("i")
    prompt_ids, output_ids = array("i"), array("i")
    bias_values: list[float] = []
    bias_starts, banned_starts = [0], [0]
    prompt_starts, output_starts = [0], [0]
    for request, own in zip(requests, params, strict=True):
        if own.logit_bias:
            bias_ids.extend(own.logit_bias.keys())
            bias_values.extend(own.logit_bias.values())
        if own.min_tokens:
            banned_ids.extend(sorted(request.banned_ids))
        if own.repetition_penalty != 1:
            prompt_ids.extend(request.token_ids[: request.num_prompt_tokens])
        if own.repetition_penalty != 1 or own.frequency_penalty or own.presence_penalty:
            output_ids.extend(request.token_ids[request.num_prompt_tokens :])
        bias_starts.append(len(bias_ids))
        banned_starts.append(len(banned_ids))
        prompt_starts.append(len(prompt_ids))
        output_starts.append(len(output_ids))
    return SamplingBatch(
        temperature=np.array([p.temperature for p in params], np.float32),
        top_k=np.array([max(p.top_k, 0) for p in params], np.int32),
        top_p=np.array([p.top_p for p in params], np.float32),
        min_p=np.array([p.min_p for p in params], np.float32),
        repetition_penalty=np.array([p.repetition_penalty for p in params], np.float32),
        presence_penalty=np.array([p.presence_penalty for p in params], np.float32),
        frequency_penalty=np.array([p.frequency_penalty for p in params], np.float32),
        seeds=np.array([request.seed for request in requests], np.uint64),
        positions=_int32(positions),
        num_logprobs=np.array([-1 if p.logprobs is None else p.logprobs for p in params], np.int32),
        bias_starts=np.array(bias_starts, np.int32),
        bias_ids=_int32(bias_ids),
        bias_values=np.array(bias_values, np.float32),
        banned_starts=np.array(banned_starts, np.int32),
        banned_ids=_int32(banned_ids),
        prompt_starts=np.array(prompt_starts, np.int32),
        prompt_ids=_int32(prompt_ids),
        output_starts=np.array(output_starts, np.int32),
        output_ids=_int32(output_ids),
        mask_rows=np.full(len(params), -1, np.int32),
        mask=_NO_MASK,
    )


def _int32(values: array[int]) -> Int32Array:
    return np.array(values, np.int32)


def _starts(lengths: Iterable[int]) -> Int32Array:
    return np.array([0, *accumulate(lengths)], np.int32)
