"""Rounding weights and activations to integers: exactly what the kernels do, in numpy.

All schemes are symmetric (zero point 0) and round half to even.

    weights      int8   one scale a row: absmax / 127                 values in [-127, 127]
                 int4   one scale a (row, group): f16(absmax / 7)     values in [-8, 7]
    activations  int8   one scale a row: absmax / 127                 values in [-127, 127]
                 int4   int8 values, one scale a (row, group)         values in [-127, 127]

A row or group without information (absmax under 2^-100, or, of int4 weights, a scale that f16
rounds to 0) becomes zeros with scale 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]
Int8Array = npt.NDArray[np.int8]

SMALLEST_ABSMAX = np.float32(2.0**-100)
LARGEST_F16 = np.float32(65504.0)


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


def quantize_weights_int8(weights: Float32Array) -> Quantized:
    """Per row: q = round(w / s), s = absmax / 127."""
    rows, cols = weights.shape
    absmax = np.abs(weights).max(axis=1)
    scales = np.where(absmax < SMALLEST_ABSMAX, 0, absmax / np.float32(127)).astype(np.float32)
    divisors = np.where(scales == 0, np.float32(np.inf), scales)[:, None]
    values = np.rint(weights / divisors).astype(np.int8)
    return Quantized(values.reshape(rows, cols), scales[:, None], cols)


def quantize_weights_int4(weights: Float32Array, group_size: int) -> Quantized:
    """Per (row, group): q = clip(round(w / s), -8, 7), s = absmax / 7 rounded to f16."""
    grouped = _grouped(weights, group_size)
    absmax = np.abs(grouped).max(axis=2)
    scales = np.minimum(absmax / np.float32(7), LARGEST_F16)
    scales = scales.astype(np.float16).astype(np.float32)
    divisors = np.where(scales == 0, np.float32(np.inf), scales)[:, :, None]
    values = np.clip(np.rint(grouped / divisors), -8, 7).astype(np.int8)
    return Quantized(values.reshape(weights.shape[0], -1), scales, group_size)


def _quantize_activations(grouped: Float32Array, group_size: int) -> Quantized:
    absmax = np.abs(grouped).max(axis=2)
    empty = absmax < SMALLEST_ABSMAX
    divisors = np.where(empty, np.float32(1), absmax)
    scales = np.where(empty, np.float32(0), divisors / np.float32(127))
    inverses = np.where(empty, np.float32(0), np.float32(127) / divisors)[:, :, None]
    values = np.rint(grouped * inverses).astype(np.int8)
    return Quantized(values.reshape(grouped.shape[0], -1), scales, group_size)


def quantize_activations_int8(x: Float32Array) -> Quantized:
    """Per row: q = round(x * (127 / absmax)), s = absmax / 127. x must be finite."""
    return _quantize_activations(x[:, None, :], x.shape[1])


def quantize_activations_int4(x: Float32Array, group_size: int) -> Quantized:
    """Per (row, group): q = round(x * (127 / absmax)), s = absmax / 127. x must be finite."""
    return _quantize_activations(_grouped(x, group_size), group_size)
