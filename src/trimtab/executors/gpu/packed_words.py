"""Integers of 4 or 8 bits as the weight-only kernels read them.

A word holds F = 32 / bits columns that lie 16 apart, so that one shift and one mask of a tile of
words is a tile of 16 neighbouring columns, the K of one matrix instruction:

    words [ceil(N / 64), ceil(K / 16F), 64, 16] int32
    field j of words[n // 64, t, n % 64, c] = u[n, 16F t + 16 j + c]

u is unsigned (value + 2^(bits - 1)). A tile of 64 rows and 16F columns is 4 KiB that lie together:
whole lines of 128 bytes, loads of 16 bytes a thread. Rows and columns are padded with 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

PANEL_ROWS = 64
SLICE = 16  # columns of a matrix instruction


def chunk_columns(bits: int) -> int:
    """Columns that a row of a tile of words holds: 128 of 4 bits, 64 of 8."""
    return SLICE * 32 // bits


def pack_words(unsigned: Tensor, bits: int) -> Tensor:
    """uint8 [N, K], elements below 2^bits, to words as above."""
    rows, cols = unsigned.shape
    chunk, fields = chunk_columns(bits), 32 // bits
    panels, chunks = -(-rows // PANEL_ROWS), -(-cols // chunk)
    padded = unsigned.new_zeros((panels * PANEL_ROWS, chunks * chunk))
    padded[:rows, :cols] = unsigned
    tiles = padded.view(panels, PANEL_ROWS, chunks, fields, SLICE)
    words = torch.zeros(
        (panels, PANEL_ROWS, chunks, SLICE), dtype=torch.int32, device=unsigned.device
    )
    for field in range(fields):  # the highest field sets the sign: int32 arithmetic wraps
        words |= tiles[:, :, :, field].to(torch.int32) << (field * bits)
    return words.transpose(1, 2).contiguous()


def unpack_words(words: Tensor, bits: int, rows: int, cols: int) -> Tensor:
    """uint8 [rows, cols] of words."""
    panels, chunks = words.shape[:2]
    fields = [(words >> (field * bits)) & (1 << bits) - 1 for field in range(32 // bits)]
    tiles = torch.stack(fields, dim=3).to(torch.uint8)  # [panels, chunks, 64, F, 16]
    flat = tiles.transpose(1, 2).reshape(panels * PANEL_ROWS, chunks * chunk_columns(bits))
    return flat[:rows, :cols].contiguous()
