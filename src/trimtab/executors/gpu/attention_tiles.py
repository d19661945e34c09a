"""Tiles of the attention kernels: fixed by the shape of a head, never by the load or by timing.

The order in which a row's context is accumulated is: tiles of `KEYS` positions within partitions of
`PARTITION`, both at fixed absolute positions; partitions are combined in ascending order. Every
kernel keeps it, so which kernel serves a row, with how many others, changes no bit:

    position     0       64      128     192     256     320
    tiles        |-------|-------|-------|-------|-------|---
    partitions   |------------- 0 ---------------|----- 1 ---   (m, l, acc of 0) + (m, l, acc of 1)

Products have the same instruction in every kernel: tiles have at least 64 rows (query heads of one
KV head side by side), which sm_90 multiplies by wgmma m64nNk16, each warp 16 rows whole, so that a
row's maximum and sum have one order too. A decode row wastes most of such a tile; that is free as
long as memory is the limit: a tile of 64 positions of 128 x bf16 is 32 KiB, at 4.3 TB/s about 1700
cycles of one SM's share, its two products 512 cycles, its exponentials 256.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

PARTITION = 256  # positions


@dataclass(frozen=True)
class Tile:
    rows: int  # query rows x heads of a group
    keys: int  # positions; divides PARTITION
    warps: int
    stages: int  # of K and V tiles on their way


@dataclass(frozen=True)
class Tiles:
    """`keys` is the same in all three."""

    split: Tile  # few rows: decode
    wide_split: Tile  # verification of drafts
    flash: Tile  # prefill


def tiles_of(head_dim: int, products: torch.dtype, stored: torch.dtype) -> Tiles:
    """For heads of `head_dim`, 256 at most, products of one type and K and V stored as another.

    What limits a tile: 255 registers a thread, of which the states of its rows take D * 4 bytes a
    row (twice that in flash); 227 KiB of shared memory for stages + 1 tiles of K and V and the
    queries. Split tiles up to D = 128 take less than half of both: an SM holds two programs, one of
    which loads while the other computes. Flash with K and V of one byte spills nothing up to D =
    128 (two registers with a window), some 40 at D = 256."""
    if products == torch.float32:  # no tensor cores; for tests
        return Tiles(Tile(16, 64, 4, 1), Tile(32, 64, 4, 1), Tile(64, 64, 8, 1))
    if head_dim <= 64:
        return Tiles(Tile(64, 64, 4, 3), Tile(128, 64, 8, 3), Tile(128, 64, 8, 3))
    if head_dim <= 128:
        stages = 3 if stored.itemsize == 1 else 2
        return Tiles(Tile(64, 64, 4, stages), Tile(128, 64, 8, 3), Tile(128, 64, 8, 3))
    if head_dim <= 256:  # 8 warps share 64 rows, in every kernel
        large = Tile(64, 32, 8, 3)
        return Tiles(large, large, large)
    raise ValueError(f"attention kernels take heads of up to 256, this one is of {head_dim}")


def num_programs(like: Tensor) -> int:
    """Programs of the split kernel that a device holds at once."""
    if like.is_cuda:
        return 2 * int(torch.cuda.get_device_properties(like.device).multi_processor_count)
    return 2  # the interpreter
