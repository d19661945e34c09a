"""From a step's plan to the flat arrays of a StepBatch."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from trimtab.engine.request import Request
from trimtab.engine.scheduler import Chunk
from trimtab.executors.base import Int32Array, SamplingBatch, StepBatch


def logit_positions(chunk: Chunk) -> range:
    """Positions whose logits the chunk needs: its last row if it emits, or all that are scored."""
    end = chunk.start + chunk.count
    if chunk.request.score_prompt:
        return range(chunk.start, min(end, chunk.request.num_prompt_tokens - 1))
    return range(end - 1, end) if chunk.emits else range(0)


class BatchBuilder:
    """Keeps what did not change since the last batch: while the same requests decode, most of
    their sampling parameters are the very same arrays."""

    def __init__(self) -> None:
        self._requests: list[Request] | None = None
        self._fixed: dict[str, Any] = {}

    def build(self, chunks: Sequence[Chunk]) -> StepBatch:
        """The chunks in their order; logit rows ascending, `logit_positions` of each in turn."""
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
            sampling=self.build_sampling(sampled, sampled_positions),
            targets=_int32(targets) if scoring else None,
        )

    def build_sampling(self, requests: list[Request], positions: array[int]) -> SamplingBatch:
        """One row for each (request, position of the token to choose)."""
        if requests != self._requests:
            self._requests, self._fixed = requests, _fixed_arrays(requests)
        banned = [
            sorted(request.banned_ids) if request.params.min_tokens else () for request in requests
        ]
        outputs = [
            request.token_ids[request.num_prompt_tokens :] if _has_penalties(request) else ()
            for request in requests
        ]
        banned_starts, banned_ids = _ragged(banned)
        output_starts, output_ids = _ragged(outputs)
        return SamplingBatch(
            positions=_int32(positions),
            banned_starts=banned_starts,
            banned_ids=banned_ids,
            output_starts=output_starts,
            output_ids=output_ids,
            **self._fixed,
        )


def _has_penalties(request: Request) -> bool:
    params = request.params
    return bool(
        params.repetition_penalty != 1 or params.frequency_penalty or params.presence_penalty
    )


def _fixed_arrays(requests: list[Request]) -> dict[str, Any]:
    """The fields of SamplingBatch that depend on the requests alone, not on their progress."""
    params = [request.params for request in requests]
    prompts = [
        request.token_ids[: request.num_prompt_tokens]
        if request.params.repetition_penalty != 1
        else ()
        for request in requests
    ]
    bias_starts, bias_ids = _ragged([p.logit_bias for p in params])
    prompt_starts, prompt_ids = _ragged(prompts)
    return {
        "temperature": np.array([p.temperature for p in params], np.float32),
        "top_k": np.array([max(p.top_k, 0) for p in params], np.int32),
        "top_p": np.array([p.top_p for p in params], np.float32),
        "min_p": np.array([p.min_p for p in params], np.float32),
        "repetition_penalty": np.array([p.repetition_penalty for p in params], np.float32),
        "presence_penalty": np.array([p.presence_penalty for p in params], np.float32),
        "frequency_penalty": np.array([p.frequency_penalty for p in params], np.float32),
        "seeds": np.array([request.seed for request in requests], np.uint64),
        "num_logprobs": np.array(
            [-1 if p.logprobs is None else p.logprobs for p in params], np.int32
        ),
        "bias_starts": bias_starts,
        "bias_ids": bias_ids,
        "bias_values": np.array([v for p in params for v in p.logit_bias.values()], np.float32),
        "prompt_starts": prompt_starts,
        "prompt_ids": prompt_ids,
        "mask_rows": np.full(len(params), -1, np.int32),
        "mask": np.zeros((0, 0), np.uint32),
    }


def _ragged(rows: Sequence[Collection[int]]) -> tuple[Int32Array, Int32Array]:
    """Starts [R + 1] and concatenated values of R rows."""
    values = array("i")
    for row in rows:
        if row:
            values.extend(row)
    return _starts(map(len, rows)), _int32(values)


def _int32(values: array[int]) -> Int32Array:
    return np.array(values, np.int32)


def _starts(lengths: Iterable[int]) -> Int32Array:
    return np.array([0, *accumulate(lengths)], np.int32)
