"""Matrices of integers by the plainest rounding, for tests of what stores them."""

from __future__ import annotations

import numpy as np

from trimtab.checkpoints.base import Checkpoint
from trimtab.numerics.floats import round_to_bf16
from trimtab.numerics.stored import GroupedMatrix, ScaleType

PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")


def round_to_nearest(
    weights: np.ndarray,
    bits: int = 4,
    group_size: int | None = 32,
    symmetric: bool = True,
    scale_type: ScaleType = "bf16",
) -> GroupedMatrix:
    """[rows, cols]; `group_size` None: a scale for each row."""
    rows, cols = weights.shape
    size = group_size or cols
    padded = np.pad(weights, ((0, 0), (0, -cols % size))).reshape(rows, -1, size)
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    smallest, largest = np.minimum(padded.min(-1), 0), np.maximum(padded.max(-1), 0)
    if symmetric:
        scales = np.maximum(-smallest, largest) / (high - low) * 2
    else:
        scales = (largest - smallest) / (high - low)
    scales = _round(np.maximum(scales, 1e-6).astype(np.float32), scale_type)
    zeros = None
    values = padded / scales[..., None]
    if not symmetric:
        zeros = np.clip(np.rint(low - smallest / scales), low, high).astype(np.int16)
        values = values + zeros[..., None]
    values = np.clip(np.rint(values), low, high).astype(np.int8).reshape(rows, -1)[:, :cols]
    return GroupedMatrix(np.ascontiguousarray(values), bits, size, scales, scale_type, zeros)


def _round(scales: np.ndarray, scale_type: ScaleType) -> np.ndarray:
    if scale_type == "bf16":
        return round_to_bf16(scales)
    return scales.astype(np.float16).astype(np.float32) if scale_type == "f16" else scales


def quantized(source: Checkpoint, **settings: object) -> dict[str, GroupedMatrix]:
    """Every projection of a model."""
    names = [name for name in source.names() if name.rsplit(".", 1)[-1] in PROJECTIONS]
    return {
        name: round_to_nearest(source.tensor(name).to_float32(), **settings)  # type: ignore[arg-type]
        for name in names
    }
