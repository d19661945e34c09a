"""Float arithmetic that numpy lacks: bfloat16 rounding and a correctly rounded float32 fma."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]
UInt16Array = npt.NDArray[np.uint16]


def to_bf16(x: Float32Array) -> UInt16Array:
    """The bits of the bfloat16 nearest to each element: ties to even, NaN stays NaN (quiet)."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    quiet = (bits >> 16) | 0x40
    return np.where(np.isnan(x), quiet, rounded).astype(np.uint16)


def from_bf16(bits: UInt16Array) -> Float32Array:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def round_to_bf16(x: Float32Array) -> Float32Array:
    """Each element rounded to bfloat16, as float32."""
    return from_bf16(to_bf16(x))


def fma(a: Float32Array, b: Float32Array, c: Float32Array) -> Float32Array:
    """a * b + c in float32, rounded once.

    The product of two float32 is exact in float64. Their sum with c is rounded to odd (the error
    of the addition decides the last bit), which makes the second rounding, to float32, correct
    (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", 2008).
    """
    with np.errstate(invalid="ignore", over="ignore"):
        product = a.astype(np.float64) * b.astype(np.float64)
        addend = c.astype(np.float64)
        total = product + addend
        part = total - product
        error = (product - (total - part)) + (addend - part)
        bits = np.atleast_1d(total).view(np.int64).reshape(total.shape)
        adjust = ((error > 0) | (error < 0)) & (bits & 1 == 0)
        step = np.where((error > 0) == (total > 0), 1, -1)
        exact = np.atleast_1d(bits + np.where(adjust, step, 0)).view(np.float64)
        return exact.reshape(total.shape).astype(np.float32)
