"""The blocks of GGUF files put together: the inverse of `trimtab.numerics.gguf_blocks`.

Values are unsigned here, as files have them: 0 to 2^bits - 1, but for Q8_0, which is signed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from trimtab.numerics.stored import GroupedMatrix

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


def halves(values: Floats) -> Bytes:
    """[n, k] to little-endian float16: [n, 2k]."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values.astype("<f2")).view(np.uint8)


def nibbles(values: Bytes) -> Bytes:
    """[..., 2k] to [..., k]: the first half in the low nibbles, the second in the high ones."""
    half = values.shape[-1] // 2
    packed: Any = (values[..., :half] & 15) | (values[..., half:] << 4)
    result: Bytes = packed
    return result


def fifth_bits(values: Bytes) -> Bytes:
    """[n, 32] to [n, 4]"""
    return np.packbits(values >> 4, axis=-1, bitorder="little")


def pack_q4_0(values: Bytes, scale: Floats) -> Bytes:
    """[n, 32], [n, 1] to [n, 18]"""
    return np.concatenate([halves(scale), nibbles(values)], axis=1)


def pack_q4_1(values: Bytes, scale: Floats, minimum: Floats) -> Bytes:
    return np.concatenate([halves(scale), halves(minimum), nibbles(values)], axis=1)


def pack_q5_0(values: Bytes, scale: Floats) -> Bytes:
    return np.concatenate([halves(scale), fifth_bits(values), nibbles(values)], axis=1)


def pack_q5_1(values: Bytes, scale: Floats, minimum: Floats) -> Bytes:
    head = [halves(scale), halves(minimum), fifth_bits(values)]
    return np.concatenate([*head, nibbles(values)], axis=1)


def pack_q8_0(values: npt.NDArray[np.int8], scale: Floats) -> Bytes:
    return np.concatenate([halves(scale), values.view(np.uint8)], axis=1)


def _six_bits(scales: Bytes, minima: Bytes) -> Bytes:
    """Scales and minima of 8 groups, [n, 8] each, to [n, 12]."""
    low, high = scales[:, :4], scales[:, 4:]
    low_min, high_min = minima[:, :4], minima[:, 4:]
    return np.concatenate(
        [
            low | (high >> 4 << 6),
            low_min | (high_min >> 4 << 6),
            (high & 15) | ((high_min & 15) << 4),
        ],
        axis=1,
    )


def pack_q4_k(values: Bytes, d: Floats, dmin: Floats, scales: Bytes, minima: Bytes) -> Bytes:
    """[n, 256], [n, 1], [n, 1], [n, 8], [n, 8] to [n, 144]; element = d scale value - dmin min."""
    quarters = nibbles(values.reshape(-1, 4, 64)).reshape(-1, 128)
    return np.concatenate([halves(d), halves(dmin), _six_bits(scales, minima), quarters], axis=1)


def pack_q5_k(values: Bytes, d: Floats, dmin: Floats, scales: Bytes, minima: Bytes) -> Bytes:
    quarters = nibbles(values.reshape(-1, 4, 64)).reshape(-1, 128)
    shifts = np.arange(8, dtype=np.uint8).reshape(1, 8, 1)
    high = np.bitwise_or.reduce((values.reshape(-1, 8, 32) >> 4) << shifts, axis=1)
    head = [halves(d), halves(dmin), _six_bits(scales, minima)]
    return np.concatenate([*head, high, quarters], axis=1)


def pack_q6_k(values: Bytes, d: Floats, scales: npt.NDArray[np.int8]) -> Bytes:
    """[n, 256], [n, 1], [n, 16] to [n, 210]; element = d scale (value - 32)."""
    quarters = values.reshape(-1, 2, 4, 32)
    low = nibbles(quarters.reshape(-1, 2, 128)).reshape(-1, 128)
    shifts = np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)
    high = np.bitwise_or.reduce((quarters >> 4) << shifts, axis=2).reshape(-1, 64)
    return np.concatenate([low, high, scales.view(np.uint8), halves(d)], axis=1)


def pack_grouped(matrix: GroupedMatrix) -> tuple[str, Bytes] | None:
    """The type of GGUF that holds exactly what `matrix` holds, and its bytes [rows, row bytes];
    None if there is none: it must have groups of 32, scales exact in float16, and 8 bits without
    zero points (Q8_0), or 4 or 5 without (Q4_0, Q5_0) or with (Q4_1, Q5_1, where the minimum that
    follows from the zero point is exact in float16)."""
    rows, cols = matrix.shape
    if (
        matrix.group_size != 32
        or cols % 32
        or matrix.columns is not None
        or matrix.scale_type == "super"
        or not _is_half(matrix.scales)
    ):
        return None
    half = 1 << (matrix.bits - 1)
    scale = matrix.scales.reshape(-1, 1)
    if matrix.bits == 8 and matrix.zeros is None and matrix.offsets is None:
        return "Q8_0", pack_q8_0(matrix.values.reshape(-1, 32), scale).reshape(rows, -1)
    if matrix.bits not in (4, 5):
        return None
    values: Bytes = (matrix.values.reshape(-1, 32) + np.int8(half)).view(np.uint8)
    minimum: Any = matrix.offsets
    if matrix.zeros is not None:
        minimum = -(matrix.zeros.astype(np.float32) + half) * matrix.scales
    if minimum is None:
        pack = pack_q4_0 if matrix.bits == 4 else pack_q5_0
        return f"Q{matrix.bits}_0", pack(values, scale).reshape(rows, -1)
    if not _is_half(minimum):
        return None
    pack_two = pack_q4_1 if matrix.bits == 4 else pack_q5_1
    packed = pack_two(values, scale, minimum.reshape(-1, 1).astype(np.float32))
    return f"Q{matrix.bits}_1", packed.reshape(rows, -1)


def _is_half(values: Floats) -> bool:
    with np.errstate(over="ignore"):
        return bool((values.astype(np.float16).astype(np.float32) == values).all())
