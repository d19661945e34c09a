"""The rows of a step, from the arrays of a StepBatch to what the model reads.

What the host sends is as it comes from the engine: block tables one behind the other. On the device
they become the rectangle and the cache slots that the kernels read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trimtab.executors.base import StepBatch
from trimtab.executors.gpu.model import Rows
from trimtab.executors.gpu.reference import PARTITION


def row_arrays(batch: StepBatch) -> dict[str, npt.NDArray[Any]]:
    """What is staged for a step; see `staged_rows`."""
    rows = batch.num_rows
    counts = np.diff(batch.seq_starts)
    arrays: dict[str, npt.NDArray[Any]] = {
        "token_ids": batch.token_ids,
        "positions": batch.positions,
        "sequences": np.repeat(np.arange(batch.num_seqs, dtype=np.int32), counts),
        "chosen_before": np.full(rows, -1, np.int32)
        if batch.chosen_before is None
        else batch.chosen_before,
        "seq_starts": batch.seq_starts,
        "block_starts": batch.block_starts,
        "block_ids": batch.block_ids,
        "logit_rows": batch.logit_rows,
    }
    if batch.hidden_rows is not None:
        arrays["hidden_rows"] = batch.hidden_rows
    return arrays


def no_rows() -> dict[str, npt.NDArray[Any]]:
    """`row_arrays` of an empty step, to be filled up."""
    none, start = np.zeros(0, np.int32), np.zeros(1, np.int32)
    names = ("token_ids", "positions", "sequences", "chosen_before")
    return dict.fromkeys(names, none) | {
        "seq_starts": start,
        "block_starts": start,
        "block_ids": none,
        "logit_rows": none,
    }


@dataclass(slots=True, eq=False)
class StagedRows:
    """The arrays of `row_arrays` on the device."""

    token_ids: Tensor  # [T]
    positions: Tensor  # [T]
    sequences: Tensor  # [T] the row's sequence
    chosen_before: Tensor  # [T] place among the tokens of the step before, or -1
    seq_starts: Tensor  # [S + 1]
    block_starts: Tensor  # [S + 1]
    block_ids: Tensor
    max_rows: int
    max_context: int
    max_partitions: int = 0  # of a step that may be followed by others of its shape: unknown

    def on_device(self, chosen: Tensor, reserved_block: int, block_size: int) -> Rows:
        """`chosen`: the tokens of the step before. Nothing here waits for the device."""
        before = self.chosen_before.long()
        token_ids = torch.where(before >= 0, chosen[before.clamp(min=0)], self.token_ids)
        tables = self._tables(-(-self.max_context // block_size), reserved_block)
        positions = self.positions.long()
        blocks = tables[self.sequences.long(), positions // block_size].long()
        return Rows(
            token_ids=token_ids,
            positions=self.positions,
            slots=blocks * block_size + positions % block_size,
            seq_starts=self.seq_starts,
            block_tables=tables,
            max_rows=self.max_rows,
            max_context=self.max_context,
            max_partitions=self.max_partitions,
        )

    def _tables(self, width: int, reserved_block: int) -> Tensor:
        """[S, width] int32; the reserved block behind each table's end."""
        starts = self.block_starts.long()
        places = starts[:-1, None] + torch.arange(width, device=starts.device)
        inside = places < starts[1:, None]
        # A sequence without blocks must not read behind the last id.
        found = self.block_ids[torch.where(inside, places, 0)]
        return torch.where(inside, found, reserved_block)


def staged_rows(batch: StepBatch, views: Mapping[str, Tensor]) -> StagedRows:
    contexts = batch.positions[batch.seq_starts[1:] - 1] + 1
    return StagedRows(
        token_ids=views["token_ids"],
        positions=views["positions"],
        sequences=views["sequences"],
        chosen_before=views["chosen_before"],
        seq_starts=views["seq_starts"],
        block_starts=views["block_starts"],
        block_ids=views["block_ids"],
        max_rows=int(np.diff(batch.seq_starts).max()),
        max_context=int(contexts.max()),
        max_partitions=int((-(-contexts // PARTITION)).sum()),
    )
