"""Products with matrices in plain torch, on any device: what the kernels are compared with.

A row's bits depend on the row and the matrix alone, as with the kernels: each row is a product of
its own, so this is slow for many rows. Sums are float32 (of integers: exact); their order is
torch's, not that of the kernels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trimtab.executors.gpu.matrices import (
    Fp8Matrix,
    Int8Matrix,
    Matrix,
    ordered_inputs,
)
from trimtab.executors.gpu.row_reference import quantize_rows

FP8_COLUMNS = 128  # summed before the float32 addition


def linear(
    x: Tensor, weight: Matrix, bias: Tensor | None = None, out_dtype: torch.dtype | None = None
) -> Tensor:
    """x [T, K] W^T + bias: [T, N] in `out_dtype`, x's own if None. x is quantized first, a row at a
    time, where the matrix wants it."""
    dtype = out_dtype or x.dtype
    kind = weight.kind
    if kind is not None:
        return linear_quantized(quantize_rows(ordered_inputs(x, weight), kind), weight, bias, dtype)
    x = ordered_inputs(x, weight)
    if isinstance(weight, Fp8Matrix):
        y = _rows_times(x, weight.values.to(x.dtype)) * weight.scales[0]
    else:
        y = _rows_times(x, weight.dequantize(x.dtype))
    return _finish(y, bias, dtype)


def linear_quantized(
    x: tuple[Tensor, Tensor],
    weight: Matrix,
    bias: Tensor | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """Of rows quantized to the matrix's kind, (q [T, K], scales [T]), in its order of columns."""
    values, scales = x
    if isinstance(weight, Int8Matrix):
        sums = values.to(torch.int32).double() @ weight.values.to(torch.int32).double().T  # exact
        y = sums.float() * (scales[:, None] * weight.scales)
    elif isinstance(weight, Fp8Matrix):
        y = _fp8(values, scales, weight)
    else:
        raise TypeError(f"{type(weight).__name__} takes no quantized activations")
    return _finish(y, bias, out_dtype)


def _fp8(values: Tensor, scales: Tensor, weight: Fp8Matrix) -> Tensor:
    cols = values.shape[1]
    one_block = weight.scales.shape[0] == 1
    y = torch.zeros((values.shape[0], weight.shape[0]), device=values.device)
    for first in range(0, cols, FP8_COLUMNS):
        piece = slice(first, min(first + FP8_COLUMNS, cols))
        part = _rows_times(values[:, piece], weight.values[:, piece])
        y = y + (part if one_block else part * weight.scales[first // weight.block_cols])
    return y * (scales[:, None] * weight.scales[0] if one_block else scales[:, None])


def _rows_times(x: Tensor, weight: Tensor) -> Tensor:
    """float32 [T, N]"""
    wide = weight.float()
    y = torch.empty((x.shape[0], wide.shape[0]), device=x.device)
    for row in range(x.shape[0]):
        y[row] = torch.mv(wide, x[row].float())
    return y


def _finish(y: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    return (y if bias is None else y + bias.float()).to(dtype)
