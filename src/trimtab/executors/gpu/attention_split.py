"""Attention of few rows over long contexts (decode, verification): contexts are cut into
partitions, which all programs share out evenly; a second kernel combines them in order.

A pair is a sequence and a KV head. Items are the partitions of all pairs, in order:

    items     | s0 h0: p0 p1 p2 | s0 h1: p0 p1 p2 | s1 h0: p0 | s1 h1: p0 | ...
    programs  |    0    |     1     |      2      |       3      | ...

Each program counts the items itself from the positions on the device, so the grid is fixed by the
device alone, a captured graph serves contexts of any length, and nobody waits for the longest one.
The result of an item lies in scratch by its number: how many programs there are changes no bit.

Bytes: K and V of every context once (2 * Hk * D * bytes of an element a position), and per item and
row 2 * 4 * (D + 2) of scratch: with a group of 4 and bf16, 3 % of the first.
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


# Parts of one staging buffer lie at any address; no new compilation for that.
@triton.jit(
    do_not_specialize=["num_seqs", "table_stride", "window", "split_rows"],
    do_not_specialize_on_alignment=["seq_starts", "positions", "tables"],
)
def split_kernel(
    q,
    keys,
    values,
    key_scales,
    value_scales,
    seq_starts,
    positions,
    tables,
    partials,  # [items, split_rows * GROUP, D] float32: mixed
    summaries,  # [items, split_rows * GROUP, 2] float32: best, total
    item_starts,  # [num_seqs + 1] of a KV head's items; written for combine_kernel
    num_seqs,
    table_stride,
    window,
    split_rows,  # sequences of more rows are another kernel's
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
    TILES: tl.constexpr = PARTITION // KEYS
    sequences = tl.arange(0, SEQUENCES)
    known = sequences < num_seqs
    starts = tl.load(seq_starts + sequences, mask=known, other=0)
    num_rows = tl.load(seq_starts + sequences + 1, mask=known, other=0) - starts
    ours = (num_rows > 0) & (num_rows <= split_rows)
    last = tl.load(positions + starts + num_rows - 1, mask=ours, other=0)
    lowest = tl.zeros_like(last)  # position that any row sees
    if WINDOWED:
        lowest = tl.maximum(last - num_rows - window + 2, 0)
    counts = tl.where(ours, last // PARTITION - lowest // PARTITION + 1, 0)
    ends = tl.cumsum(counts)

    program = tl.program_id(0).to(tl.int64)
    total_items = tl.sum(counts).to(tl.int64) * HEADS
    item = program * total_items // tl.num_programs(0)
    end = (program + 1) * total_items // tl.num_programs(0)
    if program == 0:
        tl.store(item_starts + sequences, ends - counts, mask=known)
        tl.store(item_starts + num_seqs, tl.sum(counts))

    dims = tl.arange(0, PADDED)
    folded = tl.arange(0, ROWS)
    while item < end:
        sequence = tl.sum((ends.to(tl.int64) * HEADS <= item).to(tl.int32))
        chosen = sequences == sequence
        count = tl.sum(tl.where(chosen, counts, 0))
        first_item = tl.sum(tl.where(chosen, ends - counts, 0)).to(tl.int64) * HEADS
        first_row = tl.sum(tl.where(chosen, starts, 0))
        own_rows = tl.sum(tl.where(chosen, num_rows, 0))
        context = tl.sum(tl.where(chosen, last, 0)) + 1
        own_lowest = tl.sum(tl.where(chosen, lowest, 0))
        head = ((item - first_item) // count).to(tl.int32)
        partition = ((item - first_item) % count).to(tl.int32)
        num_items = tl.minimum(count - partition, (end - item).to(tl.int32))

        queries, _ = load_queries(
            q, first_row, own_rows, head, ROWS, GROUP, HEADS, DIM, PADDED, OPERAND
        )
        valid = folded < own_rows * GROUP
        own_positions = tl.load(positions + first_row + folded // GROUP, mask=valid, other=-1)
        partition += own_lowest // PARTITION
        first_tile = partition * TILES
        last_tile = tl.minimum((partition + num_items) * TILES, tl.cdiv(context, KEYS)) - 1
        best = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        mixed = tl.zeros([ROWS, PADDED], tl.float32)
        table = tables + sequence.to(tl.int64) * table_stride
        stored = (keys, values, key_scales, value_scales)
        blocks = load_blocks(table, first_tile, own_lowest, context, KEYS, BLOCK)
        for tile in tl.range(first_tile, last_tile + 1, num_stages=STAGES):
            best, total, mixed, blocks = attend(
                best, total, mixed, queries, own_positions, stored, table, blocks, tile, head,
                own_lowest, context, window, factor, inner_factor,
                KEYS, OPERAND, HEADS, BLOCK, DIM, PADDED, QUANTIZED, SOFTCAP, WINDOWED,
            )  # fmt: skip
            if (tile % TILES == TILES - 1) | (tile == last_tile):
                own = (item + (tile - first_tile) // TILES) * (split_rows * GROUP) + folded
                tl.store(summaries + own * 2, best, mask=valid)
                tl.store(summaries + own * 2 + 1, total, mask=valid)
                mask = valid[:, None]
                if PADDED != DIM:
                    mask = mask & (dims < DIM)[None, :]
                tl.store(partials + own[:, None] * DIM + dims[None, :], mixed, mask=mask)
                best = tl.full([ROWS], float("-inf"), tl.float32)
                total = tl.zeros([ROWS], tl.float32)
                mixed = tl.zeros([ROWS, PADDED], tl.float32)
        item += num_items


@triton.jit(
    do_not_specialize=["window", "split_rows"],
    do_not_specialize_on_alignment=["seq_starts", "positions"],
)
def combine_kernel(
    out,  # [T, Hq, D]
    partials,
    summaries,
    item_starts,
    seq_starts,
    positions,
    window,
    split_rows,  # sequences of more rows are another kernel's
    factor,
    PARTITION: tl.constexpr,
    GROUP: tl.constexpr,
    PADDED_GROUP: tl.constexpr,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    PADDED: tl.constexpr,
    WINDOWED: tl.constexpr,
):
    """Grid: sequences, rows of a sequence at most, KV heads; surplus programs end at once."""
    sequence, row, head = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first_row = tl.load(seq_starts + sequence)
    num_rows = tl.load(seq_starts + sequence + 1) - first_row
    if (row < num_rows) & (num_rows <= split_rows):
        position = tl.load(positions + first_row + row)
        lowest = 0
        if WINDOWED:
            lowest = tl.maximum(tl.load(positions + first_row) - window + 1, 0)
        first_item = tl.load(item_starts + sequence).to(tl.int64)
        count = tl.load(item_starts + sequence + 1) - first_item
        num_items = position // PARTITION - lowest // PARTITION + 1

        members, dims = tl.arange(0, PADDED_GROUP), tl.arange(0, PADDED)
        valid = members < GROUP
        mask = valid[:, None] & (dims < DIM)[None, :]
        own = (first_item * HEADS + head * count) * (split_rows * GROUP) + row * GROUP + members
        best = tl.full([PADDED_GROUP], float("-inf"), tl.float32)
        total = tl.zeros([PADDED_GROUP], tl.float32)
        mixed = tl.zeros([PADDED_GROUP, PADDED], tl.float32)
        for _ in tl.range(0, num_items, num_stages=4):
            own_best = tl.load(summaries + own * 2, mask=valid, other=float("-inf"))
            own_total = tl.load(summaries + own * 2 + 1, mask=valid, other=0.0)
            found = tl.load(partials + own[:, None] * DIM + dims[None, :], mask=mask, other=0.0)
            best, total, mixed = combine(best, total, mixed, own_best, own_total, found, factor)
            own += split_rows * GROUP
        target = ((first_row + row).to(tl.int64) * HEADS + head) * GROUP + members
        result = finish(total, mixed).to(out.dtype.element_ty)
        tl.store(out + target[:, None] * DIM + dims[None, :], result, mask=mask)
