"""Attention of many rows (prefill, a chunk of it): a program takes a tile of rows of one sequence
and KV head through their whole context in the paged cache, earlier chunks and this one alike.

It keeps two states, that of the partition it is in and that of the partitions before, and combines
them where a partition ends, exactly as attention_split.py does.

Operations: 4 * D for each query head, row and position seen, at the rate of wgmma; K and V are read
once for each tile of rows. Tiles of later rows, which see most, start first.
"""

from __future__ import annotations

import triton
import triton.language as tl

from trimtab.executors.gpu.attention_math import (
    attend,
    combine,
    finish,
    load_blocks,
    load_queries,
)


@triton.jit(
    do_not_specialize=["num_seqs", "table_stride", "window", "split_rows"],
    do_not_specialize_on_alignment=["seq_starts", "positions", "tables"],
)
def flash_kernel(
    out,  # [T, Hq, D]
    q,
    keys,
    values,
    key_scales,
    value_scales,
    seq_starts,
    positions,
    tables,
    num_seqs,
    table_stride,
    window,
    split_rows,  # sequences of so many rows or fewer are the split kernel's
    factor,
    inner_factor,
    SEQUENCES: tl.constexpr,  # power of two, num_seqs or more
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    PARTITION: tl.constexpr,
    STAGES: tl.constexpr,
    GROUP: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    DIM: tl.constexpr,
    PADDED: tl.constexpr,
    OPERAND: tl.constexpr,
    QUANTIZED: tl.constexpr,
    SOFTCAP: tl.constexpr,
    WINDOWED: tl.constexpr,
):
    """Grid: KV heads, T // rows a tile + sequences. Sequence s has the tiles from seq_starts[s] //
    rows a tile + s on, at least as many as it needs; surplus programs end at once."""
    TILES: tl.constexpr = PARTITION // KEYS
    TOGETHER: tl.constexpr = ROWS // GROUP  # rows a tile
    head = tl.program_id(0)
    tile_of_rows = tl.num_programs(1) - 1 - tl.program_id(1)
    sequences = tl.arange(0, SEQUENCES)
    known = sequences < num_seqs
    starts = tl.load(seq_starts + sequences, mask=known, other=0)
    first_tiles = starts // TOGETHER + sequences
    sequence = tl.sum((known & (first_tiles <= tile_of_rows)).to(tl.int32)) - 1
    chosen = sequences == sequence
    start = tl.sum(tl.where(chosen, starts, 0))
    num_rows = tl.load(seq_starts + sequence + 1) - start
    before = (tile_of_rows - tl.sum(tl.where(chosen, first_tiles, 0))) * TOGETHER
    if (before < num_rows) & (num_rows > split_rows):
        first_row = start + before
        own_rows = tl.minimum(num_rows - before, TOGETHER)
        context = tl.load(positions + first_row + own_rows - 1) + 1
        lowest = 0
        if WINDOWED:
            lowest = tl.maximum(tl.load(positions + first_row) - window + 1, 0)
        queries, targets = load_queries(
            q, first_row, own_rows, head, ROWS, GROUP, HEADS, DIM, PADDED, OPERAND
        )
        folded, dims = tl.arange(0, ROWS), tl.arange(0, PADDED)
        valid = folded < own_rows * GROUP
        own_positions = tl.load(positions + first_row + folded // GROUP, mask=valid, other=-1)
        table = tables + sequence.to(tl.int64) * table_stride
        stored = (keys, values, key_scales, value_scales)

        best = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        mixed = tl.zeros([ROWS, PADDED], tl.float32)
        own_best = tl.full([ROWS], float("-inf"), tl.float32)
        own_total = tl.zeros([ROWS], tl.float32)
        own_mixed = tl.zeros([ROWS, PADDED], tl.float32)
        last_tile = (context - 1) // KEYS
        blocks = load_blocks(table, lowest // KEYS, lowest, context, KEYS, BLOCK)
        for tile in tl.range(lowest // KEYS, last_tile + 1, num_stages=STAGES):
            own_best, own_total, own_mixed, blocks = attend(
                own_best, own_total, own_mixed, queries, own_positions, stored, table, blocks, tile,
                head, lowest, context, window, factor, inner_factor,
                KEYS, OPERAND, HEADS, BLOCK, DIM, PADDED, QUANTIZED, SOFTCAP, WINDOWED,
            )  # fmt: skip
            if (tile % TILES == TILES - 1) | (tile == last_tile):
                best, total, mixed = combine(
                    best, total, mixed, own_best, own_total, own_mixed, factor
                )
                own_best = tl.full([ROWS], float("-inf"), tl.float32)
                own_total = tl.zeros([ROWS], tl.float32)
                own_mixed = tl.zeros([ROWS, PADDED], tl.float32)
        mask = valid[:, None]
        if PADDED != DIM:
            mask = mask & (dims < DIM)[None, :]
        result = finish(total, mixed).to(out.dtype.element_ty)
        tl.store(out + targets[:, None] * DIM + dims[None, :], result, mask=mask)
