"""Products with floats, and with float8 weights alone. Tiles and order of sums: gemm_plan.py."""

from __future__ import annotations

import triton
import triton.language as tl

from trimtab.executors.gpu.gemm_parts import last_of_tile, store_tile, sum_splits, tile_of


@triton.jit
def _sum_columns(
    x, w, of_n, of_m, first, last, N, K, num_rows,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """[n, m]: sums over columns [first, last) of W x^T. Rows beyond the end repeat the last one;
    nobody stores them."""
    of_k = tl.arange(0, BLOCK_K)
    w_rows = w + tl.minimum(of_n, N - 1).to(tl.int64)[:, None] * K + of_k[None, :]
    x_rows = x + tl.minimum(of_m, num_rows - 1).to(tl.int64)[None, :] * K + of_k[:, None]
    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for k in range(first, last, BLOCK_K):
        if EVEN_K:
            w_tile = tl.load(w_rows + k)
            x_tile = tl.load(x_rows + k)
        else:
            w_tile = tl.load(w_rows + k, mask=of_k[None, :] < last - k, other=0.0)
            x_tile = tl.load(x_rows + k, mask=of_k[:, None] < last - k, other=0.0)
        acc = tl.dot(w_tile.to(x_tile.dtype), x_tile, acc, input_precision=PRECISION)
    return acc


@triton.jit(do_not_specialize=["num_rows"])
def split_kernel(
    x, w, scales, bias, y, partials, counters, num_rows, N, K, SPLIT_COLUMNS,
    SPLITS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr, HAS_SCALES: tl.constexpr, HAS_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """y [num_rows, N] = x [num_rows, K] W^T (* scales [N]) (+ bias [N]); grid (tiles, SPLITS)."""
    tile, split = tl.program_id(0), tl.program_id(1)
    num_n = tl.cdiv(N, BLOCK_N)
    of_n = tile % num_n * BLOCK_N + tl.arange(0, BLOCK_N)
    of_m = tile // num_n * BLOCK_M + tl.arange(0, BLOCK_M)
    first = split * SPLIT_COLUMNS
    acc = _sum_columns(
        x, w, of_n, of_m, first, tl.minimum(first + SPLIT_COLUMNS, K), N, K, num_rows,
        BLOCK_N, BLOCK_M, BLOCK_K, EVEN_K, PRECISION,
    )  # fmt: skip
    if SPLITS > 1:
        if not last_of_tile(acc, partials, counters, tile, split, SPLITS):
            return
        acc = sum_splits(partials, counters, tile, BLOCK_N, BLOCK_M, SPLITS)
    if HAS_SCALES:
        acc *= tl.load(scales + of_n, mask=of_n < N, other=0.0)[:, None]
    store_tile(y, bias, acc, of_n, of_m, N, num_rows, HAS_BIAS)


@triton.jit(do_not_specialize=["num_rows"])
def whole_kernel(
    x, w, scales, bias, y, num_rows, N, K, SPLIT_COLUMNS,
    SPLITS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr, HAS_SCALES: tl.constexpr, HAS_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The same bits; grid (tiles,)."""
    num_m = tl.cdiv(num_rows, BLOCK_M)
    n, m = tile_of(tl.program_id(0), tl.cdiv(N, BLOCK_N), num_m, 8)
    of_n = n * BLOCK_N + tl.arange(0, BLOCK_N)
    of_m = m * BLOCK_M + tl.arange(0, BLOCK_M)
    total = _sum_columns(
        x, w, of_n, of_m, 0, tl.minimum(SPLIT_COLUMNS, K), N, K, num_rows,
        BLOCK_N, BLOCK_M, BLOCK_K, EVEN_K, PRECISION,
    )  # fmt: skip
    for split in tl.static_range(1, SPLITS):
        first = split * SPLIT_COLUMNS
        total += _sum_columns(
            x, w, of_n, of_m, first, tl.minimum(first + SPLIT_COLUMNS, K), N, K, num_rows,
            BLOCK_N, BLOCK_M, BLOCK_K, EVEN_K, PRECISION,
        )  # fmt: skip
    if HAS_SCALES:
        total *= tl.load(scales + of_n, mask=of_n < N, other=0.0)[:, None]
    store_tile(y, bias, total, of_n, of_m, N, num_rows, HAS_BIAS)
