"""What a checkpoint stores of a quantized matrix, whatever its file format.

Readers make these, quantization methods make these, writers and executors take them: the integers
of the file, and what they are multiplied by. Nothing is rounded on the way.

    GroupedMatrix   integers of 2 to 8 bits; a group of input columns shares a scale
    Fp8Matrix       float8 e4m3; a block of the matrix shares a scale
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]
Int8Array = npt.NDArray[np.int8]
Int16Array = npt.NDArray[np.int16]
Int32Array = npt.NDArray[np.int32]
UInt8Array = npt.NDArray[np.uint8]

ScaleType = Literal["f32", "f16", "bf16", "super"]
OffsetType = Literal["none", "zero", "float"]

SUPER_COLUMNS = 256  # input columns that share a super-scale


@dataclass(frozen=True)
class GroupFormat:
    """Of a GroupedMatrix: what an executor must know before it reads one."""

    bits: int  # 2..8
    group_size: int  # input columns that share a scale; at least the columns: all of a row do
    scale_type: ScaleType  # where scales are exact; super: 8 bits times a f16 of 256 columns
    offset: OffsetType
    order: str = ""  # of columns out of order: equal for matrices of the same order


@dataclass(frozen=True)
class Fp8Format:
    """Of an Fp8Matrix."""

    block_rows: int
    block_cols: int


@dataclass(frozen=True)
class SuperScales:
    """Scales and offsets in two levels, as the K-quants of GGUF have them:
    scales = super_scales * sub_scales, offsets = -(super_offsets * sub_offsets), in float32."""

    super_scales: Float32Array  # [rows, cols / 256], values of float16
    sub_scales: Int8Array  # [rows, groups]
    super_offsets: Float32Array | None = None  # likewise
    sub_offsets: UInt8Array | None = None  # [rows, groups]


@dataclass(frozen=True)
class GroupedMatrix:
    """A matrix [rows (outputs), cols (inputs)] of integers, signed and centred: a file's unsigned
    u of b bits is u - 2^(b - 1) here, its zero point likewise. In float32:

        offset "none"    element = value * scale
        offset "zero"    element = (value - zero) * scale
        offset "float"   element = (value + 2^(bits - 1)) * scale + offset

    Column k belongs to group k // group_size; the last group may be short. Where `columns` is
    given, stored column k multiplies input columns[k].
    """

    values: Int8Array  # [rows, cols], each in [-2^(bits - 1), 2^(bits - 1) - 1]
    bits: int
    group_size: int
    scales: Float32Array  # [rows, groups]
    scale_type: ScaleType
    zeros: Int16Array | None = None  # [rows, groups]
    offsets: Float32Array | None = None  # [rows, groups]; not with zeros
    supers: SuperScales | None = None  # with scale_type "super"
    columns: Int32Array | None = None  # [cols], a permutation
    order: str = ""  # names the permutation; empty without one

    @property
    def shape(self) -> tuple[int, int]:
        return self.values.shape[0], self.values.shape[1]

    @property
    def format(self) -> GroupFormat:
        offset: OffsetType = "zero" if self.zeros is not None else "none"
        if self.offsets is not None:
            offset = "float"
        return GroupFormat(self.bits, self.group_size, self.scale_type, offset, self.order)

    def to_float32(self) -> Float32Array:
        """[rows, cols], the columns in the order of the inputs."""
        cols = self.values.shape[1]

        def spread(of_groups: npt.NDArray[np.generic]) -> Float32Array:
            wide = np.repeat(of_groups.astype(np.float32), self.group_size, axis=1)
            return wide[:, :cols]

        elements = self.values.astype(np.float32)
        if self.zeros is not None:
            elements -= spread(self.zeros)
        elif self.offsets is not None:
            elements += np.float32(1 << (self.bits - 1))
        elements *= spread(self.scales)
        if self.offsets is not None:
            elements += spread(self.offsets)
        if self.columns is not None:
            ordered = np.empty_like(elements)
            ordered[:, self.columns] = elements
            return ordered
        return elements


@dataclass(frozen=True)
class Fp8Matrix:
    """A matrix [rows, cols] of float8 e4m3fn; element = value * scale of its block, in float32."""

    values: UInt8Array  # [rows, cols], bit patterns
    scales: Float32Array  # [ceil(rows / block_rows), ceil(cols / block_cols)]
    block_rows: int
    block_cols: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.values.shape[0], self.values.shape[1]

    @property
    def format(self) -> Fp8Format:
        return Fp8Format(self.block_rows, self.block_cols)

    def to_float32(self) -> Float32Array:
        """[rows, cols]"""
        rows, cols = self.shape
        scales = np.repeat(self.scales, self.block_rows, axis=0)[:rows]
        elements: Float32Array = E4M3[self.values]
        elements *= np.repeat(scales, self.block_cols, axis=1)[:, :cols]
        return elements


def _e4m3() -> Float32Array:
    bits = np.arange(256)
    exponent, mantissa = bits >> 3 & 15, bits & 7
    fraction = np.where(exponent == 0, mantissa, mantissa + 8)
    magnitude = np.ldexp(fraction.astype(np.float32), np.maximum(exponent, 1) - 10)
    magnitude[bits & 127 == 127] = np.nan
    values: Float32Array = np.where(bits < 128, magnitude, -magnitude).astype(np.float32)
    return values


E4M3 = _e4m3()  # the value of every bit pattern of float8 e4m3fn (OCP 8-bit floating point, 1.0)
