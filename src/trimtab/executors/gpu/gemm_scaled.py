"""Products of quantized rows with quantized weights: int8 and float8 e4m3. Tiles: gemm_plan.py.

    int8   sums are exact, whatever their order; y = float32(sum) * (s_x s_w)
    fp8    128 columns are summed in the matrix unit, which keeps about 14 bits of a long sum
           (DeepSeek-V3, section 3.3.2); these sums are added in float32, ascending, times their
           block's scale where a row has several

N K bytes of weights a product; twice the rate of 16-bit operands (1,979 dense Tops/s on paper).
"""

from __future__ import annotations

import triton
import triton.language as tl

from trimtab.executors.gpu.gemm_parts import last_of_tile, store_tile, sum_splits, tile_of


@triton.jit
def _sum_columns(
    x, w, w_scales, of_n, of_m, first, last, N, K, BLOCK_COLUMNS, num_rows,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr, INT8: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """[n, m], int32 or float32: sums over columns [first, last) of W x^T, of blocks with the scales
    of W."""
    of_k = tl.arange(0, BLOCK_K)
    rows = tl.minimum(of_n, N - 1)
    w_rows = w + rows.to(tl.int64)[:, None] * K + of_k[None, :]
    x_rows = x + tl.minimum(of_m, num_rows - 1).to(tl.int64)[None, :] * K + of_k[:, None]
    if INT8:
        total = tl.zeros((BLOCK_N, BLOCK_M), tl.int32)
    else:
        total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    if BLOCKS:
        scale = tl.load(w_scales + (first // BLOCK_COLUMNS).to(tl.int64) * N + rows)
    for k in range(first, last, BLOCK_K):
        if EVEN_K:
            w_tile = tl.load(w_rows + k)
            x_tile = tl.load(x_rows + k)
        else:
            w_tile = tl.load(w_rows + k, mask=of_k[None, :] < last - k, other=0.0)
            x_tile = tl.load(x_rows + k, mask=of_k[:, None] < last - k, other=0.0)
        if INT8:
            total = tl.dot(w_tile, x_tile, total, out_dtype=tl.int32)
        elif BLOCKS:
            ahead = tl.minimum(k + BLOCK_K, K - 1) // BLOCK_COLUMNS
            next_scale = tl.load(w_scales + ahead.to(tl.int64) * N + rows)
            total += tl.dot(w_tile, x_tile) * scale[:, None]
            scale = next_scale
        else:
            total += tl.dot(w_tile, x_tile)
    return total


@triton.jit
def _scaled(
    total, x_scales, w_scales, of_n, of_m, N, num_rows, INT8: tl.constexpr, BLOCKS: tl.constexpr
):
    """float32 [n, m]"""
    scale = tl.load(x_scales + of_m, mask=of_m < num_rows, other=0.0)[None, :]
    if not BLOCKS:
        scale = scale * tl.load(w_scales + of_n, mask=of_n < N, other=0.0)[:, None]
    if INT8:
        total = total.to(tl.float32)
    return total * scale


@triton.jit(do_not_specialize=["num_rows"])
def split_kernel(
    x, x_scales, w, w_scales, bias, y, partials, counters,
    num_rows, N, K, BLOCK_COLUMNS, SPLIT_COLUMNS,
    SPLITS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr, INT8: tl.constexpr, BLOCKS: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """y [num_rows, N] of x [num_rows, K] with x_scales [num_rows], W [N, K] with w_scales [blocks,
    N] (+ bias [N]); grid (tiles, SPLITS)."""
    tile, split = tl.program_id(0), tl.program_id(1)
    num_n = tl.cdiv(N, BLOCK_N)
    of_n = tile % num_n * BLOCK_N + tl.arange(0, BLOCK_N)
    of_m = tile // num_n * BLOCK_M + tl.arange(0, BLOCK_M)
    first = split * SPLIT_COLUMNS
    total = _sum_columns(
        x, w, w_scales, of_n, of_m, first, tl.minimum(first + SPLIT_COLUMNS, K), N, K,
        BLOCK_COLUMNS, num_rows, BLOCK_N, BLOCK_M, BLOCK_K, EVEN_K, INT8, BLOCKS,
    )  # fmt: skip
    if SPLITS > 1:
        if not last_of_tile(total, partials, counters, tile, split, SPLITS):
            return
        total = sum_splits(partials, counters, tile, BLOCK_N, BLOCK_M, SPLITS)
    y_tile = _scaled(total, x_scales, w_scales, of_n, of_m, N, num_rows, INT8, BLOCKS)
    store_tile(y, bias, y_tile, of_n, of_m, N, num_rows, HAS_BIAS)


@triton.jit(do_not_specialize=["num_rows"])
def whole_kernel(
    x, x_scales, w, w_scales, bias, y, num_rows, N, K, BLOCK_COLUMNS, SPLIT_COLUMNS,
    SPLITS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr, INT8: tl.constexpr, BLOCKS: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """The same bits; grid (tiles,)."""
    num_m = tl.cdiv(num_rows, BLOCK_M)
    n, m = tile_of(tl.program_id(0), tl.cdiv(N, BLOCK_N), num_m, 8)
    of_n = n * BLOCK_N + tl.arange(0, BLOCK_N)
    of_m = m * BLOCK_M + tl.arange(0, BLOCK_M)
    total = _sum_columns(
        x, w, w_scales, of_n, of_m, 0, tl.minimum(SPLIT_COLUMNS, K), N, K,
        BLOCK_COLUMNS, num_rows, BLOCK_N, BLOCK_M, BLOCK_K, EVEN_K, INT8, BLOCKS,
    )  # fmt: skip
    for split in tl.static_range(1, SPLITS):
        first = split * SPLIT_COLUMNS
        total += _sum_columns(
            x, w, w_scales, of_n, of_m, first, tl.minimum(first + SPLIT_COLUMNS, K), N, K,
            BLOCK_COLUMNS, num_rows, BLOCK_N, BLOCK_M, BLOCK_K, EVEN_K, INT8, BLOCKS,
        )  # fmt: skip
    y_tile = _scaled(total, x_scales, w_scales, of_n, of_m, N, num_rows, INT8, BLOCKS)
    store_tile(y, bias, y_tile, of_n, of_m, N, num_rows, HAS_BIAS)
