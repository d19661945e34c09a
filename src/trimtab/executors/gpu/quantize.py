"""Rows quantized to int8 or float8 e4m3fn, each with a scale of its own.

One program a row: 2 K bytes read, K written, nothing else; a row fits the registers of 4 to 16
warps, so it is read once. Same results as row_reference.quantize_rows.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from trimtab.executors.gpu.matrices import Kind

DTYPES = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
CODES = {None: 0, "int8": 1, "fp8": 2}  # KIND below
LONGEST_ROW = 65536


@triton.jit
def store_quantized(x, q, scales, row, of_k, mask, K, KIND: tl.constexpr):
    """x [k] float32, 0 where masked: round(x * (L / absmax)) to q, absmax / L to scales. A row with
    an element that is not finite gets a scale that is not."""
    largest: tl.constexpr = 127.0 if KIND == 1 else 448.0
    absmax = tl.max(tl.abs(x), axis=0)
    empty = absmax < 7.888609052210118e-31  # 2^-100: no information
    divisor = tl.where(empty, 1.0, absmax)
    scale = tl.where(empty, 0.0, tl.div_rn(divisor, tl.full((), largest, tl.float32)))
    inverse = tl.where(empty, 0.0, tl.div_rn(tl.full((), largest, tl.float32), divisor))
    scaled = tl.minimum(tl.maximum(x * inverse, -largest), largest)
    if KIND == 1:
        scaled = (scaled + 12582912.0) - 12582912.0  # 1.5 * 2^23: to an integer, ties to even
    else:  # to a float8, likewise; at least 2^-9 apart. The conversion is then exact
        power = (scaled.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
        shift = tl.maximum(power, 0.015625) * 1572864.0  # 1.5 * 2^20
        scaled = (scaled + shift) - shift
    tl.store(q + row.to(tl.int64) * K + of_k, scaled.to(q.dtype.element_ty), mask=mask)
    tl.store(scales + row, scale + tl.sum(x * 0.0, axis=0))


@triton.jit
def quantize_kernel(x, q, scales, K, BLOCK: tl.constexpr, KIND: tl.constexpr):
    row = tl.program_id(0)
    of_k = tl.arange(0, BLOCK)
    mask = of_k < K
    wide = tl.load(x + row.to(tl.int64) * K + of_k, mask=mask, other=0.0).to(tl.float32)
    store_quantized(wide, q, scales, row, of_k, mask, K, KIND)


def quantize_rows(x: Tensor, kind: Kind) -> tuple[Tensor, Tensor]:
    """(q [T, K] int8 or float8_e4m3fn, scales [T] float32) of contiguous x [T, K]."""
    num_rows, cols = x.shape
    q, scales = quantized_like(x, cols, kind)
    if num_rows > 0:
        block, warps = row_block(cols)
        quantize_kernel[(num_rows,)](
            x.contiguous(), q, scales, cols, BLOCK=block, KIND=CODES[kind], num_warps=warps
        )
    return q, scales


def quantized_like(x: Tensor, cols: int, kind: Kind) -> tuple[Tensor, Tensor]:
    """Room for the quantized rows of x."""
    q = torch.empty((x.shape[0], cols), dtype=DTYPES[kind], device=x.device)
    return q, torch.empty(x.shape[0], dtype=torch.float32, device=x.device)


def row_block(cols: int) -> tuple[int, int]:
    """(elements of a program, its warps) for rows of so many columns: 16 bytes of bf16 a thread and
    load. Fixed by the width, so a row's sums have one order. ValueError for rows too long."""
    if cols > LONGEST_ROW:
        raise ValueError(f"rows of {cols} columns; the kernels take {LONGEST_ROW}")
    block = max(128, triton.next_power_of_2(cols))
    return block, max(1, min(16, block // 512))
