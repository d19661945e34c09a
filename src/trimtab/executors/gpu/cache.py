"""The KV cache of one layer, in blocks.

What is attended to is what lies here, the current chunk's own K and V included. In memory the
places of a block and head follow one another, [num_blocks, Hk, B, D]: a kernel that reads one
head's share of a block reads one run of B * D elements (4 KiB of bf16 at B = 16, D = 128).

    keys      | block 0: head 0: place 0 .. B-1, head 1: ...        | block 1: ...
    slot s    = block s // B, place s % B; position p of a sequence = slot table[p // B] * B + p % B
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

KVCacheFormat = Literal["f32", "bf16", "f16", "fp8", "int8"]

DTYPES: dict[KVCacheFormat, torch.dtype] = {
    "f32": torch.float32,
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "fp8": torch.float8_e4m3fn,
    "int8": torch.int8,
}
# Largest magnitude that is stored; of a token and head, scale = its largest magnitude / this.
LARGEST: dict[KVCacheFormat, float] = {"fp8": 448.0, "int8": 127.0}


class KVCache:
    """`keys` and `values` [num_blocks, B, Hk, D]; of fp8 and int8 also `key_scales` and
    `value_scales` [num_blocks, B, Hk] float32, one for each token and head: element = stored *
    scale. These are views that may be written to but are not contiguous; `tensors` are. All zero
    at first."""

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        head_dim: int,
        format: KVCacheFormat,
        device: torch.device | str,
    ) -> None:
        self.format = format
        self.block_size = block_size
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_dim
        shape = (num_blocks, num_kv_heads, block_size, head_dim)
        stored = [torch.zeros(shape, dtype=DTYPES[format], device=device) for _ in range(2)]
        if format in LARGEST:
            stored += [torch.zeros(shape[:3], device=device) for _ in range(2)]
        views = [tensor.transpose(1, 2) for tensor in stored]
        self._stored = stored
        self.keys, self.values = views[:2]
        self.key_scales: Tensor | None = views[2] if format in LARGEST else None
        self.value_scales: Tensor | None = views[3] if format in LARGEST else None

    @property
    def num_blocks(self) -> int:
        return int(self._stored[0].shape[0])

    @property
    def tensors(self) -> list[Tensor]:
        """Everything that a block consists of, contiguous, blocks along dimension 0: keys, values
        [num_blocks, Hk, B, D], and their scales [num_blocks, Hk, B] if there are any."""
        return list(self._stored)

    @staticmethod
    def bytes_per_block(
        block_size: int, num_kv_heads: int, head_dim: int, format: KVCacheFormat
    ) -> int:
        """Of one layer."""
        scales = 4 if format in LARGEST else 0
        element = int(DTYPES[format].itemsize)
        return 2 * block_size * num_kv_heads * (head_dim * element + scales)
