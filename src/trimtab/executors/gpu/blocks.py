"""Whole blocks of the KV cache, over all layers: copied, taken out, put back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from trimtab.executors.base import Int32Array, UInt8Array
from trimtab.executors.gpu.cache import KVCache
from trimtab.executors.gpu.checks import check_ids


class BlockStore:
    """Blocks 0 .. num_blocks - 1 of the caches of all layers. A block is the bytes of its part of
    every cache tensor, in the order of layers."""

    def __init__(self, caches: Sequence[KVCache], num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._parts = [
            tensor.view(torch.uint8).flatten(1) for cache in caches for tensor in cache.tensors
        ]
        self.device = self._parts[0].device

    @property
    def bytes_per_block(self) -> int:
        return sum(part.shape[1] for part in self._parts)

    def copy(self, sources: Int32Array, destinations: Int32Array) -> None:
        if len(sources) != len(destinations):
            raise ValueError("copy_blocks: as many destinations as sources")
        there, here = self._ids(destinations), self._ids(sources)
        with torch.inference_mode():
            for part in self._parts:
                part[there] = part[here]

    def gather(self, block_ids: Tensor) -> Tensor:
        """[n, bytes_per_block] uint8 on the device."""
        return torch.cat([part[block_ids] for part in self._parts], 1)

    def scatter(self, block_ids: Tensor, data: Tensor) -> None:
        """The same, back."""
        widths = [part.shape[1] for part in self._parts]
        for part, piece in zip(self._parts, torch.split_with_sizes(data, widths, 1), strict=True):
            part[block_ids] = piece

    def export(self, block_ids: Int32Array) -> UInt8Array:
        with torch.inference_mode():
            found: UInt8Array = self.gather(self._ids(block_ids)).cpu().numpy()
        return found

    def restore(self, block_ids: Int32Array, data: UInt8Array) -> None:
        if data.dtype != np.uint8 or data.shape != (len(block_ids), self.bytes_per_block):
            raise ValueError(
                f"import_blocks: data must be uint8 [{len(block_ids)}, {self.bytes_per_block}]"
            )
        with torch.inference_mode():
            copied = torch.from_numpy(np.array(data)).to(self.device)
            self.scatter(self._ids(block_ids), copied)

    def _ids(self, block_ids: Int32Array) -> Tensor:
        check_ids("block_ids", block_ids, self.num_blocks)
        return torch.from_numpy(block_ids.astype(np.int64)).to(self.device)
