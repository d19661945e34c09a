"""Small steps filled up to one of a few sizes, so that each size can be captured once.

    rows         | t0 | t1 t2 | t3 | p | p | p | p |     N = 8 rows: the next larger size
    sequences    |  0 |   1   |  2 | 3 | 4 | 5 | 6 |     and N sequences, the last ones empty

A row p that fills up is a sequence of its own: token 0 at position 0, without blocks, so that its
K and V go to the reserved block, which is all that it sees. Nobody looks at what comes out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trimtab.executors.base import StepBatch

MAX_ROWS = 256
ROWS = (1, 2, 4, *range(8, 65, 8), *range(80, 129, 16), *range(160, MAX_ROWS + 1, 32))
MAX_SEQUENCE_ROWS = (1, 4, 8, 17)  # decode; verification of drafts
SMALLEST_CONTEXT = 1024


@dataclass(frozen=True)
class Shape:
    """What steps that share a captured graph have in common; they may have less of each."""

    num_rows: int  # and as many sequences
    max_rows: int  # of a sequence
    max_context: int


def contexts(max_context: int) -> list[int]:
    """Four times as much each, up to what is served."""
    found = [SMALLEST_CONTEXT]
    while found[-1] < max_context:
        found.append(4 * found[-1])
    return [*found[:-1], max_context]


def shape_of(batch: StepBatch, max_context: int) -> Shape | None:
    """The smallest that this step fits in; None if it is too large."""
    rows = _at_least(ROWS, batch.num_rows)
    of_sequence = _at_least(MAX_SEQUENCE_ROWS, int(np.diff(batch.seq_starts).max()))
    context = _at_least(contexts(max_context), int(batch.positions.max()) + 1)
    if rows is None or of_sequence is None or context is None:
        return None
    return Shape(rows, of_sequence, context)


def padded(arrays: dict[str, npt.NDArray[Any]], num_rows: int) -> dict[str, npt.NDArray[Any]]:
    """`row_arrays` of a step, filled up to `num_rows` rows and sequences."""
    own = len(arrays["token_ids"])
    sequences = len(arrays["seq_starts"]) - 1
    filling = np.arange(num_rows - own, dtype=np.int32)
    ends = np.full(num_rows - sequences, num_rows, np.int32)
    ends[: len(filling)] = own + 1 + filling
    blocks = arrays["block_starts"]
    none = np.full(num_rows - sequences, blocks[-1], np.int32)
    return arrays | {
        "token_ids": _filled(arrays["token_ids"], num_rows, 0),
        "positions": _filled(arrays["positions"], num_rows, 0),
        "sequences": np.concatenate([arrays["sequences"], sequences + filling]),
        "chosen_before": _filled(arrays["chosen_before"], num_rows, -1),
        "seq_starts": np.concatenate([arrays["seq_starts"], ends]),
        "block_starts": np.concatenate([blocks, none]),
    }


def _filled(values: npt.NDArray[np.int32], count: int, value: int) -> npt.NDArray[np.int32]:
    filled = np.full(count, value, np.int32)
    filled[: len(values)] = values
    return filled


def _at_least(sizes: Any, value: int) -> int | None:
    return next((size for size in sizes if size >= value), None)
