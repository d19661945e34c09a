"""What the attention kernels share: one tile of K and V, and how partial results become one.

State of some rows: `best` the largest score so far, `total` the sum of exp2((score - best) *
factor), `mixed` the values weighted by those; -inf, 0, 0 before anything was seen. Where a product
is added to something the fused operation is written out, so that no compiler chooses it in one
kernel and not in another.
"""

from __future__ import annotations

import triton
import triton.language as tl

COPIES = tl.constexpr(4)  # 64 positions of each: 256 threads


@triton.jit
def weigh(best, higher, factor):
    """exp2((best - higher) * factor), 0 where nothing was seen yet."""
    shift = tl.where(higher == float("-inf"), 0.0, higher * factor)
    return tl.exp2(tl.fma(best, factor, -shift)), shift


@triton.jit
def see_tile(
    best,
    total,
    mixed,
    q,  # [M, D]
    keys,  # [N, D]
    values,  # [N, D]
    key_scales,  # [N] where QUANTIZED
    value_scales,
    seen,  # [M, N]
    factor,
    inner_factor,  # of tanh, where SOFTCAP
    QUANTIZED: tl.constexpr,
    SOFTCAP: tl.constexpr,
):
    """The state after N more positions."""
    scores = tl.dot(q, tl.trans(keys), input_precision="ieee")
    if QUANTIZED:
        scores = scores * key_scales[None, :]
    if SOFTCAP:  # tanh; factor holds the cap
        scores = tl.fma(-2.0, 1.0 / (1.0 + tl.exp2(scores * inner_factor)), 1.0)
    scores = tl.where(seen, scores, float("-inf"))
    higher = tl.maximum(best, tl.max(scores, 1))
    keep, shift = weigh(best, higher, factor)
    weights = tl.exp2(tl.fma(scores, factor, -shift[:, None]))
    total = tl.fma(total, keep, tl.sum(weights, 1))
    if QUANTIZED:
        weights = weights * value_scales[None, :]
    mixed = tl.dot(weights.to(values.dtype), values, mixed * keep[:, None], input_precision="ieee")
    return higher, total, mixed


@triton.jit
def combine(best, total, mixed, own_best, own_total, own_mixed, factor):
    """The state of the partitions so far and that of the next one, as one."""
    higher = tl.maximum(best, own_best)
    keep, _ = weigh(best, higher, factor)
    own_keep, _ = weigh(own_best, higher, factor)
    total = tl.fma(total, keep, own_total * own_keep)
    mixed = tl.fma(mixed, keep[:, None], own_mixed * own_keep[:, None])
    return higher, total, mixed


@triton.jit
def finish(total, mixed):
    """What a row's attention is, in the end; 0 of a row that saw nothing."""
    return mixed / tl.where(total == 0, 1.0, total)[:, None]


@triton.jit
def load_blocks(table, tile, lowest, context, KEYS: tl.constexpr, BLOCK: tl.constexpr):
    """[KEYS] block of each position of a tile; read a tile ahead, so that loads of K and V depend
    on no other load of their iteration and can be on their way several tiles ahead."""
    places = tile * KEYS + tl.arange(0, KEYS)
    return tl.load(table + places // BLOCK, mask=(places >= lowest) & (places < context), other=0)


@triton.jit
def load_tile(
    stored,  # [num_blocks, Hk, B, D]
    scales,  # [num_blocks, Hk, B] where QUANTIZED
    blocks,  # [N] of the places
    head,
    places,  # [N] positions
    wanted,  # [N] what is not is zero
    OPERAND: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    DIM: tl.constexpr,
    PADDED: tl.constexpr,
    QUANTIZED: tl.constexpr,
):
    """[N, PADDED] of one tensor and KV head, and its scales [N]."""
    dims = tl.arange(0, PADDED)
    slots = (blocks.to(tl.int64) * HEADS + head) * BLOCK + places % BLOCK
    mask = wanted[:, None]
    if PADDED != DIM:
        mask = mask & (dims < DIM)[None, :]
    tile = tl.load(stored + slots[:, None] * DIM + dims[None, :], mask=mask, other=0.0)
    own_scales = slots
    if QUANTIZED:
        # As many elements as threads: of fewer, every thread would load all that its part of the
        # scores is multiplied by, and keep their addresses. All but the first are zeros.
        copies = tl.arange(0, COPIES)[None, :]
        wanted_once = wanted[:, None] & (copies == 0)
        found = tl.load(scales + slots[:, None] + copies * 0, mask=wanted_once, other=0.0)
        own_scales = tl.sum(found, 1)
    return tile.to(OPERAND), own_scales


@triton.jit
def attend(
    best,
    total,
    mixed,
    queries,  # [M, PADDED]
    own_positions,  # [M]
    stored,  # keys, values, key_scales, value_scales
    table,
    blocks,  # load_blocks of this tile
    tile,
    head,
    lowest,
    context,
    window,
    factor,
    inner_factor,
    KEYS: tl.constexpr,
    OPERAND: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    DIM: tl.constexpr,
    PADDED: tl.constexpr,
    QUANTIZED: tl.constexpr,
    SOFTCAP: tl.constexpr,
    WINDOWED: tl.constexpr,
):
    """The state after one more tile of the cache, and the blocks of the next one."""
    keys, values, key_scales, value_scales = stored
    places = tile * KEYS + tl.arange(0, KEYS)
    wanted = (places >= lowest) & (places < context)
    k, k_scales = load_tile(
        keys, key_scales, blocks, head, places, wanted,
        OPERAND, HEADS, BLOCK, DIM, PADDED, QUANTIZED,
    )  # fmt: skip
    v, v_scales = load_tile(
        values, value_scales, blocks, head, places, wanted,
        OPERAND, HEADS, BLOCK, DIM, PADDED, QUANTIZED,
    )  # fmt: skip
    blocks = load_blocks(table, tile + 1, lowest, context, KEYS, BLOCK)
    # From the tile's number: from `places`, all of them would be kept from loads to scores.
    nearest = (own_positions - tile * KEYS)[:, None]
    offsets = tl.arange(0, KEYS)[None, :]
    if WINDOWED:
        seen = (nearest - offsets >= 0) & (nearest - offsets < window)
    else:
        seen = offsets <= nearest
    best, total, mixed = see_tile(
        best, total, mixed, queries, k, v, k_scales, v_scales, seen, factor, inner_factor,
        QUANTIZED, SOFTCAP,
    )  # fmt: skip
    return best, total, mixed, blocks


@triton.jit
def load_queries(
    q,
    first_row,
    num_rows,
    head,
    ROWS: tl.constexpr,
    GROUP: tl.constexpr,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    PADDED: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """[ROWS, PADDED]: rows first_row .. first_row + num_rows, of each the GROUP query heads of a KV
    head side by side; the rest zero."""
    dims = tl.arange(0, PADDED)
    folded = tl.arange(0, ROWS)
    rows = first_row + folded // GROUP
    places = (rows.to(tl.int64) * HEADS + head) * GROUP + folded % GROUP
    mask = (folded < num_rows * GROUP)[:, None]
    if PADDED != DIM:
        mask = mask & (dims < DIM)[None, :]
    found = tl.load(q + places[:, None] * DIM + dims[None, :], mask=mask, other=0.0)
    return found.to(OPERAND), places
