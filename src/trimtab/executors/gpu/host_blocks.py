"""Blocks of the KV cache in host memory, copied while the device computes.

    save   compute: blocks -> staging | copies: staging -> slots (host)         compute goes on
    load   copies: slots -> staging   | compute: waits for that, staging -> blocks

Copies have a stream of their own and are done in order, so a slot that is saved and then loaded is
read when it is there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from trimtab.executors.gpu.blocks import BlockStore
from trimtab.executors.gpu.checks import check_ids


class HostBlocks:
    """Raises RuntimeError if the system refuses memory; ValueError for slots that do not exist."""

    def __init__(self, num_slots: int, blocks: BlockStore, device: torch.device) -> None:
        self.num_slots = num_slots
        self._blocks = blocks
        self._on_gpu = device.type == "cuda"
        self._device = device
        shape = (num_slots, blocks.bytes_per_block)
        self._slots = torch.empty(shape, dtype=torch.uint8, pin_memory=self._on_gpu)
        self._stream = torch.cuda.Stream(device) if self._on_gpu else None

    def save(self, block_ids: Sequence[int], slots: Sequence[int]) -> None:
        self._check(slots)
        with torch.inference_mode():
            self._save(self._ids(block_ids, self._blocks.num_blocks), slots)

    def _save(self, block_ids: Tensor, slots: Sequence[int]) -> None:
        gathered = self._blocks.gather(block_ids)
        if self._stream is None:
            self._slots[list(slots)] = gathered
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            for row, slot in zip(gathered, slots, strict=True):
                self._slots[slot].copy_(row, non_blocking=True)
        gathered.record_stream(self._stream)

    def load(self, slots: Sequence[int], block_ids: Sequence[int]) -> None:
        self._check(slots)
        with torch.inference_mode():
            self._load(slots, self._ids(block_ids, self._blocks.num_blocks))

    def _load(self, slots: Sequence[int], ids: Tensor) -> None:
        if self._stream is None:
            self._blocks.scatter(ids, self._slots[list(slots)])
            return
        current = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._stream):
            shape = (len(slots), self._blocks.bytes_per_block)
            staged = torch.empty(shape, dtype=torch.uint8, device=self._device)
            for row, slot in zip(staged, slots, strict=True):
                row.copy_(self._slots[slot], non_blocking=True)
        current.wait_stream(self._stream)
        self._blocks.scatter(ids, staged)
        staged.record_stream(current)

    def _ids(self, block_ids: Sequence[int], limit: int) -> Tensor:
        found = np.asarray(block_ids, np.int64)
        check_ids("block_ids", found, limit)
        return torch.from_numpy(found).to(self._device, non_blocking=True)

    def _check(self, slots: Sequence[int]) -> None:
        check_ids("slots", np.asarray(slots, np.int64), self.num_slots)
