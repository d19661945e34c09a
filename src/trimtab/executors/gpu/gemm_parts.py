"""What the matrix kernels share (device functions)."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tile_of(program, num_n, num_m, GROUP: tl.constexpr):
    """(tile of N, tile of M) of a program: bands of GROUP tiles of M, so that programs that run
    together share rows of x and of W in the L2 cache."""
    band = GROUP * num_n
    first = program // band * GROUP
    height = tl.minimum(num_m - first, GROUP)
    return program % band // height, first + program % band % height


@triton.jit
def store_tile(y, bias, acc, of_n, of_m, N, num_rows, HAS_BIAS: tl.constexpr):
    """acc [n, m] (+ bias), rounded to y's dtype, to y [num_rows, N]."""
    if HAS_BIAS:
        acc += tl.load(bias + of_n, mask=of_n < N, other=0.0).to(tl.float32)[:, None]
    places = y + of_m.to(tl.int64)[None, :] * N + of_n[:, None]
    mask = (of_n[:, None] < N) & (of_m[None, :] < num_rows)
    tl.store(places, acc.to(y.dtype.element_ty), mask=mask)


@triton.jit
def last_of_tile(acc, partials, counters, tile, split, SPLITS: tl.constexpr):
    """Stores a split's sums; whether this program was the last of its tile to do so."""
    BLOCK_N: tl.constexpr = acc.shape[0]
    BLOCK_M: tl.constexpr = acc.shape[1]
    places = tl.arange(0, BLOCK_N)[:, None] * BLOCK_M + tl.arange(0, BLOCK_M)[None, :]
    base = (tile.to(tl.int64) * SPLITS + split) * (BLOCK_N * BLOCK_M)
    tl.store(partials + base + places, acc, cache_modifier=".cg")
    tl.debug_barrier()  # all of the program's stores come before its count
    arrived = tl.atomic_add(counters + tile, 1, sem="acq_rel")
    return arrived == SPLITS - 1


@triton.jit
def sum_splits(
    partials, counters, tile, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, SPLITS: tl.constexpr
):
    """The sums of all splits, in ascending order, and the counter back to 0."""
    tl.store(counters + tile, 0)
    places = tl.arange(0, BLOCK_N)[:, None] * BLOCK_M + tl.arange(0, BLOCK_M)[None, :]
    base = tile.to(tl.int64) * SPLITS * (BLOCK_N * BLOCK_M)
    total = tl.load(partials + base + places, cache_modifier=".cg")
    for _ in tl.static_range(1, SPLITS):
        base += BLOCK_N * BLOCK_M
        total += tl.load(partials + base + places, cache_modifier=".cg")
    return total
