"""Stored matrices of integers and of float8, as elements."""

from __future__ import annotations

import numpy as np
import torch

from trimtab.numerics.stored import (
    E4M3,
    Fp8Format,
    Fp8Matrix,
    GroupedMatrix,
    GroupFormat,
)


def integers(rows: int, cols: int, bits: int) -> np.ndarray:
    half = 1 << (bits - 1)
    return np.random.default_rng(bits).integers(-half, half, (rows, cols)).astype(np.int8)


def test_every_float8_is_what_torch_says() -> None:
    bits = torch.arange(256, dtype=torch.uint8)
    expected = bits.view(torch.float8_e4m3fn).to(torch.float32).numpy()
    assert ((expected == E4M3) | (np.isnan(expected) & np.isnan(E4M3))).all()


def test_symmetric_zero_and_offset_elements() -> None:
    values = integers(3, 40, 4)  # groups of 16: the last is short
    scales = np.random.default_rng(1).normal(size=(3, 3)).astype(np.float32)
    zeros = np.array([[-8, 0, 7], [1, 2, 3], [-1, -2, 8]], np.int16)
    plain = GroupedMatrix(values, 4, 16, scales, "f16")
    shifted = GroupedMatrix(values, 4, 16, scales, "f16", zeros=zeros)
    affine = GroupedMatrix(values, 4, 16, scales, "f16", offsets=scales / 3)
    for row in range(3):
        for k in range(40):
            value, scale = np.float32(values[row, k]), scales[row, k // 16]
            zero = np.float32(zeros[row, k // 16])
            offset = scale / np.float32(3)
            assert plain.to_float32()[row, k] == value * scale
            assert shifted.to_float32()[row, k] == (value - zero) * scale
            assert affine.to_float32()[row, k] == (value + np.float32(8)) * scale + offset
    assert plain.format == GroupFormat(4, 16, "f16", "none")
    assert shifted.format == GroupFormat(4, 16, "f16", "zero")
    assert affine.format == GroupFormat(4, 16, "f16", "float")


def test_columns_out_of_order_return_to_their_places() -> None:
    values, scales = integers(2, 32, 8), np.ones((2, 1), np.float32)
    columns = np.random.default_rng(2).permutation(32).astype(np.int32)
    matrix = GroupedMatrix(values, 8, 32, scales, "bf16", columns=columns, order="x")
    for k in range(32):
        assert (matrix.to_float32()[:, columns[k]] == values[:, k]).all()


def test_float8_blocks() -> None:
    values = np.random.default_rng(3).integers(0, 120, (5, 7)).astype(np.uint8)
    scales = np.arange(1, 7, dtype=np.float32).reshape(3, 2)
    matrix = Fp8Matrix(values, scales, 2, 4)
    assert matrix.format == Fp8Format(2, 4)
    for row in range(5):
        for k in range(7):
            assert matrix.to_float32()[row, k] == E4M3[values[row, k]] * scales[row // 2, k // 4]
