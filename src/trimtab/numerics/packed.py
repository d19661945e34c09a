"""The packed layouts of weights (native/kernels/kernels.h), read back: what tests compare with.

    f32   [N/16][K][16]        f32
    bf16  [N/16][K/2][16][2]   bf16
    int8  [N/16][K/4][16][4]   u8 = value + 128
          in groups: [N/32][K/g] { f16 scale[32]; u8 [g/4][2][16][4] }, rows 0..15, then 16..31
    int4  [N/32][K/g] { f16 scale[32]; u8 nibble[g/4][16][4] }, nibble = value + 8,
          low nibble: rows 0..15 of the 32, high nibble: rows 16..31

N is padded to 16 (in groups: 32) rows, K to the unit of the format; padding is zero.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from trimtab.numerics.floats import from_bf16
from trimtab.numerics.quantization import Quantized

PANEL = 16

Float32Array = npt.NDArray[np.float32]
Int8Array = npt.NDArray[np.int8]
UInt8Array = npt.NDArray[np.uint8]


Scalar = TypeVar("Scalar", bound=np.generic)


def _panels(data: npt.NDArray[Scalar], rows: int, unit: int) -> npt.NDArray[Scalar]:
    """[N, K] from [N/16][K/unit][16][unit]."""
    units = data.reshape(-(-rows // PANEL), -1, PANEL, unit).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(units).reshape(units.shape[0] * PANEL, -1)


def unpack_f32(data: UInt8Array, rows: int) -> Float32Array:
    """[padded rows, padded cols]"""
    return _panels(data.view(np.float32), rows, 1)


def unpack_bf16(data: UInt8Array, rows: int) -> Float32Array:
    """[padded rows, padded cols]"""
    return from_bf16(_panels(data.view(np.uint16), rows, 2))


def unpack_int8(data: UInt8Array, rows: int) -> Int8Array:
    """[padded rows, padded cols]"""
    return (_panels(data, rows, 4) ^ 128).view(np.int8)


def unpack_groups(
    data: UInt8Array, weight_format: str, rows: int, cols: int, group_size: int
) -> Quantized:
    """int4 or int8 in groups; padded rows and columns included."""
    pairs, groups = -(-rows // (2 * PANEL)), -(-cols // group_size)
    blocks = data.reshape(pairs, groups, -1)
    scales = np.ascontiguousarray(blocks[:, :, :64]).view(np.float16).astype(np.float32)
    stored = blocks[:, :, 64:]
    if weight_format == "int4":
        nibbles = stored.reshape(pairs, groups, group_size // 4, PANEL, 4)
        halves = np.stack([nibbles & 15, nibbles >> 4], axis=1).astype(np.int8) - 8
    else:
        halves = (stored ^ 128).view(np.int8).reshape(pairs, groups, group_size // 4, 2, PANEL, 4)
        halves = halves.transpose(0, 3, 1, 2, 4, 5)
    values = halves.transpose(0, 1, 4, 2, 3, 5)  # pair, half, row, group, quad, k
    return Quantized(
        np.ascontiguousarray(values).reshape(pairs * 2 * PANEL, groups * group_size),
        np.ascontiguousarray(scales.transpose(0, 2, 1)).reshape(pairs * 2 * PANEL, groups),
        group_size,
    )
