"""The block formats of GGUF files: their integers and scales, taken apart and left as they are.

A row is a whole number of blocks; a block has one scale or more and the integers that they
multiply. Layouts: `ggml-common.h` and `dequantize_row_*` of ggml, as of 2026. What comes out is a
GroupedMatrix whose float32 values equal those of ggml bit for bit. IQ4_NL, IQ4_XS and MXFP4 store
indices into a table of integers; here the integers themselves are the values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trimtab.numerics.stored import GroupedMatrix, GroupFormat, SuperScales

Bytes = npt.NDArray[Any]  # uint8; numpy's types lose that with every shift
Float32Array = npt.NDArray[np.float32]
Int8Array = npt.NDArray[np.int8]

PIECE_ELEMENTS = 1 << 19  # taken apart at once: what is made on the way stays in cache


@dataclass(frozen=True)
class Parts:
    """Of n blocks, each of g groups. In two levels: scales = scale * sub, float32; offsets
    likewise, negated."""

    values: Int8Array  # [n, elements], centred
    scale: Float32Array  # [n, 1]
    offset: Float32Array | None = None  # [n, 1]
    sub_scales: Int8Array | None = None  # [n, g]
    sub_offsets: Bytes | None = None  # [n, g]


@dataclass(frozen=True)
class BlockType:
    name: str
    elements: int
    num_bytes: int
    format: GroupFormat | None = None  # None: plain floats
    split: Callable[[Bytes], Parts] | None = None  # [n, num_bytes]; None: plain floats

    def row_bytes(self, columns: int) -> int:
        """Of a row of so many columns, which are a multiple of `elements`."""
        return columns // self.elements * self.num_bytes

    def unpack(self, rows: Bytes) -> GroupedMatrix:
        """[rows, row bytes] of a quantized type. Besides the result, a piece is in memory. Scales
        that the file has as infinite or NaN stay so."""
        assert self.format is not None
        assert self.split is not None
        blocks = rows.shape[1] // self.num_bytes  # of a row
        num_rows, columns = len(rows), blocks * self.elements
        groups = columns // self.format.group_size
        values = np.empty((num_rows, columns), np.int8)
        scales = np.empty((num_rows, groups), np.float32)
        offsets = np.empty_like(scales) if self.format.offset == "float" else None
        supers = None
        if self.format.scale_type == "super":
            supers = SuperScales(
                np.empty((num_rows, blocks), np.float32),
                np.empty((num_rows, groups), np.int8),
                None if offsets is None else np.empty((num_rows, blocks), np.float32),
                None if offsets is None else np.empty((num_rows, groups), np.uint8),
            )
        step = max(1, PIECE_ELEMENTS // max(columns, 1))
        for first in range(0, num_rows, step):
            piece = slice(first, first + step)
            flat = np.ascontiguousarray(rows[piece]).reshape(-1, self.num_bytes)
            parts = self.split(flat)
            values[piece] = parts.values.reshape(-1, columns)
            scale, offset = parts.scale, parts.offset
            if supers is not None:
                scale, offset = _two_levels(parts, supers, piece)
            scales[piece] = scale.reshape(-1, groups)
            if offsets is not None:
                assert offset is not None
                offsets[piece] = offset.reshape(-1, groups)
        kind = self.format
        return GroupedMatrix(
            values, kind.bits, kind.group_size, scales, kind.scale_type, None, offsets, supers
        )


def _two_levels(
    parts: Parts, supers: SuperScales, piece: slice
) -> tuple[Float32Array, Float32Array | None]:
    """Scales and offsets of the groups; the two levels themselves go into `supers`."""
    assert parts.sub_scales is not None
    rows = supers.sub_scales[piece].shape[0]
    supers.super_scales[piece] = parts.scale.reshape(rows, -1)
    supers.sub_scales[piece] = parts.sub_scales.reshape(rows, -1)
    with np.errstate(invalid="ignore"):  # infinity times zero
        scales = parts.scale * parts.sub_scales.astype(np.float32)
    if parts.offset is None or parts.sub_offsets is None:
        return scales, None
    assert supers.super_offsets is not None
    assert supers.sub_offsets is not None
    supers.super_offsets[piece] = parts.offset.reshape(rows, -1)
    supers.sub_offsets[piece] = parts.sub_offsets.reshape(rows, -1)
    with np.errstate(invalid="ignore"):
        return scales, -(parts.offset * parts.sub_offsets.astype(np.float32))


def _halves(data: Bytes) -> Float32Array:
    """Little-endian float16 to float32: [n, 2k] to [n, k]."""
    return np.ascontiguousarray(data).view("<f2").astype(np.float32)


def _nibbles(data: Bytes) -> Bytes:
    """All low nibbles of a run of bytes, then all high ones: [..., k] to [..., 2k]."""
    return np.concatenate([data & 15, data >> 4], axis=-1)


def _centred(values: Bytes, half: int) -> Int8Array:
    """Unsigned, below 2 * half, to signed."""
    signed: Int8Array = values.view(np.int8) - np.int8(half)
    return signed


# ---- blocks of 32


def _split_q4_0(data: Bytes) -> Parts:
    return Parts(_centred(_nibbles(data[:, 2:]), 8), _halves(data[:, :2]))


def _split_q4_1(data: Bytes) -> Parts:
    values = _centred(_nibbles(data[:, 4:]), 8)
    return Parts(values, _halves(data[:, :2]), _halves(data[:, 2:4]))


def _fifth_bits(data: Bytes) -> Bytes:
    """[n, 4] bytes, a bit for each of 32 elements, to [n, 32] of 0 or 16."""
    return np.unpackbits(data, axis=1, bitorder="little") << 4


def _split_q5_0(data: Bytes) -> Parts:
    values = _nibbles(data[:, 6:]) | _fifth_bits(data[:, 2:6])
    return Parts(_centred(values, 16), _halves(data[:, :2]))


def _split_q5_1(data: Bytes) -> Parts:
    values = _nibbles(data[:, 8:]) | _fifth_bits(data[:, 4:8])
    return Parts(_centred(values, 16), _halves(data[:, :2]), _halves(data[:, 2:4]))


def _split_q8_0(data: Bytes) -> Parts:
    return Parts(data[:, 2:].view(np.int8), _halves(data[:, :2]))


_IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)


def _split_iq4_nl(data: Bytes) -> Parts:
    return Parts(_IQ4[_nibbles(data[:, 2:])], _halves(data[:, :2]))


_FP4 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)  # doubled


def _split_mxfp4(data: Bytes) -> Parts:
    # 2^(e - 128), the table being doubled; e = 0 and 1 are below the normal floats
    scale = np.ldexp(np.float32(1), data[:, :1].astype(np.int32) - 128)
    return Parts(_FP4[_nibbles(data[:, 1:])], scale.astype(np.float32))


# ---- blocks of 256


def _pairs_of_bits(data: Bytes) -> Bytes:
    """[n, 64], two bits of 256 elements: the lowest pairs of 32 bytes first. To [n, 256]."""
    shifts = np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)
    return ((data.reshape(-1, 2, 1, 32) >> shifts) & 3).reshape(-1, 256)


def _planes(data: Bytes) -> Bytes:
    """[n, 32], a bit of 256 elements: the lowest bits of all bytes first. To [n, 256]."""
    bits = np.arange(8, dtype=np.uint8).reshape(1, 8, 1)
    return ((data.reshape(-1, 1, 32) >> bits) & 1).reshape(-1, 256)


def _split_q2_k(data: Bytes) -> Parts:
    return Parts(
        _centred(_pairs_of_bits(data[:, 16:80]), 2),
        _halves(data[:, 80:82]),
        _halves(data[:, 82:84]),
        (data[:, :16] & 15).view(np.int8),
        data[:, :16] >> 4,
    )


def _split_q3_k(data: Bytes) -> Parts:
    packed = data[:, 96:108]
    low = np.concatenate([packed[:, :8] & 15, packed[:, :8] >> 4], axis=1)
    shifts = np.repeat(np.array([0, 2, 4, 6], np.uint8), 4)
    high = (np.tile(packed[:, 8:12], (1, 4)) >> shifts) & 3
    values = _pairs_of_bits(data[:, 32:96]) | (_planes(data[:, :32]) << 2)
    sub_scales = _centred(low | (high << 4), 32)
    return Parts(_centred(values, 4), _halves(data[:, 108:110]), None, sub_scales)


def _split_with_minima(data: Bytes, values: Int8Array) -> Parts:
    """Q4_K and Q5_K: 12 bytes hold six-bit scales and minima of 8 groups."""
    first, second, third = data[:, 4:8], data[:, 8:12], data[:, 12:16]
    scales = np.concatenate([first & 63, (third & 15) | (first >> 6 << 4)], axis=1)
    minima = np.concatenate([second & 63, (third >> 4) | (second >> 6 << 4)], axis=1)
    return Parts(values, _halves(data[:, :2]), _halves(data[:, 2:4]), scales.view(np.int8), minima)


def _split_q4_k(data: Bytes) -> Parts:
    values = _nibbles(data[:, 16:].reshape(-1, 4, 32)).reshape(-1, 256)
    return _split_with_minima(data, _centred(values, 8))


def _split_q5_k(data: Bytes) -> Parts:
    low = _nibbles(data[:, 48:].reshape(-1, 4, 32)).reshape(-1, 256)
    values = low | (_planes(data[:, 16:48]) << 4)
    return _split_with_minima(data, _centred(values, 16))


def _split_q6_k(data: Bytes) -> Parts:
    low = _nibbles(data[:, :128].reshape(-1, 2, 64)).reshape(-1, 256)
    values = low | (_pairs_of_bits(data[:, 128:192]) << 4)
    sub_scales = data[:, 192:208].view(np.int8)
    return Parts(_centred(values, 32), _halves(data[:, 208:210]), None, sub_scales)


def _split_iq4_xs(data: Bytes) -> Parts:
    packed = np.ascontiguousarray(data[:, 2:4]).view("<u2")
    turns = np.arange(8, dtype=np.uint16) * np.uint16(2)
    high = ((packed >> turns) & 3).astype(np.uint8)
    low = np.stack([data[:, 4:8] & 15, data[:, 4:8] >> 4], axis=2).reshape(-1, 8)
    values = _IQ4[_nibbles(data[:, 8:].reshape(-1, 8, 16))].reshape(-1, 256)
    return Parts(values, _halves(data[:, :2]), None, _centred(low | (high << 4), 32))


def _one_level(bits: int, offset: bool = False) -> GroupFormat:
    return GroupFormat(bits, 32, "f16", "float" if offset else "none")


def _super(bits: int, group_size: int, offset: bool = False) -> GroupFormat:
    return GroupFormat(bits, group_size, "super", "float" if offset else "none")


BLOCKS = {
    0: BlockType("F32", 1, 4),
    1: BlockType("F16", 1, 2),
    2: BlockType("Q4_0", 32, 18, _one_level(4), _split_q4_0),
    3: BlockType("Q4_1", 32, 20, _one_level(4, offset=True), _split_q4_1),
    6: BlockType("Q5_0", 32, 22, _one_level(5), _split_q5_0),
    7: BlockType("Q5_1", 32, 24, _one_level(5, offset=True), _split_q5_1),
    8: BlockType("Q8_0", 32, 34, _one_level(8), _split_q8_0),
    10: BlockType("Q2_K", 256, 84, _super(2, 16, offset=True), _split_q2_k),
    11: BlockType("Q3_K", 256, 110, _super(3, 16), _split_q3_k),
    12: BlockType("Q4_K", 256, 144, _super(4, 32, offset=True), _split_q4_k),
    13: BlockType("Q5_K", 256, 176, _super(5, 32, offset=True), _split_q5_k),
    14: BlockType("Q6_K", 256, 210, _super(6, 16), _split_q6_k),
    20: BlockType("IQ4_NL", 32, 18, _one_level(8), _split_iq4_nl),
    23: BlockType("IQ4_XS", 256, 136, _super(8, 32), _split_iq4_xs),
    30: BlockType("BF16", 1, 2),
    39: BlockType("MXFP4", 32, 17, GroupFormat(5, 32, "bf16", "none"), _split_mxfp4),
}

# Known to ggml and not read here.
OTHER_TYPES = {
    9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 21: "IQ3_S",
    22: "IQ2_S", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0",
    35: "TQ2_0", 40: "NVFP4",
}  # fmt: skip
