"""Steps of the models that guess."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from trimtab.executors.base import Int32Array, SamplingBatch, StepBatch

_ONE = np.array(1, np.int32)


class Rows(NamedTuple):
    """Of one sequence: tokens at consecutive positions, and its block table."""

    token_ids: Sequence[int]
    position: int  # of the first
    block_ids: array[int]


def rows_batch(
    sequences: Iterable[Rows], sampling: SamplingBatch, logit_rows: Int32Array
) -> StepBatch:
    token_ids, block_ids = array("i"), array("i")
    positions: list[Int32Array] = []
    seq_starts, block_starts = [0], [0]
    for rows in sequences:
        token_ids.extend(rows.token_ids)
        block_ids.extend(rows.block_ids)
        end = rows.position + len(rows.token_ids)
        positions.append(np.arange(rows.position, end, dtype=np.int32))
        seq_starts.append(len(token_ids))
        block_starts.append(len(block_ids))
    return StepBatch(
        token_ids=np.asarray(token_ids),
        positions=np.concatenate(positions),
        seq_starts=np.array(seq_starts, np.int32),
        block_starts=np.array(block_starts, np.int32),
        block_ids=np.asarray(block_ids),
        logit_rows=logit_rows,
        sampling=sampling,
    )


def next_batch(batch: StepBatch, token_ids: Sequence[int]) -> StepBatch:
    """The step behind `batch` of the same sequences, each with the one token that goes on from its
    last row. The block tables of `batch` must reach that far, and its sampling must have one row
    for each sequence, of a request that `is_settled`."""
    count = len(token_ids)
    positions, seq_starts, logit_rows = batch.positions, batch.seq_starts, batch.logit_rows
    if len(positions) != count:
        positions = positions[logit_rows]
        seq_starts, logit_rows = (
            np.arange(count + 1, dtype=np.int32),
            np.arange(count, dtype=np.int32),
        )
    sampling = {name: getattr(batch.sampling, name) for name in SamplingBatch.__slots__}
    sampling["positions"] = batch.sampling.positions + _ONE
    return StepBatch(
        token_ids=np.array(token_ids, np.int32),
        positions=positions + _ONE,
        seq_starts=seq_starts,
        block_starts=batch.block_starts,
        block_ids=batch.block_ids,
        logit_rows=logit_rows,
        sampling=SamplingBatch(**sampling),
        features=batch.features,
    )


def greedy_sampling(positions: Int32Array) -> SamplingBatch:
    """Rows that take the most likely token, whatever came before."""
    count = len(positions)
    none, starts = np.zeros(0, np.int32), np.zeros(count + 1, np.int32)
    ones, zeros = np.ones(count, np.float32), np.zeros(count, np.float32)
    return SamplingBatch(
        temperature=zeros,
        top_k=np.zeros(count, np.int32),
        top_p=ones,
        min_p=zeros,
        repetition_penalty=ones,
        presence_penalty=zeros,
        frequency_penalty=zeros,
        seeds=np.zeros(count, np.uint64),
        positions=positions,
        num_logprobs=np.full(count, -1, np.int32),
        bias_starts=starts,
        bias_ids=none,
        bias_values=np.zeros(0, np.float32),
        banned_starts=starts,
        banned_ids=none,
        prompt_starts=starts,
        prompt_ids=none,
        output_starts=starts,
        output_ids=none,
        mask_rows=np.full(count, -1, np.int32),
        mask=np.zeros((0, 0), np.uint32),
    )
