"""Random matrices as checkpoints store them."""

from __future__ import annotations

import numpy as np

from trimtab.checkpoints.base import StoredTensor
from trimtab.numerics.floats import from_bf16, to_bf16
from trimtab.numerics.stored import Fp8Matrix, GroupedMatrix, ScaleType


def grouped(
    rng: np.random.Generator,
    rows: int,
    cols: int,
    *,
    bits: int = 4,
    group_size: int = 32,
    offset: str = "none",
    scale_type: ScaleType = "f16",
    ordered: bool = True,
) -> GroupedMatrix:
    half = 1 << (bits - 1)
    groups = -(-cols // group_size)
    scales = (rng.standard_normal((rows, groups)) * 0.02 / half).astype(np.float32)
    if scale_type == "f16":
        scales = scales.astype(np.float16).astype(np.float32)
    elif scale_type == "bf16":
        scales = from_bf16(to_bf16(scales))
    zeros = offsets = columns = None
    if offset == "zero":
        zeros = rng.integers(-half, half + 1, (rows, groups)).astype(np.int16)
    elif offset == "float":
        offsets = (rng.standard_normal((rows, groups)) * 0.02).astype(np.float16).astype(np.float32)
    if not ordered:
        columns = rng.permutation(cols).astype(np.int32)
    values = rng.integers(-half, half, (rows, cols)).astype(np.int8)
    return GroupedMatrix(
        values,
        bits,
        group_size,
        scales,
        scale_type,
        zeros=zeros,
        offsets=offsets,
        columns=columns,
        order="" if ordered else "test",
    )


def fp8(
    rng: np.random.Generator, rows: int, cols: int, block_rows: int, block_cols: int
) -> Fp8Matrix:
    values = rng.integers(0, 256, (rows, cols)).astype(np.uint8)
    values[values & 127 == 127] = 0
    shape = (-(-rows // block_rows), -(-cols // block_cols))
    scales = (rng.random(shape) * 1e-4 + 1e-5).astype(np.float32)
    return Fp8Matrix(values, scales, block_rows, block_cols)


def floats(rng: np.random.Generator, rows: int, cols: int, dtype: str = "f32") -> StoredTensor:
    data = (rng.standard_normal((rows, cols)) / np.sqrt(cols)).astype(np.float32)
    if dtype == "bf16":
        return StoredTensor(to_bf16(data), "bf16")
    return StoredTensor(data.astype(np.float16) if dtype == "f16" else data, dtype)
