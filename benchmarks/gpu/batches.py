"""Steps for an executor, and the logits of whole sequences computed by them."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from trimtab.engine.speculation.steps import Rows, greedy_sampling, rows_batch
from trimtab.executors.base import Float32Array, StepBatch

if TYPE_CHECKING:
    from trimtab.executors.base import Executor


def pieces(total: int, size: int) -> list[int]:
    return [min(size, total - start) for start in range(0, total, size)]


def make_batch(sequences: Sequence[Rows], last_only: bool = False) -> StepBatch:
    """With the logits of all rows, or of the last one of each sequence."""
    ends = np.cumsum([len(rows.token_ids) for rows in sequences], dtype=np.int32)
    logit_rows = ends - np.int32(1) if last_only else np.arange(ends[-1], dtype=np.int32)
    batch = rows_batch(sequences, greedy_sampling(logit_rows), logit_rows)
    batch.sampling.positions = batch.positions[logit_rows] + np.int32(1)
    batch.return_logits = True
    return batch


def sequence_logits(
    executor: Executor, ids: list[int], plan: Sequence[int], blocks: Sequence[int] | None = None
) -> Float32Array:
    """[rows, vocab] of one sequence, computed in steps of so many rows each; `blocks`: those that
    it may use, in order."""
    size = executor.capacity.block_size
    table = list(blocks or range(executor.capacity.num_blocks))[: -(-len(ids) // size)]
    out, start = [], 0
    for count in plan:
        end = start + count
        own = array("i", table[: -(-end // size)])
        result = executor.execute(make_batch([Rows(ids[start:end], start, own)]))
        assert result.logits is not None
        out.append(result.logits)
        start = end
    return np.concatenate(out)


def company_logits(
    executor: Executor, sequences: Sequence[list[int]], place: int, plan: Sequence[int]
) -> Float32Array:
    """[steps, vocab]: the last row of sequence `place` in each step of several that run together,
    all by the same plan."""
    size = executor.capacity.block_size
    per = -(-sum(plan) // size)
    out, start = [], 0
    for count in plan:
        end = start + count
        rows = [
            Rows(ids[start:end], start, array("i", range(i * per, i * per + -(-end // size))))
            for i, ids in enumerate(sequences)
        ]
        result = executor.execute(make_batch(rows, last_only=True))
        assert result.logits is not None
        out.append(result.logits[place])
        start = end
    return np.stack(out)
