"""The reference of every GEMM: the same operations in the same order as the kernels, in numpy.

y[m, n] = sum over k of x[m, k] * w[n, k]; x is [M, K], w is [N, K], y is float32 [M, N].

    f32    y = fma(w[n, k], x[m, k], y), k ascending
    bf16   the same, both operands rounded to bfloat16 first. The avx512 path multiplies pairs with
           an instruction of its own (vdpbf16ps), which sums the two products in another order and
           flushes denormals: there this is a reference up to rounding
    int8   y = float(sum of q_x * q_w) * (s_x[m] * s_w[n]); in groups as int4
    int4   y = fma(float(sum over group g of q_x * q_w), s_w[n, g] * s_x[m, g], y), g ascending;
           of stored matrices with offsets, after each group
           y = fma(offset[n, g], float(sum of q_x) * s_x[m, g], y)

Integer sums are exact: up to 131,072 columns they fit 32 bits.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from trimtab.numerics.floats import fma, round_to_bf16
from trimtab.numerics.quantization import (
    Quantized,
    quantize_activations,
    quantize_weights_int4,
    quantize_weights_int8,
)
from trimtab.numerics.stored import GroupedMatrix

Float32Array = npt.NDArray[np.float32]
Int32Array = npt.NDArray[np.int32]


def gemm_f32(x: Float32Array, w: Float32Array) -> Float32Array:
    y = np.zeros((x.shape[0], w.shape[0]), np.float32)
    for k in range(x.shape[1]):
        y = fma(x[:, k, None], w[None, :, k], y)
    return y


def gemm_bf16(x: Float32Array, w: Float32Array) -> Float32Array:
    return gemm_f32(round_to_bf16(x), round_to_bf16(w))


def group_sums(x: Quantized, w: Quantized) -> Int32Array:
    """[M, N, groups]: the exact integer dot products, group by group."""
    columns = np.arange(0, x.values.shape[1], x.group_size)
    sums = [
        x.values[:, k : k + x.group_size].astype(np.int32)
        @ w.values[:, k : k + x.group_size].astype(np.int32).T
        for k in columns
    ]
    return np.stack(sums, axis=-1).astype(np.int32)


def gemm_int8(x: Float32Array, w: Float32Array) -> Float32Array:
    qx, qw = quantize_activations(x), quantize_weights_int8(w)
    sums = group_sums(qx, qw)[:, :, 0].astype(np.float32)
    scales: Float32Array = qx.scales * qw.scales.T
    return np.multiply(sums, scales, dtype=np.float32)


def gemm_groups(x: Float32Array, w: Quantized) -> Float32Array:
    qx = quantize_activations(x, w.group_size)
    sums = group_sums(qx, w).astype(np.float32)
    y = np.zeros(sums.shape[:2], np.float32)
    for group in range(sums.shape[2]):
        scales = w.scales[None, :, group] * qx.scales[:, None, group]
        y = fma(sums[:, :, group], scales, y)
    return y


def stored_offsets(w: GroupedMatrix) -> Float32Array | None:
    """What a group adds to value * scale of each weight, [N, groups]."""
    if w.zeros is not None:
        return -w.zeros.astype(np.float32) * w.scales
    if w.offsets is None:
        return None
    centre = np.full_like(w.scales, 1 << (w.bits - 1))
    return fma(centre, w.scales, w.offsets)


def gemm_stored(x: Float32Array, w: GroupedMatrix) -> Float32Array:
    """Of a matrix of integers that is kept as it is. Its groups must be those of the kernels."""
    if w.columns is not None:
        x = x[:, w.columns]
    cols = w.scales.shape[1] * w.group_size
    values = np.pad(w.values, [(0, 0), (0, cols - w.values.shape[1])])
    weights = Quantized(values, w.scales, w.group_size)
    qx = quantize_activations(x, w.group_size)
    sums = group_sums(qx, weights).astype(np.float32)
    offsets = stored_offsets(w)
    totals = qx.values.reshape(len(x), -1, w.group_size).sum(axis=2, dtype=np.int32)
    scaled: Float32Array = totals.astype(np.float32) * qx.scales
    y = np.zeros(sums.shape[:2], np.float32)
    for group in range(sums.shape[2]):
        scales = w.scales[None, :, group] * qx.scales[:, None, group]
        y = fma(sums[:, :, group], scales, y)
        if offsets is not None:
            of_rows = np.broadcast_to(offsets[None, :, group], y.shape)
            y = fma(of_rows, np.broadcast_to(scaled[:, None, group], y.shape), y)
    return y


def gemm(x: Float32Array, w: Float32Array, weight_format: str, group_size: int) -> Float32Array:
    """The reference of a weight format by name (`config.CPU_WEIGHT_FORMATS`)."""
    if weight_format == "int4":
        return gemm_groups(x, quantize_weights_int4(w, group_size))
    if weight_format == "int8" and group_size:
        return gemm_groups(x, quantize_weights_int8(w, group_size))
    functions = {"f32": gemm_f32, "bf16": gemm_bf16, "int8": gemm_int8}
    return functions[weight_format](x, w)
