"""Rounding weights and activations to integers: exactly what the kernels do, in numpy.

All schemes are symmetric (zero point 0) and round half to even.

    weights      int8   one scale a row: absmax / 127                 values in [-127, 127]
                        or a (row, group): f16(absmax / 127)
                 int4   one scale a (row, group): f16(absmax / d),    values in [-8, 7]
                        d of INT4_DIVISORS with the least squared error
    activations         int8 values, one scale a row or (row, group), as the weights have

A row or group without information (absmax under 2^-100, or, of groups of weights, a scale that
f16 rounds to 0) becomes zeros with scale 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]
Int8Array = npt.NDArray[np.int8]

SMALLEST_ABSMAX = np.float32(2.0**-100)
LARGEST_F16 = np.float32(65504.0)
# A negative scale uses the eighth value below zero for the largest weight. Above 7.5 the largest is
# clipped a little, which is often less than what the finer steps gain.
INT4_DIVISORS = (7.0, -7.0, 7.5, -7.5, 8.0, -8.0, 8.5, -8.5)


@dataclass(frozen=True)
class Quantized:
    """A matrix of integers; its columns are padded with zeros to a multiple of the group."""

    values: Int8Array  # [rows, padded_cols]
    scales: Float32Array  # [rows, groups]
    group_size: int  # columns that share a scale; padded_cols when a row has one scale

    def dequantize(self) -> Float32Array:
        """[rows, padded_cols]: values * scales."""
        scales = np.repeat(self.scales, self.group_size, axis=1)
        return self.values.astype(np.float32) * scales


def _grouped(x: Float32Array, group_size: int) -> Float32Array:
    """[rows, groups, group_size], padded with zeros."""
    rows, cols = x.shape
    groups = -(-cols // group_size)
    padded = np.zeros((rows, groups * group_size), np.float32)
    padded[:, :cols] = x
    return padded.reshape(rows, groups, group_size)


def quantize_weights_int8(weights: Float32Array, group_size: int = 0) -> Quantized:
    """q = round(w / s). Per row: s = absmax / 127; per (row, group): rounded to f16, and q clipped
    to [-127, 127]."""
    rows, cols = weights.shape
    if group_size:
        grouped = _grouped(weights, group_size)
        scales = np.minimum(np.abs(grouped).max(axis=2) / np.float32(127), LARGEST_F16)
        scales = scales.astype(np.float16).astype(np.float32)
        divisors = np.where(scales == 0, np.float32(np.inf), scales)[:, :, None]
        values = np.clip(np.rint(grouped / divisors), -127, 127).astype(np.int8)
        return Quantized(values.reshape(rows, -1), scales, group_size)
    absmax = np.abs(weights).max(axis=1)
    scales = np.where(absmax < SMALLEST_ABSMAX, 0, absmax / np.float32(127)).astype(np.float32)
    divisors = np.where(scales == 0, np.float32(np.inf), scales)[:, None]
    values = np.rint(weights / divisors).astype(np.int8)
    return Quantized(values.reshape(rows, cols), scales[:, None], cols)


def _sum_in_lanes(x: Float32Array) -> Float32Array:
    """Sums over the last axis as the kernels add: 16 lanes, then halves of them."""
    lanes = np.zeros((*x.shape[:-1], 16), np.float32)
    for k in range(0, x.shape[-1], 16):
        lanes = lanes + x[..., k : k + 16]
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes[..., 0]


def quantize_weights_int4(weights: Float32Array, group_size: int) -> Quantized:
    """Per (row, group): q = clip(round(w / s), -8, 7), s = absmax / d rounded to f16, with the d of
    INT4_DIVISORS whose sum of (w - q s)^2 is least, the first of equals."""
    grouped = _grouped(weights, group_size)
    absmax = np.abs(grouped).max(axis=2)
    for divisor in INT4_DIVISORS:
        scales = np.clip(absmax / np.float32(divisor), -LARGEST_F16, LARGEST_F16)
        scales = scales.astype(np.float16).astype(np.float32)
        divisors = np.where(scales == 0, np.float32(np.inf), scales)[:, :, None]
        values = np.clip(np.rint(grouped / divisors), -8, 7).astype(np.float32)
        errors = grouped - values * scales[:, :, None]
        with np.errstate(over="ignore"):
            error = _sum_in_lanes(errors * errors)
        if divisor == INT4_DIVISORS[0]:
            best, best_scales, least = values, scales, error
            continue
        better = error < least
        best = np.where(better[:, :, None], values, best)
        best_scales = np.where(better, scales, best_scales)
        least = np.where(better, error, least)
    return Quantized(best.astype(np.int8).reshape(len(weights), -1), best_scales, group_size)


def _quantize_activations(grouped: Float32Array, group_size: int) -> Quantized:
    absmax = np.abs(grouped).max(axis=2)
    empty = absmax < SMALLEST_ABSMAX
    divisors = np.where(empty, np.float32(1), absmax)
    scales = np.where(empty, np.float32(0), divisors / np.float32(127))
    inverses = np.where(empty, np.float32(0), np.float32(127) / divisors)[:, :, None]
    values = np.rint(grouped * inverses).astype(np.int8)
    return Quantized(values.reshape(grouped.shape[0], -1), scales, group_size)


def quantize_activations(x: Float32Array, group_size: int = 0) -> Quantized:
    """Per row, or (row, group): q = round(x * (127 / absmax)), s = absmax / 127. x is finite."""
    columns = group_size or x.shape[1]
    return _quantize_activations(_grouped(x, columns), columns)
