"""Products with the matrices of a model, by kernels: the same as matrix_reference.py's functions.

A row's bits depend on the row and the matrix alone (gemm_plan.py says why), on one card and one
build. Nothing is tuned by time, nothing waits for the device, and everything can be captured in a
CUDA graph. Scratch comes from torch's allocator; a matrix's counters make all products with it
belong to one stream.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trimtab.executors.gpu import gemm_dense, gemm_packed, gemm_plan, gemm_scaled
from trimtab.executors.gpu.matrices import (
    DenseMatrix,
    Fp8Matrix,
    Int8Matrix,
    Matrix,
    PackedMatrix,
    ordered_inputs,
)
from trimtab.executors.gpu.packed_words import PANEL_ROWS, chunk_columns
from trimtab.executors.gpu.quantize import quantize_rows


def linear(
    x: Tensor, weight: Matrix, bias: Tensor | None = None, out_dtype: torch.dtype | None = None
) -> Tensor:
    """x [T, K] W^T + bias: [T, N] in `out_dtype`, x's own if None. x is quantized first, a row at a
    time, where the matrix wants it. x has contiguous rows."""
    dtype = out_dtype or x.dtype
    x = ordered_inputs(x, weight)
    if weight.kind is not None:
        return linear_quantized(quantize_rows(x, weight.kind), weight, bias, dtype)
    y = _output(x, weight, dtype)
    if x.shape[0] == 0:
        return y
    if isinstance(weight, PackedMatrix):
        _packed(x, weight, bias, y)
    elif isinstance(weight, Fp8Matrix):
        splits = gemm_plan.splits_of(*weight.shape)
        _dense(x, weight.values, weight.scales, bias, y, splits, weight.counters)
    elif isinstance(weight, DenseMatrix):
        splits = gemm_plan.splits_of(*weight.shape)
        _dense(x, weight.weight, None, bias, y, splits, weight.counters)
    else:
        raise TypeError(f"{type(weight).__name__} takes no floats")
    return y


def linear_quantized(
    x: tuple[Tensor, Tensor],
    weight: Matrix,
    bias: Tensor | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """Of rows quantized to the matrix's kind, (q [T, K], scales [T]), in its order of columns."""
    values, scales = x
    y = _output(values, weight, out_dtype)
    if not isinstance(weight, Int8Matrix | Fp8Matrix) or weight.kind is None:
        raise TypeError(f"{type(weight).__name__} takes no quantized activations")
    if values.shape[0] > 0:
        _scaled(values, scales, weight, bias, y)
    return y


def _output(x: Tensor, weight: Matrix, dtype: torch.dtype) -> Tensor:
    if x.shape[1] != weight.shape[1] or not x.is_contiguous():
        raise ValueError(f"{tuple(x.shape)} rows for a matrix {weight.shape}: contiguous [T, K]")
    return torch.empty((x.shape[0], weight.shape[0]), dtype=dtype, device=x.device)


def _partials(
    splits: gemm_plan.Splits, tiles: int, tile: gemm_plan.Tile, like: Tensor, dtype: torch.dtype
) -> Tensor:
    size = splits.count * tiles * tile.block_n * tile.block_m if splits.count > 1 else 1
    return torch.empty(size, dtype=dtype, device=like.device)


def _dense(
    x: Tensor,
    weight: Tensor,
    scales: Tensor | None,
    bias: Tensor | None,
    y: Tensor,
    splits: gemm_plan.Splits,
    counters: Tensor,
) -> None:
    (num_rows, cols), rows = x.shape, weight.shape[0]
    large = gemm_plan.is_large(num_rows, rows)
    tile = gemm_plan.large_tile(splits) if large else gemm_plan.small_tile(num_rows)
    tiles = gemm_plan.num_tiles(num_rows, rows, tile.block_m, tile.block_n)
    shape = {
        "SPLITS": splits.count,
        "BLOCK_N": tile.block_n,
        "BLOCK_M": tile.block_m,
        "BLOCK_K": tile.block_k,
        "EVEN_K": cols % gemm_plan.UNIT == 0,
        "HAS_SCALES": scales is not None,
        "HAS_BIAS": bias is not None,
        "PRECISION": "ieee",
        "num_warps": tile.num_warps,
        "num_stages": tile.num_stages,
    }
    scales = y if scales is None else scales
    bias = y if bias is None else bias
    if large:
        gemm_dense.whole_kernel[(tiles,)](
            x, weight, scales, bias, y, num_rows, rows, cols, splits.columns, **shape
        )
        return
    partials = _partials(splits, tiles, tile, x, torch.float32)
    gemm_dense.split_kernel[(tiles, splits.count)](
        x, weight, scales, bias, y, partials, counters, num_rows, rows, cols, splits.columns,
        **shape,
    )  # fmt: skip


def _packed(x: Tensor, weight: PackedMatrix, bias: Tensor | None, y: Tensor) -> None:
    num_rows, (rows, cols) = x.shape[0], weight.shape
    splits = gemm_plan.packed_splits_of(rows, cols)
    if num_rows >= gemm_plan.DEQUANTIZE_ROWS and gemm_plan.is_large(num_rows, rows):
        _dense(x, dequantized(weight, x.dtype), None, bias, y, splits, weight.counters)
        return
    chunk = chunk_columns(weight.bits)
    tile = gemm_plan.packed_tile(num_rows, chunk)
    tiles = gemm_plan.num_tiles(num_rows, rows, tile.block_m, tile.block_n)
    partials = _partials(splits, tiles, tile, x, torch.float32)
    gemm_packed.packed_kernel[(tiles, splits.count)](
        x, weight.words, weight.scales, _others(weight), weight.ones,
        y if bias is None else bias, y, partials, weight.counters,
        num_rows, rows, cols, weight.words.shape[1], weight.scales.shape[1], splits.columns,
        SPLITS=splits.count,
        BLOCK_N=tile.block_n,
        BLOCK_M=tile.block_m,
        BITS=weight.bits,
        GROUP=weight.group_size,
        FORM=gemm_packed.FORMS[weight.form],
        EVEN_K=cols % chunk == 0,
        HAS_BIAS=bias is not None,
        PRECISION="ieee",
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )  # fmt: skip


def dequantized(weight: PackedMatrix, dtype: torch.dtype) -> Tensor:
    """[N, K], as `weight.dequantize`; the columns in stored order."""
    rows, cols = weight.shape
    out = torch.empty((rows, cols), dtype=dtype, device=weight.device)
    panels, chunks = weight.words.shape[:2]
    gemm_packed.dequantize_kernel[(panels, chunks)](
        weight.words, weight.scales, _others(weight), weight.ones, out,
        rows, cols, chunks, weight.scales.shape[1],
        BLOCK_N=PANEL_ROWS,
        BITS=weight.bits,
        GROUP=weight.group_size,
        FORM=gemm_packed.FORMS[weight.form],
        num_warps=4,
    )  # fmt: skip
    return out


def _scaled(
    x: Tensor, x_scales: Tensor, weight: Int8Matrix | Fp8Matrix, bias: Tensor | None, y: Tensor
) -> None:
    (num_rows, cols), rows = x.shape, weight.shape[0]
    int8 = isinstance(weight, Int8Matrix)
    blocks = isinstance(weight, Fp8Matrix) and weight.scales.shape[0] > 1
    splits = gemm_plan.splits_of(rows, cols)
    large = gemm_plan.is_large(num_rows, rows)
    if large and int8:  # exact sums: one accumulator for all splits
        splits = gemm_plan.Splits(1, cols)
    tile = gemm_plan.small_tile_bytes(num_rows)
    if large:
        tile = gemm_plan.large_tile_bytes(1 if int8 else 2)
    tiles = gemm_plan.num_tiles(num_rows, rows, tile.block_m, tile.block_n)
    shape = {
        "SPLITS": splits.count,
        "BLOCK_N": tile.block_n,
        "BLOCK_M": tile.block_m,
        "BLOCK_K": tile.block_k,
        "EVEN_K": cols % gemm_plan.UNIT == 0,
        "INT8": int8,
        "BLOCKS": blocks,
        "HAS_BIAS": bias is not None,
        "num_warps": tile.num_warps,
        "num_stages": tile.num_stages,
    }
    block_cols = weight.block_cols if isinstance(weight, Fp8Matrix) else cols
    bias = y if bias is None else bias
    if large:
        gemm_scaled.whole_kernel[(tiles,)](
            x, x_scales, weight.values, weight.scales, bias, y,
            num_rows, rows, cols, block_cols, splits.columns, **shape,
        )  # fmt: skip
        return
    partials = _partials(splits, tiles, tile, x, torch.int32 if int8 else torch.float32)
    gemm_scaled.split_kernel[(tiles, splits.count)](
        x, x_scales, weight.values, weight.scales, bias, y, partials,
        weight.counters, num_rows, rows, cols, block_cols, splits.columns,
        **shape,
    )  # fmt: skip


def _others(weight: PackedMatrix) -> Tensor:
    return weight.scales if weight.others is None else weight.others
